//! Where the time goes: spans, their table, and the stages' shares of the wall time.
//!
//! Off, a span costs one atomic load. On ([`enable`]), there are three kinds of them:
//!
//! - [`span()`]: a scope of a thread's code;
//! - [`Activity`]: what goes on across scopes and threads (a flow, its steps, a request's phases),
//!   with an explicit parent;
//! - [`pass`]: one forward pass, or one wait, for all requests in it.
//!
//! [`Span`] lists the names. [`snapshot`] reads all that was measured so far, at any time and from
//! any thread; [`trace()`] says what was when, [`live()`] how far the run is. These readings of the
//! clock are never fenced and tell of the program alone: reported run times come from
//! [`crate::stopwatch`].

mod live;
mod log;
mod names;
mod recorder;
mod span;
mod stages;
mod table;
mod trace;
mod tree;

pub use live::{Count, Distribution, Live, count, kv_pages};
pub use log::PassTokens;
pub use names::Span;
pub use recorder::{
    Activity, Guard, PassGuard, Scope, enable, is_on, live, pass, snapshot, span, trace,
};
pub use table::text;
