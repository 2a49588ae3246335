//! Our own engine for NVIDIA GPUs. It needs the driver and nothing else.

#[expect(
    dead_code,
    unused_imports,
    reason = "the CUDA forward will call what is not called yet"
)]
pub(crate) mod driver;
pub(crate) mod kernels;
