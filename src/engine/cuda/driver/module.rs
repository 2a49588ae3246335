//! Kernels: PTX that the driver compiles for its card, functions in it, and their launch.

use std::ffi::{CString, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUfunction, CUjit_option as Option_, CUmodule};

use super::Gpu;
use super::card::{MINIMUM_DRIVER, cuda_version};
use super::context::Context;
use super::error::GpuError;
use super::memory::{Buffer, Plain};
use crate::error::{Error, Result};
use crate::stopwatch::Timer;
use crate::units::Millis;

/// Bytes for the messages of the driver's compiler.
const LOG_BYTES: usize = 8192;

/// A module on the device.
struct Module {
    handle: CUmodule,
    context: Arc<Context>,
}

// SAFETY: a handle, which the driver accepts from any thread.
unsafe impl Send for Module {}
// SAFETY: as above; it does not change.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        if let Ok(driver) = self.context.enter() {
            let _ = self.context.synchronize();
            // SAFETY: made by `Gpu::load_kernels`; none of its kernels is running.
            let _ = unsafe { driver.cuModuleUnload(self.handle) };
        }
    }
}

/// The kernels of one PTX text, compiled for the card.
pub(crate) struct Kernels {
    module: Arc<Module>,
    jit: Millis,
}

impl Kernels {
    /// How long the driver compiled; short if the result was in its cache.
    pub(crate) fn jit(&self) -> Millis {
        self.jit
    }

    /// Looks a kernel up.
    ///
    /// # Errors
    /// Exit code 3 if there is no kernel of this name.
    pub(crate) fn get(&self, name: &str) -> Result<Kernel> {
        let error = |error: GpuError| error.at_load(&format!("find the kernel `{name}`"));
        let c_name = CString::new(name)
            .map_err(|_| error(GpuError::invalid("cuModuleGetFunction", name.to_owned())))?;
        let context = &self.module.context;
        let mut function = null_mut();
        context
            .enter()
            .and_then(|driver| {
                // SAFETY: the module is loaded, the name ends with a zero.
                unsafe {
                    driver.cuModuleGetFunction(
                        &raw mut function,
                        self.module.handle,
                        c_name.as_ptr(),
                    )
                }
            })
            .map_err(error)?;
        Ok(Kernel {
            function,
            name: name.into(),
            _module: Arc::clone(&self.module),
        })
    }
}

/// A function that runs on the device.
#[derive(Clone)]
pub(crate) struct Kernel {
    function: CUfunction,
    name: Arc<str>,
    /// Keeps the function loaded.
    _module: Arc<Module>,
}

// SAFETY: a handle, which the driver accepts from any thread.
unsafe impl Send for Kernel {}
// SAFETY: as above; it does not change.
unsafe impl Sync for Kernel {}

/// The arguments of a launch, in the order of the kernel's parameters.
///
/// Nothing checks their number and types against the kernel: the driver reads as many bytes as the
/// kernel's parameters have.
#[derive(Clone, Default)]
pub(crate) struct Arguments {
    /// The values one after another, each from a multiple of 8 bytes on.
    words: Vec<u64>,
    /// Where each value starts in `words`.
    starts: Vec<usize>,
}

impl Arguments {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub(crate) fn buffer<T>(self, buffer: &Buffer<T>) -> Self {
        self.u64(buffer.address(0))
    }

    /// The address of the value at `offset`.
    #[must_use]
    pub(crate) fn buffer_at<T>(self, buffer: &Buffer<T>, offset: usize) -> Self {
        self.u64(buffer.address(offset))
    }

    /// A null pointer, for a parameter that the kernel then leaves alone.
    #[must_use]
    pub(crate) fn null(self) -> Self {
        self.u64(0 as CUdeviceptr)
    }

    #[must_use]
    pub(crate) fn u32(self, value: u32) -> Self {
        self.value(value)
    }

    #[must_use]
    pub(crate) fn f32(self, value: f32) -> Self {
        self.value(value)
    }

    #[must_use]
    pub(crate) fn u64(self, value: u64) -> Self {
        self.value(value)
    }

    /// A number or a structure. Its alignment is at most 8.
    #[must_use]
    pub(crate) fn value<T: Plain>(mut self, value: T) -> Self {
        const { assert!(align_of::<T>() <= align_of::<u64>()) };
        let start = self.words.len();
        self.starts.push(start);
        self.words.resize(start + size_of::<T>().div_ceil(8), 0);
        // SAFETY: there is room for the value, aligned as it must be.
        unsafe { self.words.as_mut_ptr().add(start).cast::<T>().write(value) };
        self
    }

    fn pointers(&mut self) -> Vec<*mut c_void> {
        let words = self.words.as_mut_ptr();
        // SAFETY: each start is in `words`.
        let pointer = |start: &usize| unsafe { words.add(*start) }.cast();
        self.starts.iter().map(pointer).collect()
    }
}

