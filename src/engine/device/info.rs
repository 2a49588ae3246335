//! What a run records of its device.

use serde::{Deserialize, Serialize};

use crate::environment;

/// The device that a model runs on, as recorded in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// `cpu`, `cuda`, or `none` (scripted and remote engines compute nothing here).
    pub kind: String,
    /// Name of the card or the processor.
    pub name: String,
    /// Compute capability of the card, such as `9.0`.
    pub compute_capability: Option<String>,
    pub driver: Option<String>,
    pub memory_bytes: Option<u64>,
}

impl DeviceInfo {
    /// For engines that compute nothing in this process.
    pub fn none() -> Self {
        Self {
            kind: "none".to_owned(),
            name: "none".to_owned(),
            compute_capability: None,
            driver: None,
            memory_bytes: None,
        }
    }

    pub(super) fn cpu() -> Self {
        Self {
            kind: "cpu".to_owned(),
            name: environment::cpu_name(),
            compute_capability: None,
            driver: None,
            memory_bytes: Some(environment::memory_bytes()),
        }
    }
}
