//! Profiling: spans, their table, and the share of each stage in the wall time.
//!
//! While the profile is off, a span costs one atomic load. When it is on ([`enable`]), there are
//! three kinds:
//!
//! - [`span()`]: a scope in a thread's code;
//! - [`Activity`]: work that spans scopes and threads (a flow, its steps, the phases of a request),
//!   with an explicit parent;
//! - [`pass`]: one forward pass, or one wait, on behalf of all requests in it.
//!
//! [`Span`] lists the names. [`snapshot`] reads all measurements so far, at any time and from any
//! thread; [`trace()`] returns the timeline and [`live()`] the progress of the run. The clock is
//! read without a fence, so these times describe the program only: reported run times come from
//! [`crate::stopwatch`].

mod device;
mod live;
mod log;
mod names;
mod recorder;
mod span;
mod stages;
mod table;
mod trace;
mod tree;

pub use device::DevicePass;
pub use live::{Count, Distribution, Live, count, kv_pages};
pub use log::PassTokens;
pub use names::Span;
pub use recorder::{
    Activity, Guard, PassGuard, Scope, device_pass, enable, is_on, live, pass, snapshot, span,
    trace,
};
pub use table::text;