impl Gpu {
    /// Compiles PTX for the card.
    ///
    /// # Errors
    /// Exit code 3, with the compiler's messages: the driver is too old for this PTX, the card is,
    /// or the PTX is damaged.
    pub(crate) fn load_kernels(&self, ptx: &str) -> Result<Kernels> {
        let failed = |error: GpuError| self.not_loaded(error, Head::of(ptx));
        let image = CString::new(ptx).map_err(|_| {
            failed(GpuError::invalid(
                "cuModuleLoadDataEx",
                "a zero in the text".to_owned(),
            ))
        })?;
        let driver = self.context.enter().map_err(failed)?;
        let mut log = vec![0u8; LOG_BYTES];
        let mut options = [
            Option_::CU_JIT_ERROR_LOG_BUFFER,
            Option_::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES,
        ];
        // The size is passed as a pointer's value. One byte stays zero, whatever is written.
        let mut values = [
            log.as_mut_ptr().cast::<c_void>(),
            std::ptr::without_provenance_mut(LOG_BYTES - 1),
        ];
        let mut handle = null_mut();
        let timer = Timer::start();
        // SAFETY: the image ends with a zero; options and values are as many as said, and the log
        // has that size.
        let loaded = unsafe {
            driver.cuModuleLoadDataEx(
                &raw mut handle,
                image.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        let jit = timer.elapsed().into();
        loaded.map_err(|error| failed(with_log(error, &log)))?;
        let module = Module {
            handle,
            context: Arc::clone(&self.context),
        };
        Ok(Kernels {
            module: Arc::new(module),
            jit,
        })
    }

    fn not_loaded(&self, error: GpuError, head: Head) -> Error {
        let card = self.card();
        let (major, minor) = card.capability;
        let isa = head.version.as_deref().unwrap_or("of unknown version");
        let target = head.target.as_deref().unwrap_or("an unknown target");
        let hint = match error.code() {
            // CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            222 => format!(
                "the driver is too old for this PTX: install the NVIDIA driver {MINIMUM_DRIVER} or later; DEVICE=cpu runs without a GPU"
            ),
            // CUDA_ERROR_NO_BINARY_FOR_GPU
            209 => "the card is too old for these kernels; DEVICE=cpu runs without a GPU".to_owned(),
            // CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            221 => "libnvidia-ptxjitcompiler.so.1, which comes with the driver, is missing: install the driver again, in a container with all its libraries (NVIDIA_DRIVER_CAPABILITIES=compute,utility); DEVICE=cpu runs without a GPU".to_owned(),
            // CUDA_ERROR_JIT_COMPILATION_DISABLED
            223 => "unset CUDA_DISABLE_PTX_JIT; DEVICE=cpu runs without a GPU".to_owned(),
            _ => "this is an error of flowbench or of the driver: please report it with the messages above; DEVICE=cpu runs without a GPU".to_owned(),
        };
        Error::preflight(format!(
            "failed to load the kernels, PTX {isa} for {target}, on {} (compute capability {major}.{minor}, CUDA {})",
            card.name,
            cuda_version(card.cuda)
        ))
        .caused_by(error)
        .hint(hint)
    }

    /// Queues a kernel: `grid` blocks of `block` threads.
    ///
    /// The kernel reads and writes where its arguments point: that they are right is the caller's
    /// affair, and that their buffers live until the next [`Gpu::synchronize`] is ensured by their
    /// `drop`.
    pub(crate) fn launch(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: u32,
        arguments: &mut Arguments,
    ) -> Result<(), GpuError> {
        let driver = self.context.enter()?;
        let mut pointers = arguments.pointers();
        let [x, y, z] = grid;
        // SAFETY: the kernel is loaded; each pointer is that of a value that the driver copies
        // before it returns.
        unsafe {
            driver.cuLaunchKernel(
                kernel.function,
                x,
                y,
                z,
                block,
                1,
                1,
                0,
                self.context.stream(),
                pointers.as_mut_ptr(),
                null_mut(),
            )
        }
        .map_err(|error| {
            error.with(format!(
                "kernel `{}`, grid {grid:?}, {block} threads",
                kernel.name
            ))
        })
    }
}

/// What a PTX text says of itself.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    /// `8.1`
    version: Option<String>,
    /// `sm_80`
    target: Option<String>,
}

impl Head {
    fn of(ptx: &str) -> Self {
        let value = |key: &str| {
            let mut lines = ptx.lines().map(str::trim);
            let value = lines.find_map(|line| line.strip_prefix(key))?;
            let word = value.trim().split([',', ' ']).next()?;
            (!word.is_empty()).then(|| word.to_owned())
        };
        Self {
            version: value(".version"),
            target: value(".target"),
        }
    }
}

/// Adds the compiler's messages.
fn with_log(error: GpuError, log: &[u8]) -> GpuError {
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    let text = String::from_utf8_lossy(&log[..end]);
    match text.trim() {
        "" => error,
        text => error.with(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read() {
        let ptx = "//\n// compiled\n//\n.version 8.1\n.target sm_80, texmode_independent\n.address_size 64\n";
        let head = Head::of(ptx);
        assert_eq!(head.version.as_deref(), Some("8.1"));
        assert_eq!(head.target.as_deref(), Some("sm_80"));
        assert_eq!(Head::of("hello").version, None);
    }

    #[test]
    fn arguments_lie_in_order() {
        let mut arguments = Arguments::new()
            .u32(7)
            .f32(1.5)
            .value([1u32, 2, 3])
            .u64(u64::MAX - 1)
            .null();
        let pointers = arguments.pointers();
        assert_eq!(pointers.len(), 5);
        // SAFETY: the values are in `arguments`, with these types.
        unsafe {
            assert_eq!(pointers[0].cast::<u32>().read(), 7);
            assert_eq!(pointers[1].cast::<f32>().read(), 1.5);
            assert_eq!(pointers[2].cast::<[u32; 3]>().read(), [1, 2, 3]);
            assert_eq!(pointers[3].cast::<u64>().read(), u64::MAX - 1);
            assert_eq!(pointers[4].cast::<u64>().read(), 0);
        }
    }

    #[test]
    fn the_compilers_messages_are_kept() {
        let error = |log: &[u8]| with_log(GpuError::new("f", 218, None, None), log).to_string();
        assert_eq!(
            error(b"ptxas fatal : bad\n\0\0"),
            "f failed: CUDA error 218, ptxas fatal : bad"
        );
        assert_eq!(error(b"\0\0"), "f failed: CUDA error 218");
    }
}
