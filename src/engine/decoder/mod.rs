//! What a decoder-only transformer computes, as data: a [`Decoder`]. A file per family ([`llama`],
//! [`qwen2`], [`qwen3`]) makes it from GGUF metadata or from `config.json`; the forward passes run it,
//! and the loaders take the tensors' names and shapes from it.
//!
//! Every field is something that a forward pass reads. An enumeration of one kind marks where families
//! will differ: with a second kind, a pass that computes only the first does not compile.

pub(crate) mod llama;
pub(crate) mod qwen2;
pub(crate) mod qwen3;
mod rope;
mod tensors;
#[cfg(test)]
mod tests;

use std::path::Path;

use super::load::gguf::GgufFile;
use super::load::safetensors::SafetensorsFolder;
use super::model_spec::ModelSpec;
use crate::error::{Error, Result};

pub(crate) use rope::{Divisors, PairOrder, Rope};
pub(crate) use tensors::{LayerTensors, MatrixTensor, Presence, VectorTensor};

/// A decoder-only transformer.
///
/// With `x` the residual stream, a layer computes `x += output · attention(norm(x))`, then
/// `x += down · activation(gate · norm(x), up · norm(x))`, each product with its bias, if it has one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Decoder {
    pub(crate) spec: ModelSpec,
    pub(crate) norm: Norm,
    pub(crate) norm_place: NormPlace,
    pub(crate) attention: Attention,
    pub(crate) activation: Activation,
    /// The rotations that occur, each once.
    pub(crate) ropes: Vec<Rope>,
    /// For each layer, the index of its rotation in [`Self::ropes`].
    pub(crate) layer_ropes: Vec<usize>,
    /// How the file orders the rows of query and key matrices.
    pub(crate) stored_pairs: PairOrder,
    /// Whether the output head is the embedding.
    pub(crate) tied: bool,
}

/// The norm of the residual stream, and of heads that are normed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Norm {
    /// `x / √(mean(x²) + epsilon) · weight` (Zhang and Sennrich 2019).
    Rms { epsilon: f32 },
}

/// Where a layer has its norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormPlace {
    /// Before attention and before the feed-forward network.
    BeforeBlock,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Attention {
    /// Biases of query, key and value: all three, or none.
    pub(crate) bias: Presence,
    /// Whether each head of queries and keys is normed before its rotation, with one weight vector of a
    /// head's size for all query heads and one for all key heads.
    pub(crate) head_norm: bool,
    /// What a query's products with keys are multiplied by before the softmax.
    pub(crate) scale: f32,
}

/// The feed-forward network's activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    /// `silu(gate) · up` (SwiGLU, Shazeer 2020).
    SiluGated,
}

impl Decoder {
    /// What the families have in common: norms before the blocks, no head norms, biases wherever the
    /// file has them, one rotation, gated SiLU.
    fn pre_norm(spec: ModelSpec, rope: Rope, tied: bool) -> Self {
        Self {
            norm: Norm::Rms {
                epsilon: spec.norm_epsilon as f32,
            },
            norm_place: NormPlace::BeforeBlock,
            attention: Attention {
                bias: Presence::Optional,
                head_norm: false,
                scale: 1.0 / (spec.head_size as f32).sqrt(),
            },
            activation: Activation::SiluGated,
            ropes: vec![rope],
            layer_ropes: vec![0; spec.layers],
            stored_pairs: PairOrder::Halves,
            tied,
            spec,
        }
    }

    /// [`Self::pre_norm`] from a GGUF file of a family that rotates whole heads.
    ///
    /// # Errors
    /// Exit code 3 if sizes are missing or not supported.
    fn whole_heads_of_gguf(file: &GgufFile) -> Result<Self> {
        let spec = file.spec()?;
        whole_heads_are_rotated(file, &spec)?;
        values_are_as_long_as_keys(file, &spec)?;
        let rope = Rope::of_gguf(file, &spec)?;
        Ok(Self::pre_norm(spec, rope, file.output_is_tied()))
    }

    /// Like [`Self::whole_heads_of_gguf`], from a folder, of which any other rotation is refused before.
    ///
    /// # Errors
    /// As [`Self::whole_heads_of_gguf`].
    fn whole_heads_of_folder(folder: &SafetensorsFolder) -> Result<Self> {
        let spec = folder.spec()?;
        let rope = Rope::of_folder(folder, &spec)?;
        Ok(Self::pre_norm(spec, rope, folder.output_is_tied()))
    }
}

/// Models that one file of this folder describes.
pub(crate) struct Family {
    /// Its name in messages, and `general.architecture` of its GGUF files.
    pub(crate) name: &'static str,
    /// Values of `model_type` in its `config.json`.
    pub(crate) model_types: &'static [&'static str],
    from_gguf: fn(&GgufFile) -> Result<Decoder>,
    from_folder: fn(&SafetensorsFolder) -> Result<Decoder>,
}

/// All families. Nothing else looks a description up by a family's name.
pub(crate) const FAMILIES: [Family; 3] = [llama::FAMILY, qwen2::FAMILY, qwen3::FAMILY];

/// The decoder of a GGUF file, from its header.
///
/// # Errors
/// Exit code 3: not one of [`FAMILIES`], sizes that do not fit each other, or a property that is not
/// supported.
pub(crate) fn of_gguf(file: &GgufFile) -> Result<Decoder> {
    let architecture = file.architecture()?;
    let family = FAMILIES.iter().find(|family| family.name == architecture);
    let family = family.ok_or_else(|| unknown(file.path(), architecture))?;
    (family.from_gguf)(file)
}

/// The decoder of a model folder, from its `config.json`.
///
/// # Errors
/// As [`of_gguf`].
pub(crate) fn of_folder(folder: &SafetensorsFolder) -> Result<Decoder> {
    let model_type = folder.model_type()?;
    let family = FAMILIES
        .iter()
        .find(|family| family.model_types.contains(&model_type));
    let family = family.ok_or_else(|| unknown(folder.path(), model_type))?;
    (family.from_folder)(folder)
}

fn unknown(path: &Path, name: &str) -> Error {
    let names = FAMILIES.map(|family| family.name).join(", ");
    Error::preflight(format!(
        "`{}` is a `{name}` model, of which there is no description",
        path.display()
    ))
    .hint(format!("use a model of one of these families: {names}"))
}

/// Checks that values are as long as keys.
///
/// # Errors
/// Exit code 3 if they are not.
fn values_are_as_long_as_keys(file: &GgufFile, spec: &ModelSpec) -> Result<()> {
    match file.count("attention.value_length")? {
        Some(length) if length != spec.head_size => Err(file.wrong(
            &format!("{}.attention.value_length", spec.architecture),
            "is not the key length, which is not supported",
        )),
        _ => Ok(()),
    }
}

/// Checks that all dimensions of a head are rotated.
///
/// # Errors
/// Exit code 3 if they are not.
fn whole_heads_are_rotated(file: &GgufFile, spec: &ModelSpec) -> Result<()> {
    if spec.rope_dimensions == spec.head_size {
        return Ok(());
    }
    Err(file.wrong(
        &format!("{}.rope.dimension_count", spec.architecture),
        &format!(
            "is {}, not the head size {}, which is not supported",
            spec.rope_dimensions, spec.head_size
        ),
    ))
}
