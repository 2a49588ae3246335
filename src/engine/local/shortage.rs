//! A device whose memory runs out in a pass: fewer sequences are admitted from then on, and the pass is tried
//! once more.

use super::LocalEngine;
use crate::engine::cuda::driver::GpuError;
use crate::engine::scheduler::Preempted;
use crate::error::{Error, Result};
use crate::profile::Span;
use crate::record::shortage::MemoryShortage;

/// Whether the device's memory was short. It computes nothing then, and later passes can still run.
fn is_shortage(error: &Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<GpuError>() {
            return error.is_out_of_memory();
        }
        cause = error.source();
    }
    false
}

impl LocalEngine {
    /// What to do about a pass that failed: `Ok` if it should be tried again.
    ///
    /// # Errors
    /// The pass's own error, if its memory was not short, or a pass since the last good one was already tried again,
    /// or nothing can be given up.
    pub(super) fn lower_admission(&mut self, error: Error) -> Result<()> {
        let sequences = self.scheduler.active();
        if !is_shortage(&error) || self.tries_again {
            return Err(error);
        }
        let admitted = (sequences / 2).max(1);
        if !self.model.save_memory() && admitted == sequences {
            return Err(error);
        }
        self.tries_again = true;
        self.shortages.push(MemoryShortage {
            sequences,
            admitted,
            error: error.chain(),
        });
        self.scheduler.limit(admitted);
        while self.scheduler.active() > admitted {
            let Some(Preempted { id, computed }) = self.scheduler.preempt() else {
                break;
            };
            if let Some(mut sequence) = self.sequences.remove(&id) {
                self.release_memory(&mut sequence, computed);
                sequence.phase.next(Span::QueueWait);
                self.sequences.insert(id, sequence);
            }
        }
        Ok(())
    }
}
