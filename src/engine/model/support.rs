//! Which models are supported, and by which backend: a table of model families, and checks that
//! need only a file's header. The backend is chosen before any weight is read.

use super::source::{described_folder, described_gguf};
use super::{ModelSpec, generic, native};
use crate::config::Backend;
use crate::engine::decoder::{self, llama, qwen2, qwen3};
use crate::engine::device::Device;
use crate::engine::load::gguf::GgufFile;
use crate::engine::load::safetensors::SafetensorsFolder;
use crate::error::{Error, Result};

/// Models with the same computation.
pub(super) struct Family {
    /// Name used in messages.
    name: &'static str,
    /// `general.architecture` of its GGUF files.
    architecture: &'static str,
    /// Whether this is the mixture-of-experts variant of the architecture.
    experts: bool,
    /// Values of `model_type` that are supported as safetensors.
    safetensors: &'static [&'static str],
    /// Values of `model_type` of this family that are supported as GGUF files only.
    gguf_only: &'static [&'static str],
    /// Backends that support it on the CPU, fastest first.
    backends: &'static [Backend],
}

impl Family {
    /// Backends that support it on this device, fastest first.
    fn backends_on(&self, device: &Device) -> &'static [Backend] {
        match device {
            Device::Cpu => self.backends,
            // What the CPU's own forward pass computes, the GPU's does.
            Device::Cuda(_) if self.backends.contains(&Backend::Native) => &[Backend::Cuda],
            Device::Cuda(_) => &[],
        }
    }
}

const DENSE: &[Backend] = &[Backend::Native, Backend::Candle];
const GENERIC: &[Backend] = &[Backend::Generic];

/// All supported families.
///
/// Not included, though candle-transformers has them: `qwen3moe`, whose keys and values cannot be
/// discarded and whose expert products need CUDA, and models that expect other tensor names than
/// such files have.
const FAMILIES: [Family; 9] = [
    described(
        &llama::FAMILY,
        &[Backend::Native, Backend::Candle, Backend::Generic],
    ),
    described(&qwen2::FAMILY, DENSE),
    described(&qwen3::FAMILY, DENSE),
    Family {
        name: "llama with experts",
        architecture: "llama",
        experts: true,
        safetensors: &[],
        gguf_only: &["mixtral"],
        backends: GENERIC,
    },
    undescribed("phi2", &["phi"]),
    undescribed("phi3", &["phi3"]),
    undescribed("gemma3", &["gemma3", "gemma3_text"]),
    undescribed("glm4", &["glm4"]),
    undescribed("lfm2", &["lfm2"]),
];

/// A family of which there is a description, without experts.
const fn described(family: &decoder::Family, backends: &'static [Backend]) -> Family {
    Family {
        name: family.name,
        architecture: family.name,
        experts: false,
        safetensors: family.model_types,
        gguf_only: &[],
        backends,
    }
}

/// A family that only candle-transformers knows.
const fn undescribed(name: &'static str, gguf_only: &'static [&'static str]) -> Family {
    Family {
        name,
        architecture: name,
        experts: false,
        safetensors: &[],
        gguf_only,
        backends: GENERIC,
    }
}

/// A GGUF file's family.
///
/// # Errors
/// Exit code 3 if it is not supported; the error lists the supported families.
fn of_gguf(file: &GgufFile) -> Result<&'static Family> {
    let architecture = file.architecture()?;
    let experts = file.count("expert_count")?.unwrap_or(0) > 0;
    let found = FAMILIES
        .iter()
        .find(|family| family.architecture == architecture && family.experts == experts);
    found.ok_or_else(|| {
        let with = if experts { " with experts" } else { "" };
        let names: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        Error::preflight(format!(
            "`{}` is a model of the architecture `{architecture}`{with}; supported are {}",
            file.path().display(),
            names.join(", "),
        ))
        .hint("use a model of one of these architectures")
    })
}

