//! Samples, and requests that have been submitted and have not ended.

use std::sync::Arc;

use super::judge::Order;
use crate::engine::{Message, Origin};
use crate::profile::Activity;
use crate::stopwatch::Moment;
use crate::units::Millis;

/// A sample of a step of a flow. Flows count from 1, steps and samples from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct SampleId {
    pub(super) flow: usize,
    pub(super) step: usize,
    pub(super) sample: usize,
}

/// A request that has been submitted and has not ended.
pub(super) struct InFlight {
    pub(super) place: SampleId,
    /// Of a judge only.
    pub(super) order: Option<Order>,
    pub(super) submitted: Moment,
    /// Start of its first forward pass, if the engine reports it.
    pub(super) started: Option<Moment>,
    /// When each token came, from `submitted`.
    pub(super) tokens: Vec<Millis>,
    pub(super) messages: Arc<[Message]>,
    pub(super) origin: Origin,
    pub(super) activity: Activity,
}
