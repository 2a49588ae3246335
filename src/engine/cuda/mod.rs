//! Our own engine for NVIDIA GPUs: the driver, and the kernels. It needs the driver and nothing else. The
//! forward pass is `engine/model/cuda`.

#[expect(
    dead_code,
    reason = "events and asynchronous downloads are for the device times of a profile, which is to come"
)]
pub(crate) mod driver;
pub(crate) mod kernels;