/// Like [`of_gguf`], for a folder.
fn of_folder(folder: &SafetensorsFolder) -> Result<&'static Family> {
    let model_type = folder.model_type()?;
    let found = FAMILIES
        .iter()
        .find(|family| family.safetensors.contains(&model_type));
    found.ok_or_else(|| {
        let types = FAMILIES.iter().flat_map(|family| family.safetensors);
        let error = folder.wrong(
            "model_type",
            &format!(
                "is `{model_type}`; from safetensors, {} are supported",
                types.copied().collect::<Vec<_>>().join(", ")
            ),
        );
        let as_gguf = FAMILIES
            .iter()
            .find(|family| family.gguf_only.contains(&model_type));
        let only_gguf = FAMILIES
            .iter()
            .filter(|family| family.safetensors.is_empty());
        error.hint(match as_gguf {
            Some(family) => format!("use it as a GGUF file: {} is supported there", family.name),
            None => format!(
                "use a model of one of these types, or a GGUF file of {}",
                only_gguf
                    .map(|family| family.name)
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        })
    })
}

/// Checks, from its header only, whether this backend can compute the file's model.
fn check_gguf(file: &GgufFile, backend: Backend) -> Result<()> {
    file.check_types()?;
    match backend {
        Backend::Generic => generic::check(file).map(|_| ()),
        Backend::Cuda | Backend::Native => {
            described_gguf(file)?;
            native::check_types(file)
        }
        Backend::Candle | Backend::Auto => described_gguf(file).map(|_| ()),
    }
}

/// Checks, from its header only, whether the GPU can compute the file's model.
///
/// # Errors
/// Exit code 3 if it cannot.
pub(super) fn check_gpu(file: &GgufFile) -> Result<()> {
    let family = of_gguf(file)?;
    if !family.backends.contains(&Backend::Native) {
        return Err(
            Error::preflight(format!("{} models run on the CPU only", family.name))
                .hint("set DEVICE=cpu"),
        );
    }
    check_gguf(file, Backend::Cuda)
}

/// Checks that a folder's model is supported, and returns its sizes.
///
/// # Errors
/// Exit code 3 if its family or one of its properties is not supported.
pub(super) fn check_folder(folder: &SafetensorsFolder) -> Result<ModelSpec> {
    of_folder(folder)?;
    folder.check()?;
    Ok(described_folder(folder)?.spec)
}

/// Chooses the backend for a GGUF file: the configured one, or the fastest that supports the model.
///
/// # Errors
/// Exit code 3, with the reason, and a backend that does support the model, if any.
pub(super) fn choose(file: &GgufFile, asked: Backend, device: &Device) -> Result<Backend> {
    let family = of_gguf(file)?;
    let mut refusal = None;
    let mut able = None;
    for &backend in family.backends_on(device) {
        match check_gguf(file, backend) {
            Ok(()) if asked == Backend::Auto || asked == backend => return Ok(backend),
            Ok(()) => able = able.or(Some(backend)),
            Err(error) if asked == Backend::Auto || asked == backend => {
                refusal.get_or_insert(error);
            }
            Err(_) => {}
        }
    }
    let error = refusal.unwrap_or_else(|| {
        Error::preflight(format!(
            "BACKEND={} does not compute {} models",
            asked.as_str(),
            family.name
        ))
    });
    Err(match able {
        Some(able) => error.hint(format!(
            "BACKEND={} can, and BACKEND=auto chooses it",
            able.as_str()
        )),
        None => error.hint("use another file, or another model"),
    })
}

/// The backends that can compute a GGUF file's model, for display, or why none can.
pub(super) fn backends_of_gguf(file: &GgufFile) -> String {
    let able = of_gguf(file).and_then(|family| {
        let mut able = Vec::new();
        let mut refusal = Ok(());
        for &backend in family.backends {
            match check_gguf(file, backend) {
                Ok(()) => able.push(backend),
                Err(error) => refusal = refusal.and(Err(error)),
            }
        }
        if able.is_empty() {
            refusal?;
        }
        Ok(able)
    });
    shown(able)
}

