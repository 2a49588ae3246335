//! The driver's library, `libcuda.so.1`: opened at run time, every function looked up at once.
//!
//! cudarc supplies the types and the declarations. Its own loader is not used: it panics where the
//! library or a function is missing, it would take a toolkit's stub (`libcuda.so`) before the driver,
//! and its result codes are an enum, which a newer driver's code is not a value of.

use std::error::Error as _;
use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction, CUgraph,
    CUgraphExec, CUjit_option, CUmodule, CUstream, CUstreamCaptureMode,
};
use libloading::Library;

use super::error::GpuError;

/// The driver's soname. `libcuda.so` without the number may be a toolkit's stub.
const LIBRARY: &str = "libcuda.so.1";

/// Why the driver cannot be called at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Missing {
    /// The loader's message.
    Library(String),
    /// The first function that the library lacks, and the CUDA version that it implements
    /// (`12_010` is 12.1), if it says.
    Function {
        name: &'static str,
        version: Option<i32>,
    },
}

/// Declares each function once: its place in the table, its look-up, and a method that returns its
/// result code as an error. The compiler compares each with cudarc's declaration.
macro_rules! functions {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {
        /// The driver's functions, under the names of its documentation.
        #[expect(non_snake_case, reason = "names of the C interface")]
        pub(super) struct Driver {
            names: ErrorNames,
            $($name: unsafe extern "C" fn($($kind),*) -> c_int,)*
        }

        #[expect(
            non_snake_case,
            clippy::too_many_arguments,
            reason = "names and signatures of the C interface"
        )]
        impl Driver {
            fn look_up(library: &Library) -> Result<Self, Missing> {
                let names = ErrorNames::look_up(library)?;
                $(
                    // SAFETY: the signature is cudarc's, as checked below, with the result as the
                    // integer that it is in C.
                    let $name = unsafe { function(library, stringify!($name))? };
                )*
                Ok(Self { names, $($name,)* })
            }

            $(
                /// The driver's function of this name.
                ///
                /// # Safety
                /// As the driver's documentation says: pointers and handles are valid, and of this
                /// context.
                pub(super) unsafe fn $name(&self, $($argument: $kind),*) -> Result<(), GpuError> {
                    // SAFETY: the caller's.
                    let code = unsafe { (self.$name)($($argument),*) };
                    self.check(stringify!($name), code)
                }
            )*
        }

        /// Fails to compile where a signature above differs from cudarc's.
        const _: () = {
            $(let _: unsafe fn($($kind),*) -> sys::CUresult = sys::$name;)*
        };
    };
}

functions! {
    cuInit(flags: c_uint);
    cuDriverGetVersion(version: *mut c_int);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    cuDeviceGetName(name: *mut c_char, length: c_int, device: CUdevice);
    cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
    cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    cuDeviceGetPCIBusId(text: *mut c_char, length: c_int, device: CUdevice);
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    cuDevicePrimaryCtxRelease_v2(device: CUdevice);
    cuCtxSetCurrent(context: CUcontext);
    cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    cuMemAlloc_v2(pointer: *mut CUdeviceptr, bytes: usize);
    cuMemFree_v2(pointer: CUdeviceptr);
    cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, flags: c_uint);
    cuMemFreeHost(pointer: *mut c_void);
    cuMemsetD8Async(to: CUdeviceptr, value: c_uchar, bytes: usize, stream: CUstream);
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    cuStreamDestroy_v2(stream: CUstream);
    cuStreamSynchronize(stream: CUstream);
    cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode);
    cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    cuGraphInstantiateWithFlags(executable: *mut CUgraphExec, graph: CUgraph, flags: c_ulonglong);
    cuGraphDestroy(graph: CUgraph);
    cuGraphLaunch(executable: CUgraphExec, stream: CUstream);
    cuGraphExecDestroy(executable: CUgraphExec);
    cuModuleLoadDataEx(
        module: *mut CUmodule,
        image: *const c_void,
        count: c_uint,
        options: *mut CUjit_option,
        values: *mut *mut c_void
    );
    cuModuleUnload(module: CUmodule);
    cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    cuLaunchKernel(
        function: CUfunction,
        grid_x: c_uint,
        grid_y: c_uint,
        grid_z: c_uint,
        block_x: c_uint,
        block_y: c_uint,
        block_z: c_uint,
        shared_bytes: c_uint,
        stream: CUstream,
        arguments: *mut *mut c_void,
        extra: *mut *mut c_void
    );
    cuEventCreate(event: *mut CUevent, flags: c_uint);
    cuEventRecord(event: CUevent, stream: CUstream);
    cuEventElapsedTime(milliseconds: *mut f32, start: CUevent, end: CUevent);
    cuEventDestroy_v2(event: CUevent);
}

