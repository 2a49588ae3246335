//! Errors of the driver, and what they mean for a run.

use std::fmt;

use crate::error::Error;

/// Result codes that mean more to us than a failure (`CUresult` in `cuda.h`).
mod code {
    pub(super) const INVALID_VALUE: i32 = 1;
    pub(super) const OUT_OF_MEMORY: i32 = 2;
    /// The context cannot be used any more: a fault of a kernel, of the memory or of the card.
    pub(super) const LOST: [i32; 16] = [
        4,   // CUDA_ERROR_DEINITIALIZED
        214, // CUDA_ERROR_ECC_UNCORRECTABLE
        220, // CUDA_ERROR_NVLINK_UNCORRECTABLE
        226, // CUDA_ERROR_CONTAINED
        700, // CUDA_ERROR_ILLEGAL_ADDRESS
        702, // CUDA_ERROR_LAUNCH_TIMEOUT
        709, // CUDA_ERROR_CONTEXT_IS_DESTROYED
        710, // CUDA_ERROR_ASSERT
        714, // CUDA_ERROR_HARDWARE_STACK_ERROR
        715, // CUDA_ERROR_ILLEGAL_INSTRUCTION
        716, // CUDA_ERROR_MISALIGNED_ADDRESS
        717, // CUDA_ERROR_INVALID_ADDRESS_SPACE
        718, // CUDA_ERROR_INVALID_PC
        719, // CUDA_ERROR_LAUNCH_FAILED
        721, // CUDA_ERROR_TENSOR_MEMORY_LEAK
        999, // CUDA_ERROR_UNKNOWN
    ];
}

const OUT_OF_MEMORY_HINT: &str = "set a smaller KV_CACHE_MB, CONTEXT or CONCURRENCY, or stop other programs that use the GPU (`nvidia-smi` lists them)";
const LOST_HINT: &str = "the GPU reports a fault, and nothing more can be computed in this process: look for `Xid` in the kernel's log (`dmesg`) and at `nvidia-smi`, then start again; DEVICE=cpu runs without a GPU";
const DRIVER_HINT: &str =
    "`nvidia-smi` shows the driver and its GPUs; DEVICE=cpu runs without a GPU";

/// A call of the driver that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GpuError {
    function: &'static str,
    code: i32,
    /// `CUDA_ERROR_…`; empty if the driver does not know the code.
    name: String,
    /// The driver's description; may be empty.
    text: String,
    /// What was asked for.
    detail: Option<String>,
}

impl GpuError {
    pub(super) fn new(
        function: &'static str,
        code: i32,
        name: Option<String>,
        text: Option<String>,
    ) -> Self {
        Self {
            function,
            code,
            name: name.unwrap_or_default(),
            text: text.unwrap_or_default(),
            detail: None,
        }
    }

    /// A request that was refused before the driver saw it.
    pub(super) fn invalid(function: &'static str, detail: String) -> Self {
        Self::new(
            function,
            code::INVALID_VALUE,
            Some("CUDA_ERROR_INVALID_VALUE".to_owned()),
            Some("invalid argument".to_owned()),
        )
        .with(detail)
    }

    /// A size that no memory has.
    pub(crate) fn too_large(function: &'static str) -> Self {
        Self::new(
            function,
            code::OUT_OF_MEMORY,
            Some("CUDA_ERROR_OUT_OF_MEMORY".to_owned()),
            Some("out of memory".to_owned()),
        )
    }

    /// Adds what was asked for.
    pub(super) fn with(mut self, detail: String) -> Self {
        self.detail.get_or_insert(detail);
        self
    }

    pub(crate) fn code(&self) -> i32 {
        self.code
    }

    /// Whether memory was short: of the device, or pinned memory of the host.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        self.code == code::OUT_OF_MEMORY
    }

    /// Whether every later call will fail, too.
    pub(crate) fn is_lost(&self) -> bool {
        code::LOST.contains(&self.code)
    }

    /// The error of an engine that does not start (exit code 3). `doing` completes "failed to …".
    pub(crate) fn at_load(self, doing: &str) -> Error {
        let hint = self.hint();
        Error::preflight(format!("failed to {doing}"))
            .caused_by(self)
            .hint(hint)
    }

    /// The error of a pass (exit code 100). `doing` completes "failed to …".
    pub(crate) fn in_pass(self, doing: &str) -> Error {
        let hint = self.hint();
        let message = match self.is_lost() {
            true => format!("failed to {doing}: the GPU is lost"),
            false => format!("failed to {doing}"),
        };
        Error::flow(message).caused_by(self).hint(hint)
    }

    fn hint(&self) -> &'static str {
        match self {
            error if error.is_out_of_memory() => OUT_OF_MEMORY_HINT,
            error if error.is_lost() => LOST_HINT,
            _ => DRIVER_HINT,
        }
    }
}

impl fmt::Display for GpuError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: ", self.function)?;
        match self.name.as_str() {
            "" => write!(f, "CUDA error {}", self.code)?,
            name => f.write_str(name)?,
        }
        if !self.text.is_empty() {
            write!(f, " ({})", self.text)?;
        }
        match &self.detail {
            Some(detail) => write!(f, ", {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for GpuError {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    fn error(code: i32, name: &str, text: &str) -> GpuError {
        GpuError::new(
            "cuLaunchKernel",
            code,
            Some(name.to_owned()),
            Some(text.to_owned()),
        )
    }

    #[test]
    fn an_error_names_function_code_and_description() {
        let failed = error(
            719,
            "CUDA_ERROR_LAUNCH_FAILED",
            "unspecified launch failure",
        );
        assert_eq!(
            failed.to_string(),
            "cuLaunchKernel failed: CUDA_ERROR_LAUNCH_FAILED (unspecified launch failure)"
        );
        assert_eq!(
            GpuError::new("cuMemAlloc_v2", 4711, None, None).to_string(),
            "cuMemAlloc_v2 failed: CUDA error 4711"
        );
        assert_eq!(
            GpuError::invalid("copy", "elements 3..9 of 5".to_owned()).to_string(),
            "copy failed: CUDA_ERROR_INVALID_VALUE (invalid argument), elements 3..9 of 5"
        );
    }

    #[test]
    fn a_lost_gpu_fails_the_flow_and_says_so() {
        let lost = error(700, "CUDA_ERROR_ILLEGAL_ADDRESS", "");
        assert!(lost.is_lost() && !lost.is_out_of_memory());
        let error = lost.in_pass("compute a pass");
        assert_eq!(error.exit(), Exit::FlowFailed);
        let report = error.report();
        assert!(
            report.starts_with("error: failed to compute a pass: the GPU is lost\n"),
            "{report}"
        );
        assert!(report.contains("hint: the GPU reports a fault"), "{report}");
    }

    #[test]
    fn memory_that_is_short_at_load_is_exit_code_3() {
        let short = GpuError::too_large("cuMemAlloc_v2");
        assert!(short.is_out_of_memory() && !short.is_lost());
        let error = short.at_load("allocate the KV pages");
        assert_eq!(error.exit(), Exit::Preflight);
        assert!(error.report().contains("hint: set a smaller KV_CACHE_MB"));
    }
}
