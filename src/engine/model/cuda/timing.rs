//! Device time of passes, by events in the stream, while the profile is on.
//!
//! Every pass has an event before its upload and one behind its last kernel. Of passes that are launched kernel by
//! kernel, each kernel is timed: of all that compute prompts, and of every [`EVERY`]th decode pass, which is then
//! not a graph. So graphs stay as they are, and most decode passes cost two events.

use std::cell::RefCell;

use crate::engine::cuda::driver::{Event, Gpu, GpuError};
use crate::profile::{self, DevicePass, Span};

/// Of so many decode passes one is timed by kernel.
const EVERY: usize = 16;

/// The events of a pass, which are used again.
#[derive(Default)]
pub(super) struct Timing {
    events: Vec<Event>,
    /// What is in front of each event but the first.
    marks: Vec<Span>,
    is_by_kernel: bool,
    decodes: usize,
}

impl Timing {
    /// Whether the next pass is timed kernel by kernel.
    pub(super) fn is_due(&mut self, is_decode: bool) -> bool {
        if !is_decode {
            return true;
        }
        self.decodes += 1;
        self.decodes % EVERY == 1
    }

    /// Puts the first event of a pass into the stream.
    pub(super) fn begin(&mut self, gpu: &Gpu, is_by_kernel: bool) -> Result<(), GpuError> {
        self.marks.clear();
        self.is_by_kernel = is_by_kernel;
        self.record(gpu, 0)
    }

    fn record(&mut self, gpu: &Gpu, index: usize) -> Result<(), GpuError> {
        if self.events.len() == index {
            self.events.push(gpu.event()?);
        }
        gpu.record(&self.events[index])
    }

    /// Marks the end of a kernel, or of a pass that is not timed by kernel.
    fn mark(&mut self, gpu: &Gpu, span: Span) -> Result<(), GpuError> {
        self.marks.push(span);
        self.record(gpu, self.marks.len())
    }

    /// The end of a pass.
    pub(super) fn end(&mut self, gpu: &Gpu) -> Result<(), GpuError> {
        match self.is_by_kernel {
            true => Ok(()),
            false => self.mark(gpu, Span::Forward),
        }
    }

    /// Reports the pass to the profile. The device must be done with it.
    pub(super) fn report(&self, gpu: &Gpu) -> Result<(), GpuError> {
        let nanos = |from: usize, to: usize| {
            let milliseconds = gpu.elapsed_ms(&self.events[from], &self.events[to])?;
            Ok((f64::from(milliseconds) * 1e6).round() as u64)
        };
        let last = self.marks.len();
        if last == 0 {
            return Ok(());
        }
        let kernels = match self.is_by_kernel {
            false => Vec::new(),
            true => (self.marks.iter().enumerate())
                .map(|(at, span)| Ok((*span, nanos(at, at + 1)?)))
                .collect::<Result<_, GpuError>>()?,
        };
        profile::device_pass(DevicePass {
            device: gpu.info().name.clone(),
            nanos: nanos(0, last)?,
            kernels,
        });
        Ok(())
    }
}

/// What times the kernels of a pass; `None`: nothing.
pub(super) type Timer<'a> = Option<&'a RefCell<Timing>>;

/// Runs what queues a kernel, and marks its end.
pub(super) fn timed(
    timer: Timer<'_>,
    gpu: &Gpu,
    span: Span,
    queue: impl FnOnce() -> Result<(), GpuError>,
) -> Result<(), GpuError> {
    queue()?;
    match timer {
        Some(timing) => timing.borrow_mut().mark(gpu, span),
        None => Ok(()),
    }
}
