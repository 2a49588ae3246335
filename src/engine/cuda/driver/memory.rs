//! Memory of the device, pinned memory of the host, and copies between them.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use cudarc::driver::sys::CUdeviceptr;

use super::Gpu;
use super::context::Context;
use super::error::GpuError;
use crate::units::Bytes;

/// Values that are copied byte by byte between host and device.
///
/// # Safety
/// Any bytes are a valid value, and the type has no padding.
pub(crate) unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain {
    ($($kind:ty),*) => {
        $(
            // SAFETY: a number; any bytes are one.
            unsafe impl Plain for $kind {}
        )*
    };
}

plain!(
    u8,
    i8,
    u16,
    i16,
    u32,
    i32,
    u64,
    i64,
    f32,
    f64,
    half::f16,
    half::bf16
);

// SAFETY: values one after another, without padding.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Memory of the device for `len` values. Freed when it is dropped, after what is queued.
///
/// A [`Graph`](super::Graph) keeps the addresses of the buffers that it was captured with, not the
/// buffers: they must outlive it.
pub(crate) struct Buffer<T> {
    pointer: CUdeviceptr,
    len: usize,
    context: Arc<Context>,
    values: PhantomData<T>,
}

impl<T> Buffer<T> {
    /// The device's address of the value at `offset`, which may be the end.
    ///
    /// # Panics
    /// If `offset` is beyond the end.
    pub(crate) fn address(&self, offset: usize) -> CUdeviceptr {
        assert!(offset <= self.len, "value {offset} of {}", self.len);
        self.pointer + (offset * size_of::<T>()) as CUdeviceptr
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Ok(driver) = self.context.enter() {
            let _ = self.context.synchronize();
            // SAFETY: allocated by `Gpu::allocate`; nothing queued uses it any more.
            let _ = unsafe { driver.cuMemFree_v2(self.pointer) };
        }
    }
}

/// Page-locked memory of the host, which the device reads and writes in stream order. Freed when it
/// is dropped, after what is queued.
///
/// Between an asynchronous copy and the next [`Gpu::synchronize`] the values are the device's: they
/// must not be read (`download_async`) or changed (`upload_async`).
pub(crate) struct Pinned<T> {
    pointer: NonNull<T>,
    len: usize,
    context: Arc<Context>,
}

// SAFETY: owns its memory, as a `Vec` does; the values are `Plain`, so `Send` and `Sync`.
unsafe impl<T: Plain> Send for Pinned<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Pinned<T> {}

