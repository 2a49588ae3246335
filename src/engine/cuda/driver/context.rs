//! The device's primary context and the one stream in it. Everything that lives on the device holds it.

use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::{CUcontext, CUdevice, CUstream};

use super::error::GpuError;
use super::library::Driver;

/// `CU_STREAM_NON_BLOCKING`: does not wait for the legacy default stream.
const STREAM_NON_BLOCKING: u32 = 1;

thread_local! {
    /// [`Context::id`] of the context that is current on this thread; 0 for none.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

pub(super) struct Context {
    driver: &'static Driver,
    device: CUdevice,
    handle: CUcontext,
    stream: CUstream,
    /// Never used twice in a process, unlike handles.
    id: u64,
}

// SAFETY: the driver's functions may be called from any thread with any handle; `enter` makes the
// context current on the calling one. Nothing here changes after `open`.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Takes part in the primary context of an initialised driver's device, and makes a stream.
    pub(super) fn open(driver: &'static Driver, device: CUdevice) -> Result<Self, GpuError> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let mut context = Self {
            driver,
            device,
            handle: null_mut(),
            stream: null_mut(),
            id: IDS.fetch_add(1, Ordering::Relaxed),
        };
        // SAFETY: the device is one of an initialised driver.
        let retained = unsafe { driver.cuDevicePrimaryCtxRetain(&raw mut context.handle, device) };
        if let Err(error) = retained {
            // There is nothing to release.
            std::mem::forget(context);
            return Err(error);
        }
        context.enter()?;
        // SAFETY: the context is current.
        unsafe { driver.cuStreamCreate(&raw mut context.stream, STREAM_NON_BLOCKING)? };
        Ok(context)
    }

    /// Makes the context current on this thread, and returns the functions to call in it. Costs no
    /// call where it is current already.
    pub(super) fn enter(&self) -> Result<&'static Driver, GpuError> {
        if CURRENT.get() != self.id {
            // SAFETY: the handle is valid until `drop`.
            unsafe { self.driver.cuCtxSetCurrent(self.handle)? };
            CURRENT.set(self.id);
        }
        Ok(self.driver)
    }

    pub(super) fn stream(&self) -> CUstream {
        self.stream
    }

    /// Waits until everything that was queued is done.
    pub(super) fn synchronize(&self) -> Result<(), GpuError> {
        // SAFETY: the stream is valid until `drop`.
        unsafe { self.enter()?.cuStreamSynchronize(self.stream) }
    }
}

impl Drop for Context {
    /// Errors are ignored: there is nobody to report them to, and the process may be ending.
    fn drop(&mut self) {
        if let Ok(driver) = self.enter()
            && !self.stream.is_null()
        {
            // SAFETY: nothing uses the stream any more, since all that would hold this context.
            let _ = unsafe { driver.cuStreamSynchronize(self.stream) };
            // SAFETY: as above.
            let _ = unsafe { driver.cuStreamDestroy_v2(self.stream) };
        }
        // SAFETY: retained once in `open`.
        let _ = unsafe { self.driver.cuDevicePrimaryCtxRelease_v2(self.device) };
        CURRENT.set(0);
    }
}
