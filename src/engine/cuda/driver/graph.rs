//! Graphs (work that is recorded once and started as a whole) and events (points in the stream whose
//! distance in time can be read).

use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys::{CUevent, CUgraph, CUgraphExec, CUstreamCaptureMode};

use super::Gpu;
use super::context::Context;
use super::error::GpuError;

/// Work that [`Gpu::replay`] starts as a whole.
pub(crate) struct Graph {
    executable: CUgraphExec,
    context: Arc<Context>,
}

// SAFETY: a handle, which the driver accepts from any thread.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Ok(driver) = self.context.enter() {
            let _ = self.context.synchronize();
            // SAFETY: made by `Gpu::capture`; it is not running.
            let _ = unsafe { driver.cuGraphExecDestroy(self.executable) };
        }
    }
}

/// A point in the stream.
pub(crate) struct Event {
    handle: CUevent,
    context: Arc<Context>,
}

// SAFETY: a handle, which the driver accepts from any thread.
unsafe impl Send for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(driver) = self.context.enter() {
            // SAFETY: made by `Gpu::event`. The driver keeps it until it has been reached.
            let _ = unsafe { driver.cuEventDestroy_v2(self.handle) };
        }
    }
}

/// A capture that has begun. The stream does not stay in it, even if the captured work panics.
struct Capture<'a> {
    context: &'a Context,
    is_open: bool,
}

impl<'a> Capture<'a> {
    fn end(&mut self) -> Result<Template<'a>, GpuError> {
        self.is_open = false;
        let mut handle = null_mut();
        let driver = self.context.enter()?;
        // SAFETY: the stream is in the capture that `Gpu::capture` began.
        unsafe { driver.cuStreamEndCapture(self.context.stream(), &raw mut handle)? };
        Ok(Template {
            handle,
            context: self.context,
        })
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if self.is_open {
            let _ = self.end();
        }
    }
}

/// What was captured, before it is made ready to run.
struct Template<'a> {
    handle: CUgraph,
    context: &'a Context,
}

impl Drop for Template<'_> {
    fn drop(&mut self) {
        if let Ok(driver) = self.context.enter()
            && !self.handle.is_null()
        {
            // SAFETY: made by `Capture::end`.
            let _ = unsafe { driver.cuGraphDestroy(self.handle) };
        }
    }
}

impl Gpu {
    /// Records what `work` queues, without running it. `work` must not allocate, synchronise or
    /// copy from memory that is not pinned: the driver refuses that during a capture.
    ///
    /// # Errors
    /// The error of `work`, or that of a capture that the driver gave up.
    pub(crate) fn capture(
        &self,
        work: impl FnOnce() -> Result<(), GpuError>,
    ) -> Result<Graph, GpuError> {
        let driver = self.context.enter()?;
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is valid.
        unsafe { driver.cuStreamBeginCapture_v2(self.context.stream(), mode)? };
        let mut capture = Capture {
            context: &self.context,
            is_open: true,
        };
        work()?;
        let template = capture.end()?;
        let mut executable = null_mut();
        // SAFETY: the graph is the one that was captured.
        unsafe { driver.cuGraphInstantiateWithFlags(&raw mut executable, template.handle, 0)? };
        Ok(Graph {
            executable,
            context: Arc::clone(&self.context),
        })
    }

    /// Queues the graph's work. Buffers that it was captured with must still exist.
    pub(crate) fn replay(&self, graph: &Graph) -> Result<(), GpuError> {
        let driver = self.context.enter()?;
        // SAFETY: the graph is ready to run.
        unsafe { driver.cuGraphLaunch(graph.executable, self.context.stream()) }
    }

    /// A new event, not recorded yet.
    pub(crate) fn event(&self) -> Result<Event, GpuError> {
        let driver = self.context.enter()?;
        let mut handle = null_mut();
        // SAFETY: the driver writes the handle. No flags: with its time.
        unsafe { driver.cuEventCreate(&raw mut handle, 0)? };
        Ok(Event {
            handle,
            context: Arc::clone(&self.context),
        })
    }

    /// Puts the event behind what is queued.
    pub(crate) fn record(&self, event: &Event) -> Result<(), GpuError> {
        let driver = self.context.enter()?;
        // SAFETY: event and stream are of this context.
        unsafe { driver.cuEventRecord(event.handle, self.context.stream()) }
    }

    /// Milliseconds of the device between two recorded events.
    ///
    /// # Errors
    /// If the device has not reached both: synchronise first.
    pub(crate) fn elapsed_ms(&self, start: &Event, end: &Event) -> Result<f32, GpuError> {
        let driver = self.context.enter()?;
        let mut milliseconds = 0.0;
        // SAFETY: the driver writes a number.
        unsafe { driver.cuEventElapsedTime(&raw mut milliseconds, start.handle, end.handle)? };
        Ok(milliseconds)
    }
}