impl<T> Deref for Pinned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` values, zeroed when they were allocated.
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Pinned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.len) }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        if let Ok(driver) = self.context.enter() {
            let _ = self.context.synchronize();
            // SAFETY: allocated by `Gpu::pinned`; nothing queued uses it any more.
            let _ = unsafe { driver.cuMemFreeHost(self.pointer.as_ptr().cast()) };
        }
    }
}

/// Bytes of `len` values, at least one: the driver has no empty allocations.
fn size<T>(function: &'static str, len: usize) -> Result<usize, GpuError> {
    let bytes = len.max(1).checked_mul(size_of::<T>());
    // Larger ones could not be addressed on the host.
    match bytes.filter(|bytes| isize::try_from(*bytes).is_ok()) {
        Some(bytes) => Ok(bytes),
        None => Err(GpuError::too_large(function).with(format!("{len} values"))),
    }
}

/// The range of `len` values from `at`.
///
/// # Errors
/// If it is not within `0..whole`.
fn range(
    function: &'static str,
    at: usize,
    len: usize,
    whole: usize,
) -> Result<Range<usize>, GpuError> {
    match at.checked_add(len) {
        Some(end) if end <= whole => Ok(at..end),
        _ => Err(GpuError::invalid(
            function,
            format!("{len} values from {at} on, of {whole}"),
        )),
    }
}

impl Gpu {
    /// Memory of the device for `len` values, all bytes zero.
    ///
    /// # Errors
    /// If there is too little ([`GpuError::is_out_of_memory`]).
    pub(crate) fn allocate<T: Plain>(&self, len: usize) -> Result<Buffer<T>, GpuError> {
        let bytes = size::<T>("cuMemAlloc_v2", len)?;
        let driver = self.context.enter()?;
        let mut pointer = 0;
        // SAFETY: the driver writes the address.
        unsafe { driver.cuMemAlloc_v2(&raw mut pointer, bytes) }
            .map_err(|error| error.with(Bytes(bytes as u64).to_string()))?;
        let buffer = Buffer {
            pointer,
            len,
            context: Arc::clone(&self.context),
            values: PhantomData,
        };
        // SAFETY: `bytes` bytes were allocated. Later work is queued behind this.
        unsafe { driver.cuMemsetD8Async(pointer, 0, bytes, self.context.stream())? };
        Ok(buffer)
    }

    /// Page-locked memory of the host for `len` values, all bytes zero.
    ///
    /// # Errors
    /// If there is too little ([`GpuError::is_out_of_memory`]).
    pub(crate) fn pinned<T: Plain>(&self, len: usize) -> Result<Pinned<T>, GpuError> {
        let bytes = size::<T>("cuMemHostAlloc", len)?;
        let driver = self.context.enter()?;
        let mut pointer = null_mut();
        // SAFETY: the driver writes the address.
        unsafe { driver.cuMemHostAlloc(&raw mut pointer, bytes, 0) }
            .map_err(|error| error.with(Bytes(bytes as u64).to_string()))?;
        let pointer = NonNull::new(pointer.cast::<T>())
            .ok_or_else(|| GpuError::invalid("cuMemHostAlloc", "a null address".to_owned()))?;
        // SAFETY: `bytes` bytes were allocated, aligned to a page.
        unsafe { pointer.as_ptr().cast::<u8>().write_bytes(0, bytes) };
        Ok(Pinned {
            pointer,
            len,
            context: Arc::clone(&self.context),
        })
    }

    /// Copies `from` to the values of `to` from `at` on, behind what is queued, and waits for it.
    pub(crate) fn upload<T: Plain>(
        &self,
        to: &mut Buffer<T>,
        at: usize,
        from: &[T],
    ) -> Result<(), GpuError> {
        range("upload", at, from.len(), to.len)?;
        self.send(to.address(at), from)?;
        // Until then the driver may read `from`.
        self.synchronize()
    }

    /// Queues a copy of the first `len` values.
    pub(crate) fn upload_async<T: Plain>(
        &self,
        to: &Buffer<T>,
        from: &Pinned<T>,
        len: usize,
    ) -> Result<(), GpuError> {
        range("upload_async", 0, len, to.len.min(from.len))?;
        self.send(to.address(0), &from[..len])
    }

    /// Queues a copy to the device; `to` has room for it. The values must stay until it is done.
    fn send<T: Plain>(&self, to: CUdeviceptr, from: &[T]) -> Result<(), GpuError> {
        if from.is_empty() {
            return Ok(());
        }
        let driver = self.context.enter()?;
        let (pointer, bytes) = (from.as_ptr().cast::<c_void>(), size_of_val(from));
        // SAFETY: both sides have `bytes` bytes.
        unsafe { driver.cuMemcpyHtoDAsync_v2(to, pointer, bytes, self.context.stream()) }
    }

    /// Copies the values of `from` from `at` on to `to`, behind what is queued, and waits for it.
    pub(crate) fn download<T: Plain>(
        &self,
        from: &Buffer<T>,
        at: usize,
        to: &mut [T],
    ) -> Result<(), GpuError> {
        range("download", at, to.len(), from.len)?;
        let sent = self.receive(to, from.address(at));
        // Also after an error: the driver may be writing to `to`.
        sent.and(self.synchronize())
    }

    /// Queues a copy of the first `len` values.
    pub(crate) fn download_async<T: Plain>(
        &self,
        from: &Buffer<T>,
        to: &mut Pinned<T>,
        len: usize,
    ) -> Result<(), GpuError> {
        range("download_async", 0, len, to.len.min(from.len))?;
        self.receive(&mut to[..len], from.address(0))
    }

    /// Queues a copy to the host. The place must stay until it is done.
    fn receive<T: Plain>(&self, to: &mut [T], from: CUdeviceptr) -> Result<(), GpuError> {
        if to.is_empty() {
            return Ok(());
        }
        let driver = self.context.enter()?;
        let (pointer, bytes) = (to.as_mut_ptr().cast::<c_void>(), size_of_val(to));
        // SAFETY: both sides have `bytes` bytes, and any bytes are values.
        unsafe { driver.cuMemcpyDtoHAsync_v2(pointer, from, bytes, self.context.stream()) }
    }

    /// Queues a copy of `len` values within the device. The ranges must not overlap.
    pub(crate) fn copy<T: Plain>(
        &self,
        from: &Buffer<T>,
        at: usize,
        to: &Buffer<T>,
        to_at: usize,
        len: usize,
    ) -> Result<(), GpuError> {
        range("copy", at, len, from.len)?;
        range("copy", to_at, len, to.len)?;
        if len == 0 {
            return Ok(());
        }
        let (from, to, bytes) = (from.address(at), to.address(to_at), len * size_of::<T>());
        let driver = self.context.enter()?;
        // SAFETY: both sides have `bytes` bytes.
        unsafe { driver.cuMemcpyDtoDAsync_v2(to, from, bytes, self.context.stream()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_within_the_buffer() {
        assert_eq!(range("copy", 2, 3, 5), Ok(2..5));
        assert_eq!(range("copy", 5, 0, 5), Ok(5..5));
        for (at, len) in [(3, 3), (6, 0), (usize::MAX, 1), (1, usize::MAX)] {
            let error = range("copy", at, len, 5).expect_err("beyond the end");
            assert!(error.to_string().ends_with(", of 5"), "{error}");
        }
        let error = range("upload", 3, 6, 5).expect_err("beyond the end");
        assert_eq!(
            error.to_string(),
            "upload failed: CUDA_ERROR_INVALID_VALUE (invalid argument), 6 values from 3 on, of 5"
        );
    }

    #[test]
    fn no_allocation_is_empty_or_larger_than_an_address() {
        assert_eq!(size::<u32>("allocate", 0), Ok(4));
        assert_eq!(size::<u16>("allocate", 7), Ok(14));
        for len in [usize::MAX, usize::MAX / 4, usize::MAX / 8 + 1] {
            assert!(size::<u32>("allocate", len).is_err_and(|error| error.is_out_of_memory()));
        }
    }
}
