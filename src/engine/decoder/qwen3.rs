//! Qwen 3, dense: heads of queries and keys are normed.

use super::{
    Attention, Decoder, Family, Rope, values_are_as_long_as_keys, whole_heads_are_rotated,
};
use crate::engine::load::gguf::GgufFile;
use crate::engine::load::safetensors::SafetensorsFolder;
use crate::engine::model_spec::ModelSpec;
use crate::error::Result;

pub(crate) const FAMILY: Family = Family {
    name: "qwen3",
    model_types: &["qwen3"],
    from_gguf,
    from_folder,
};

fn from_gguf(file: &GgufFile) -> Result<Decoder> {
    let spec = file.spec()?;
    whole_heads_are_rotated(file, &spec)?;
    values_are_as_long_as_keys(file, &spec)?;
    let rope = Rope::of_gguf(file, &spec)?;
    Ok(described(spec, rope, file.output_is_tied()))
}

fn from_folder(folder: &SafetensorsFolder) -> Result<Decoder> {
    let spec = folder.spec()?;
    let rope = Rope::of_folder(folder, &spec)?;
    Ok(described(spec, rope, folder.output_is_tied()))
}

fn described(spec: ModelSpec, rope: Rope, tied: bool) -> Decoder {
    let decoder = Decoder::pre_norm(spec, rope, tied);
    Decoder {
        attention: Attention {
            head_norm: true,
            ..decoder.attention
        },
        ..decoder
    }
}
