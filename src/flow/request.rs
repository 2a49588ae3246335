//! A request for an expansion.

use std::path::Path;

use super::lock::OnWait;
use crate::config::Layout;
use crate::error::Result;

#[derive(Clone, Copy)]
pub struct ExpandRequest<'a> {
    /// Location of templates, fixtures and flows.
    pub layout: &'a Layout,
    /// A name in `templates/`, or a path.
    pub template: &'a str,
    /// Number of flows, at least 1; `None`: one per row of the suite.
    pub num_flows: Option<usize>,
    /// Parameters of the template to override: names and values.
    pub params: &'a [(String, String)],
    /// Rows that replace the template's suite.
    pub input: Option<Input<'a>>,
    /// Whether flows that exist on disk may be used.
    pub use_cache: bool,
    /// Whether to load the flows into memory, rather than only write them.
    pub load: bool,
    /// Called while another run holds the lock.
    pub on_wait: OnWait<'a>,
    /// Called before each flow is written. An error ends the expansion: the folder then has no valid cache.
    pub proceed: &'a dyn Fn() -> Result<()>,
}

/// A file of rows (JSON lines), one per flow.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    pub path: &'a Path,
    /// Maximum number of rows to use, from the start.
    pub limit: Option<usize>,
    /// Number of flows per row. The number of flows is the number of rows times this; it overrides
    /// [`ExpandRequest::num_flows`].
    pub repeats: usize,
}
