//! Device memory that ran out during a run.

use serde::{Deserialize, Serialize};

/// A pass for which the device had too little memory. From then on fewer sequences were computed at once, and the
/// pass was tried again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemoryShortage {
    /// Sequences that were active.
    pub sequences: usize,
    /// Most sequences at once from then on.
    pub admitted: usize,
    /// The device's error.
    pub error: String,
}
