//! Load of the machine during a run.

use serde::{Deserialize, Serialize};

/// From readings of `/proc` before the engine starts and after the last flow. Shares, 0 to 1, are of the time
/// of all processors in between. `null` if it cannot be read.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LoadRecord {
    /// Seconds between the two readings, to 10 ms.
    pub seconds: f64,
    /// Logical processors that are online; in a container usually those of the host.
    pub processors: usize,
    /// Load average of the last minute at the first reading.
    pub load_average_start: Option<f64>,
    /// Load average of the last minute at the last reading.
    pub load_average_end: Option<f64>,
    /// This process and its children.
    pub own_share: Option<f64>,
    /// Other processes and the kernel: busy time − own time.
    pub others_share: Option<f64>,
    /// Time that the hypervisor gave to other virtual machines (steal).
    pub steal_share: Option<f64>,
}
