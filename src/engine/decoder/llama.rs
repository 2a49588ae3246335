//! Llama, SmolLM2 and Mistral.

use super::{Decoder, Family, PairOrder, Rope, values_are_as_long_as_keys};
use crate::engine::load::gguf::GgufFile;
use crate::engine::load::safetensors::SafetensorsFolder;
use crate::error::Result;

pub(crate) const FAMILY: Family = Family {
    name: "llama",
    // Mistral's GGUF files have the architecture `llama`.
    model_types: &["llama", "mistral"],
    from_gguf,
    from_folder,
};

fn from_gguf(file: &GgufFile) -> Result<Decoder> {
    let spec = file.spec()?;
    values_are_as_long_as_keys(file, &spec)?;
    let rope = Rope::of_gguf(file, &spec)?;
    Ok(Decoder {
        // llama.cpp's converter permutes the rows.
        stored_pairs: PairOrder::Neighbours,
        ..Decoder::pre_norm(spec, rope, file.output_is_tied())
    })
}

fn from_folder(folder: &SafetensorsFolder) -> Result<Decoder> {
    let mut spec = folder.spec()?;
    if folder.model_type()? == "mistral" {
        // Mistral's window has no switch.
        spec = spec.within_window(folder.sliding_window()?);
    }
    let rope = Rope::of_folder(folder, &spec)?;
    Ok(Decoder::pre_norm(spec, rope, folder.output_is_tied()))
}
