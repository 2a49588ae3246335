//! What is to be expanded.

use std::path::Path;

use super::lock::OnWait;
use crate::config::Layout;

/// What is to be expanded.
#[derive(Clone, Copy)]
pub struct ExpandRequest<'a> {
    /// Where templates, fixtures and flows are.
    pub layout: &'a Layout,
    /// A name in `templates/`, or a path.
    pub template: &'a str,
    /// How many flows, at least 1.
    pub num_flows: usize,
    /// Parameters of the template that are set anew: names and values.
    pub params: &'a [(String, String)],
    /// Rows in place of the template's suite.
    pub input: Option<Input<'a>>,
    /// Whether flows that are there already may be used.
    pub use_cache: bool,
    /// Whether the flows are wanted in memory, and not just on the disk.
    pub load: bool,
    /// Told while another run has the folder.
    pub on_wait: OnWait<'a>,
}

/// A file of rows (JSON lines), one a flow.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The file.
    pub path: &'a Path,
    /// Only so many of its rows, from the first.
    pub limit: Option<usize>,
    /// How many flows each row gets; there are so many in all as rows times this, whatever
    /// [`ExpandRequest::num_flows`] says.
    pub repeats: usize,
}
