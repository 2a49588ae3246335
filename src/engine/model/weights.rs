//! Memory that a model's weights take on each backend, computed from the files' tensor tables.

use candle_core::quantized::GgmlDType;

use super::super::kernels::{PackedMatrix, WeightType};
use super::super::load::gguf::GgufFile;
use super::super::load::safetensors::SafetensorsFolder;
use crate::config::Backend;

/// Bytes of memory that a GGUF file's weights take, on the backend's device.
pub(super) fn of_gguf(file: &GgufFile, backend: Backend) -> usize {
    let tensors = file.tensor_names().filter_map(|name| file.stored(name));
    tensors
        .map(|(dtype, shape, stored)| {
            let elements = shape.iter().product::<usize>();
            match (backend, shape) {
                (Backend::Native, [rows, cols]) => weight_type(dtype)
                    .map_or(stored.len(), |dtype| {
                        PackedMatrix::bytes_of(dtype, *rows, *cols)
                    }),
                (Backend::Cuda | Backend::Generic, _) => stored.len(),
                // Dense, in f32.
                _ => elements.saturating_mul(size_of::<f32>()),
            }
        })
        .fold(0, usize::saturating_add)
}

/// Like [`of_gguf`], for a safetensors folder.
pub(super) fn of_folder(folder: &SafetensorsFolder, backend: Backend) -> usize {
    folder
        .tensor_sizes()
        .map(|(bytes, elements)| match backend {
            Backend::Cuda | Backend::Native => bytes,
            _ => elements.saturating_mul(size_of::<f32>()),
        })
        .fold(0, usize::saturating_add)
}

/// The native kernels' name of a GGUF type; `None` for a type without a kernel.
pub(super) fn weight_type(dtype: GgmlDType) -> Option<WeightType> {
    Some(match dtype {
        GgmlDType::Q4_0 => WeightType::Q4_0,
        GgmlDType::Q4_1 => WeightType::Q4_1,
        GgmlDType::Q5_0 => WeightType::Q5_0,
        GgmlDType::Q5_1 => WeightType::Q5_1,
        GgmlDType::Q8_0 => WeightType::Q8_0,
        GgmlDType::Q4K => WeightType::Q4K,
        GgmlDType::Q5K => WeightType::Q5K,
        GgmlDType::Q6K => WeightType::Q6K,
        GgmlDType::F16 => WeightType::F16,
        GgmlDType::BF16 => WeightType::BF16,
        GgmlDType::F32 => WeightType::F32,
        _ => return None,
    })
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