/// Like [`backends_of_gguf`], for a folder.
pub(super) fn backends_of_folder(folder: &SafetensorsFolder) -> String {
    shown(check_folder(folder).map(|_| DENSE.to_vec()))
}

fn shown(able: Result<Vec<Backend>>) -> String {
    match able {
        Ok(able) => {
            let gpu = match able.contains(&Backend::Native) {
                true => "cuda (GPU); ",
                false => "",
            };
            let names: Vec<&str> = able.into_iter().map(Backend::as_str).collect();
            format!("{gpu}{} (CPU)", names.join(", "))
        }
        Err(error) => format!("none: {}", error.chain()),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::GgmlDType;
    use candle_core::quantized::gguf_file::Value;
    use serde_json::json;

    use super::*;
    use crate::engine::model::inspect;
    use crate::engine::model::testing::{Tiny, retype, write_gguf};
    use crate::error::Exit;

    const CPU: Device = Device::Cpu;

    fn chosen(path: &std::path::Path, asked: Backend) -> Result<Backend> {
        choose(&GgufFile::open(path).unwrap(), asked, &CPU)
    }

    fn fact(path: &std::path::Path, name: &str) -> String {
        let facts = inspect(path).unwrap();
        facts
            .into_iter()
            .find(|(other, _)| *other == name)
            .unwrap()
            .1
    }

    #[test]
    fn auto_chooses_the_fastest_backend_that_supports_the_weights() {
        let folder = tempfile::tempdir().unwrap();
        let tiny = Tiny::new("llama", true);
        for (dtype, expected, backends) in [
            (
                GgmlDType::F32,
                Backend::Native,
                "cuda (GPU); native, candle, generic (CPU)",
            ),
            (
                GgmlDType::Q6K,
                Backend::Native,
                "cuda (GPU); native, candle, generic (CPU)",
            ),
            (GgmlDType::Q2K, Backend::Candle, "candle, generic (CPU)"),
            (GgmlDType::Q3K, Backend::Candle, "candle, generic (CPU)"),
        ] {
            let path = tiny.write_gguf(folder.path(), dtype);
            assert_eq!(chosen(&path, Backend::Auto).unwrap(), expected, "{dtype:?}");
            assert_eq!(fact(&path, "backends"), backends, "{dtype:?}");
        }
        // A single matrix with another type is enough.
        let path = folder.path().join("mixed.gguf");
        let stored = tiny.stored(|name| match name {
            "blk.1.ffn_down.weight" => GgmlDType::Q3K,
            _ => GgmlDType::Q8_0,
        });
        write_gguf(&path, &tiny.metadata(), &stored);
        assert_eq!(chosen(&path, Backend::Auto).unwrap(), Backend::Candle);
        let loaded = crate::engine::model::load(&path, Backend::Auto).unwrap();
        assert_eq!(loaded.model.backend(), "candle");
        let report = chosen(&path, Backend::Native).unwrap_err().report();
        assert!(report.contains("`blk.1.ffn_down.weight`"), "{report}");
        assert!(report.contains("of type Q3K"), "{report}");
        assert!(report.contains("hint: BACKEND=candle can"), "{report}");
    }

    #[test]
    fn the_hint_names_a_backend_that_supports_the_family() {
        let folder = tempfile::tempdir().unwrap();
        let path = Tiny::new("qwen3", true).write_gguf(folder.path(), GgmlDType::F32);
        let error = chosen(&path, Backend::Generic).unwrap_err();
        assert_eq!(error.exit(), Exit::Preflight);
        let report = error.report();
        assert!(
            report.contains("BACKEND=generic does not compute qwen3"),
            "{report}"
        );
        assert!(report.contains("hint: BACKEND=native can"), "{report}");
    }

    #[test]
    fn unsupported_models_are_reported_before_loading() {
        let folder = tempfile::tempdir().unwrap();
        let path = Tiny::new("llama", true).write_gguf(folder.path(), GgmlDType::F32);
        retype(&path, "blk.0.ffn_up.weight", 20);
        assert_eq!(fact(&path, "layers"), "2");
        assert_eq!(fact(&path, "vocabulary"), "320 tokens");
        let backends = fact(&path, "backends");
        assert!(backends.starts_with("none: "), "{backends}");
        assert!(
            backends.contains("`blk.0.ffn_up.weight` of type IQ4_NL"),
            "{backends}"
        );
        for backend in [
            Backend::Auto,
            Backend::Native,
            Backend::Candle,
            Backend::Generic,
        ] {
            let report = chosen(&path, backend).unwrap_err().report();
            assert!(
                report.contains("IQ4_NL, which is not supported"),
                "{report}"
            );
            assert!(
                report.contains("hint: use another quantization"),
                "{report}"
            );
        }

        // An unsupported family with per-layer sizes.
        let mut metadata = Tiny::new("llama", true).metadata();
        for (key, value) in &mut metadata {
            *key = key.replace("llama.", "openelm.");
            if key == "general.architecture" {
                *value = Value::String("openelm".to_owned());
            }
            if key == "openelm.attention.head_count" {
                *value = Value::Array(vec![Value::I32(4), Value::I32(8)]);
            }
        }
        let path = folder.path().join("other.gguf");
        let tensors = Tiny::new("llama", true).stored(|_| GgmlDType::F32);
        write_gguf(&path, &metadata, &tensors);
        assert_eq!(fact(&path, "architecture"), "openelm");
        assert_eq!(fact(&path, "heads"), "4, 8 of size 64");
        assert_eq!(fact(&path, "context"), "2048 tokens");
        let backends = fact(&path, "backends");
        assert!(
            backends
                .contains("`openelm`; supported are llama, qwen2, qwen3, llama with experts, phi2"),
            "{backends}"
        );
    }

    #[test]
    fn an_unsupported_folder_gets_a_useful_hint() {
        let folder = tempfile::tempdir().unwrap();
        let tiny = Tiny::new("llama", true);
        let mut config = tiny.config();
        tiny.write_folder(folder.path(), &config);
        assert_eq!(
            fact(folder.path(), "backends"),
            "cuda (GPU); native, candle (CPU)"
        );
        for (model_type, expected) in [
            (
                "phi3",
                "hint: use it as a GGUF file: phi3 is supported there",
            ),
            ("gemma3_text", "hint: use it as a GGUF file: gemma3"),
            ("mixtral", "hint: use it as a GGUF file: llama with experts"),
            (
                "gemma2",
                "hint: use a model of one of these types, or a GGUF file of llama with experts, phi2, phi3",
            ),
            ("qwen3_moe", "hint: use a model of one of these types"),
        ] {
            config["model_type"] = json!(model_type);
            tiny.write_folder(folder.path(), &config);
            let error = crate::engine::model::load(folder.path(), Backend::Auto);
            let report = error.err().unwrap().report();
            let said =
                format!("is `{model_type}`; from safetensors, llama, mistral, qwen2, qwen3 are");
            assert!(report.contains(&said), "{report}");
            assert!(report.contains(expected), "{report}");
            assert!(fact(folder.path(), "backends").contains(&said));
        }
    }

    /// These backends run every description, and nothing else.
    #[test]
    fn the_table_matches_the_backends() {
        let of = |backend| {
            FAMILIES
                .iter()
                .filter(move |family| family.backends.contains(&backend))
                .map(|family| family.name)
                .collect::<Vec<_>>()
        };
        let described = decoder::FAMILIES.map(|family| family.name);
        assert_eq!(of(Backend::Candle), described);
        assert_eq!(of(Backend::Native), described);
    }
}
