//! Memory that a model's weights take on each backend, computed from the files' tensor tables.

use candle_core::Device;
use candle_core::quantized::GgmlDType;

use super::super::kernels::PackedMatrix;
use super::super::load::gguf::GgufFile;
use super::super::load::safetensors::SafetensorsFolder;
use crate::config::Backend;

/// Bytes of memory that a GGUF file's weights take. 0 for a GPU: loading fails there if its memory
/// does not suffice.
pub(super) fn of_gguf(file: &GgufFile, backend: Backend, device: &Device) -> usize {
    if !device.is_cpu() {
        return 0;
    }
    let tensors = file.tensor_names().filter_map(|name| file.stored(name));
    tensors
        .map(|(dtype, shape, stored)| {
            let elements = shape.iter().product::<usize>();
            match (backend, shape) {
                (Backend::Native, [rows, cols]) => {
                    PackedMatrix::bytes_of(dtype, *rows, *cols).unwrap_or(stored.len())
                }
                (Backend::Generic, _) => stored.len(),
                // Dense, in f32.
                _ => elements.saturating_mul(size_of::<f32>()),
            }
        })
        .fold(0, usize::saturating_add)
}

/// Like [`of_gguf`], for a safetensors folder.
pub(super) fn of_folder(folder: &SafetensorsFolder, backend: Backend, device: &Device) -> usize {
    if !device.is_cpu() {
        return 0;
    }
    folder
        .tensor_sizes()
        .map(|(bytes, elements)| match backend {
            Backend::Native => bytes,
            _ => elements.saturating_mul(size_of::<f32>()),
        })
        .fold(0, usize::saturating_add)
}

/// GGUF's name for the type of a safetensors tensor.
pub(super) fn dense_type(name: &str) -> Option<GgmlDType> {
    match name {
        "F32" => Some(GgmlDType::F32),
        "F16" => Some(GgmlDType::F16),
        "BF16" => Some(GgmlDType::BF16),
        _ => None,
    }
}
