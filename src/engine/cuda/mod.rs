//! Our own engine for NVIDIA GPUs: the driver, and the kernels. It needs the driver and nothing else. The
//! forward pass is `engine/model/cuda`.

#[expect(
    dead_code,
    unused_imports,
    reason = "the CUDA forward will call what is not called yet"
)]
pub(crate) mod driver;
pub(crate) mod kernels;
