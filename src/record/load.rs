//! How busy the machine was while a run went on.

use serde::{Deserialize, Serialize};

/// Readings of `/proc` at the start of the engine and after the last flow. Shares are of the time of
/// all the machine's processors between the two, 0 to 1. What cannot be read is `null`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LoadRecord {
    /// Seconds between the two readings, to 10 ms.
    pub seconds: f64,
    /// Logical processors of the machine that are online; in a container usually those of its host.
    pub processors: usize,
    /// Load average of the last minute at the first reading.
    pub load_average_start: Option<f64>,
    /// Load average of the last minute at the last reading.
    pub load_average_end: Option<f64>,
    /// Share that this process and its children used.
    pub own_share: Option<f64>,
    /// Share that all other processes and the kernel used: busy time − own time.
    pub others_share: Option<f64>,
    /// Share that the hypervisor gave to other virtual machines (steal).
    pub steal_share: Option<f64>,
}
