//! Loads a model to its device: which forward pass, and whether memory suffices.

#[cfg(test)]
use std::path::Path;

use super::{
    Limits, Loaded, Model, Opened, Source, candle, cuda, generic, native, support, weights,
};
use crate::config::Backend;
use crate::engine::cuda::driver::{Gpu, Memory};
use crate::engine::device::Device;
use crate::engine::load::gguf::GgufFile;
use crate::engine::load::safetensors::SafetensorsFolder;
use crate::engine::memory;
use crate::error::{Error, Result};
use crate::units::Bytes;

/// Loads a GGUF file or a safetensors folder to the CPU, without limits on the length of sequences.
#[cfg(test)]
pub(crate) fn load(path: &Path, backend: Backend) -> Result<Loaded> {
    load_within(
        super::open(path)?,
        backend,
        &Device::Cpu,
        &Limits::default(),
    )
}

/// Checks that a model can run on the GPU: its family, its weights' types, and that the memory that
/// is free holds the weights and the configured keys and values.
///
/// # Errors
/// Exit code 3, with both sizes and a hint.
pub(crate) fn check_gpu(model: &Opened, limits: &Limits, gpu: &Gpu) -> Result<()> {
    let (spec, weights) = match model {
        Opened::Gguf(file) => {
            support::check_gpu(file)?;
            (file.spec()?, weights::of_gguf(file, Backend::Cuda))
        }
        Opened::Folder(folder) => {
            let spec = support::check_folder(folder)?;
            (spec, weights::of_folder(folder, Backend::Cuda))
        }
    };
    let needs = Needs {
        weights,
        kv: limits.kv_bytes.unwrap_or(0),
        working: cuda::working_bytes(&spec, limits.context_of(&spec)),
    };
    needs.check(gpu.memory()?).map_err(|message| {
        Error::preflight(format!("{message} on {}", gpu.info().name)).hint(
            "use a smaller model or quantization, set a smaller KV_CACHE_MB or CONTEXT, or stop other programs that use the GPU (`nvidia-smi` lists them); DEVICE=cpu runs without a GPU",
        )
    })
}

/// What a model needs of a GPU's memory, in bytes.
struct Needs {
    weights: usize,
    /// Keys and values, if their size is configured.
    kv: usize,
    /// What passes compute on the way.
    working: usize,
}

impl Needs {
    /// # Errors
    /// What is needed, what of, and what is free.
    fn check(&self, memory: Memory) -> Result<(), String> {
        let needed = self
            .weights
            .saturating_add(self.kv)
            .saturating_add(self.working);
        if needed <= memory.free {
            return Ok(());
        }
        let text = |bytes: usize| Bytes(bytes as u64).to_string();
        let kv = match self.kv {
            0 => String::new(),
            kv => format!(", {} of keys and values", text(kv)),
        };
        Err(format!(
            "the model needs {} ({} of weights{kv}, {} to compute with), and {} of {} are free",
            text(needed),
            text(self.weights),
            text(self.working),
            text(memory.free),
            text(memory.total)
        ))
    }
}

/// Loads a model to the device.
///
/// The Llama family runs on `cuda` (GPU), [`native`] or [`candle`] (CPU), in batches of any size.
/// Other architectures run on [`generic`], on the CPU, from GGUF files only, one sequence at a time
/// ([`support`]).
///
/// # Errors
/// Exit code 3, with path and hint: file corrupt, architecture not supported at all or not by the
/// backend, or not enough memory. Exit code 2: a context larger than the model's.
pub(crate) fn load_within(
    opened: Opened,
    backend: Backend,
    device: &Device,
    limits: &Limits,
) -> Result<Loaded> {
    let model = match &opened {
        Opened::Gguf(file) => {
            let backend = support::choose(file, backend, device)?;
            if let Ok(spec) = file.spec() {
                limits.check(&spec)?;
            }
            match device {
                Device::Cuda(gpu) => Box::new(cuda::CudaModel::from_gguf(gpu, file, limits)?),
                Device::Cpu => load_gguf(file, backend, limits)?,
            }
        }
        Opened::Folder(folder) => {
            limits.check(&support::check_folder(folder)?)?;
            match device {
                Device::Cuda(gpu) => {
                    Box::new(cuda::CudaModel::from_safetensors(gpu, folder, limits)?)
                }
                Device::Cpu => load_folder(folder, backend)?,
            }
        }
    };
    let (name, source) = match opened {
        Opened::Gguf(file) => {
            let metadata = file.into_metadata();
            let name = match metadata.get("general.name") {
                Some(candle_core::quantized::gguf_file::Value::String(name)) => Some(name.clone()),
                _ => None,
            };
            (name, Source::Gguf(metadata))
        }
        Opened::Folder(folder) => (folder.name(), Source::Folder(folder.path().to_owned())),
    };
    Ok(Loaded {
        model,
        name,
        source,
    })
}

fn load_gguf(file: &GgufFile, backend: Backend, limits: &Limits) -> Result<Box<dyn Model>> {
    memory::check_weights(file.path(), weights::of_gguf(file, backend))?;
    Ok(match backend {
        Backend::Native => Box::new(native::NativeModel::from_gguf(file)?),
        Backend::Generic => Box::new(generic::GenericModel::from_gguf(file, limits)?),
        Backend::Candle | Backend::Auto | Backend::Cuda => {
            Box::new(candle::CandleModel::from_gguf(file)?)
        }
    })
}

fn load_folder(folder: &SafetensorsFolder, backend: Backend) -> Result<Box<dyn Model>> {
    let fits = |backend| memory::check_weights(folder.path(), weights::of_folder(folder, backend));
    match backend {
        Backend::Generic => {
            Err(Error::preflight("BACKEND=generic reads GGUF files only").hint("set BACKEND=auto"))
        }
        Backend::Candle => {
            fits(Backend::Candle)?;
            Ok(Box::new(candle::CandleModel::from_safetensors(folder)?))
        }
        Backend::Cuda => Err(Error::preflight("BACKEND=cuda computes on a GPU only")
            .hint("set DEVICE=cuda, or BACKEND=auto")),
        Backend::Auto | Backend::Native => {
            fits(Backend::Native)?;
            Ok(Box::new(native::NativeModel::from_safetensors(folder)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_does_not_fit_is_told_with_both_sizes() {
        const MIB: usize = 1 << 20;
        let memory = |free| Memory {
            free: free * MIB,
            total: 8192 * MIB,
        };
        let needs = Needs {
            weights: 600 * MIB,
            kv: 300 * MIB,
            working: 100 * MIB,
        };
        assert_eq!(needs.check(memory(1000)), Ok(()));
        assert_eq!(
            needs.check(memory(999)),
            Err(
                "the model needs 1000.0 MiB (600.0 MiB of weights, 300.0 MiB of keys and values, 100.0 MiB to compute with), and 999.0 MiB of 8.0 GiB are free"
                    .to_owned()
            )
        );
        let endless = Needs {
            weights: usize::MAX,
            kv: 0,
            working: 1,
        };
        let error = endless.check(memory(1)).expect_err("too large");
        assert!(
            error.ends_with("and 1.0 MiB of 8.0 GiB are free"),
            "{error}"
        );
    }
}