/// A function that gives a result code's name or description.
type DescribeCode = unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int;

/// The driver's own names for its result codes. They are apart from the table, whose methods use them.
struct ErrorNames {
    name: DescribeCode,
    text: DescribeCode,
}

impl ErrorNames {
    fn look_up(library: &Library) -> Result<Self, Missing> {
        // SAFETY: both take a result code and the place of a string, as `cuda.h` declares them.
        unsafe {
            Ok(Self {
                name: function(library, "cuGetErrorName")?,
                text: function(library, "cuGetErrorString")?,
            })
        }
    }
}

impl Driver {
    /// The driver, opened by the first call. The outcome stays the same for the life of the process.
    pub(super) fn get() -> Result<&'static Self, &'static Missing> {
        static DRIVER: OnceLock<Result<Driver, Missing>> = OnceLock::new();
        DRIVER.get_or_init(|| Self::open(LIBRARY)).as_ref()
    }

    fn open(name: &str) -> Result<Self, Missing> {
        // SAFETY: the driver's initialisation code has no requirements of ours.
        let library = unsafe { Library::new(name) }.map_err(|error| {
            // The loader's own message, which names the file, is the source.
            let source = error.source().map(ToString::to_string);
            Missing::Library(source.unwrap_or_else(|| error.to_string()))
        })?;
        // Never unloaded: the functions are called until the process ends.
        Self::look_up(Box::leak(Box::new(library)))
    }

    fn check(&self, function: &'static str, code: c_int) -> Result<(), GpuError> {
        if code == 0 {
            return Ok(());
        }
        let describe = |function: DescribeCode| {
            let mut text = std::ptr::null();
            // SAFETY: the driver writes a string that lives as long as itself, or null for a code
            // that it does not know.
            unsafe {
                let known = function(code, &raw mut text) == 0 && !text.is_null();
                known.then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        Err(GpuError::new(
            function,
            code,
            describe(self.names.name),
            describe(self.names.text),
        ))
    }
}

/// Looks a function up.
///
/// # Safety
/// `F` is the function's type.
unsafe fn function<F: Copy>(library: &Library, name: &'static str) -> Result<F, Missing> {
    // SAFETY: the caller's.
    match unsafe { library.get::<F>(name) } {
        Ok(found) => Ok(*found),
        Err(_) => Err(Missing::Function {
            name,
            version: version(library),
        }),
    }
}

/// The CUDA version that a library implements.
fn version(library: &Library) -> Option<i32> {
    let mut version = 0;
    // SAFETY: the function takes the place of an integer, as `cuda.h` declares it, at any time.
    let code = unsafe {
        let get = library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>("cuDriverGetVersion");
        get.ok()?(&raw mut version)
    };
    (code == 0 && version > 0).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let Err(Missing::Library(message)) = Driver::open("libno-such-driver.so.1") else {
            panic!("there is no such library");
        };
        assert!(message.contains("libno-such-driver.so.1"), "{message}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_first_function_that_is_not_there_is_named() {
        let missing = Driver::open("libc.so.6").err();
        assert_eq!(
            missing,
            Some(Missing::Function {
                name: "cuGetErrorName",
                version: None
            })
        );
    }
}
