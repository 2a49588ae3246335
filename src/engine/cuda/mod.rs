//! Our own engine for NVIDIA GPUs: the driver, and the kernels. It needs the driver and nothing else. The
//! forward pass is `engine/model/cuda`.

pub(crate) mod ceilings;
pub(crate) mod driver;
pub(crate) mod kernels;
