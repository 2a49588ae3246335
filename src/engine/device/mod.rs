//! The device that a model runs on. `cuda.rs` or `none.rs` stands behind the same names, so that no
//! other file knows whether this build has CUDA.

#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
mod none;

use serde::{Deserialize, Serialize};

use crate::config::DeviceChoice;
use crate::error::Result;

#[cfg(feature = "cuda")]
use cuda as gpu;
#[cfg(not(feature = "cuda"))]
use none as gpu;

/// The device that a model runs on, for the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// `cpu`, `cuda`, or `none` (nothing is computed).
    pub kind: String,
    /// The card's or the processor's name.
    pub name: String,
    /// Compute capability of the card, as `9.0`.
    pub compute_capability: Option<String>,
    /// Version of the driver.
    pub driver: Option<String>,
    /// The device's memory in bytes.
    pub memory_bytes: Option<u64>,
}

impl DeviceInfo {
    /// Where nothing is computed: recorded answers.
    pub fn none() -> Self {
        Self {
            kind: "none".to_owned(),
            name: "none".to_owned(),
            compute_capability: None,
            driver: None,
            memory_bytes: None,
        }
    }
}
