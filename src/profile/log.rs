//! Log of finished events for the trace. Unlike the sums, it is bounded, and counts the events it
//! drops.

use super::device::DevicePass;
use super::names::Span;

/// Upper bound on stored events, about 20 MB, and on stored kernels, 3 MB.
const MOST: usize = 200_000;

/// What a forward pass computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PassTokens {
    /// Sequences in it.
    pub sequences: usize,
    /// Prompt tokens in it.
    pub prefill_tokens: usize,
    /// Tokens in it that were generated before, and guesses that it checks.
    pub decode_tokens: usize,
}

/// A finished activity; times in clock ticks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) id: u64,
    pub(super) parent: Option<u64>,
    pub(super) span: Span,
    pub(super) label: Option<Box<str>>,
    pub(super) start: u64,
    pub(super) end: u64,
}

/// A finished pass; times in clock ticks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EndedPass {
    pub(super) span: Span,
    pub(super) of: PassTokens,
    pub(super) start: u64,
    pub(super) end: u64,
    /// KV cache pages held by sequences at its end.
    pub(super) kv_pages: u64,
    pub(super) device: Option<DevicePass>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Log {
    pub(super) activities: Vec<Ended>,
    pub(super) passes: Vec<EndedPass>,
    /// Stored kernels of passes.
    pub(super) kernels: u64,
    /// Number of dropped events.
    pub(super) dropped: u64,
}

impl Log {
    pub(super) fn activity(&mut self, ended: Ended) {
        if self.has_room() {
            self.activities.push(ended);
        }
    }

    pub(super) fn pass(&mut self, mut ended: EndedPass) {
        if !self.has_room() {
            return;
        }
        if let Some(device) = &mut ended.device {
            let more = device.kernels.len() as u64;
            if self.kernels + more > MOST as u64 {
                self.dropped += more;
                device.kernels.clear();
            } else {
                self.kernels += more;
            }
        }
        self.passes.push(ended);
    }

    /// Whether one more event fits; counts it as dropped otherwise.
    fn has_room(&mut self) -> bool {
        let room = self.activities.len() + self.passes.len() < MOST;
        self.dropped += u64::from(!room);
        room
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_beyond_the_bound_are_counted() {
        let pass = EndedPass {
            span: Span::Forward,
            of: PassTokens::default(),
            start: 0,
            end: 1,
            kv_pages: 0,
            device: None,
        };
        let mut log = Log::default();
        for _ in 0..MOST + 3 {
            log.pass(pass.clone());
        }
        assert_eq!((log.passes.len(), log.dropped), (MOST, 3));
    }

    #[test]
    fn kernels_beyond_the_bound_are_counted() {
        let pass = EndedPass {
            span: Span::Forward,
            of: PassTokens::default(),
            start: 0,
            end: 1,
            kv_pages: 0,
            device: Some(DevicePass {
                device: String::new(),
                nanos: 1,
                kernels: vec![(Span::Norm, 1); MOST / 2],
            }),
        };
        let mut log = Log::default();
        for _ in 0..3 {
            log.pass(pass.clone());
        }
        let kept = |pass: &EndedPass| pass.device.as_ref().map(|device| device.kernels.len());
        let kept: Vec<_> = log.passes.iter().filter_map(kept).collect();
        assert_eq!(kept, [MOST / 2, MOST / 2, 0]);
        assert_eq!(log.dropped, MOST as u64 / 2);
    }
}
