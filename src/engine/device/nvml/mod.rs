//! NVML, the driver's management library: what the card is, what it does, and who else uses it. Loaded
//! at run time. Each field is known or not by itself; where the library is missing, none is.

mod card;
mod library;
mod meter;
mod processes;
mod reading;
mod sample;
#[cfg(test)]
mod tests;
mod throttle;

pub use library::driver_version;
pub(crate) use library::{cards, opened};
pub use meter::GpuMeter;
pub(crate) use reading::read_unopened;
pub use reading::{Reading, read};
pub use sample::{GpuSample, GpuWatch};
