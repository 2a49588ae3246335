//! Rotary position embedding (Su et al. 2021) as a description: which dimensions turn, and how fast.

use crate::engine::load::gguf::GgufFile;
use crate::engine::load::safetensors::SafetensorsFolder;
use crate::engine::model_spec::ModelSpec;
use crate::error::Result;

/// The rotation of a head of queries or keys. Once loaded, dimension `i` is always paired with `i +
/// head_size / 2` (NEOX style, as in Hugging Face): see [`PairOrder`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rope {
    /// Leading dimensions of a head that are rotated.
    pub(crate) dimensions: usize,
    /// Base of the frequencies (theta).
    pub(crate) base: f32,
    pub(crate) divisors: Divisors,
}

/// What slows the pairs down, where a model was stretched to a longer context.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Divisors {
    /// All are 1.
    None,
    /// `[dimensions / 2]`.
    Given(Vec<f32>),
    /// The vector of this name, `[dimensions / 2]`, each number times `factor`.
    Tensor { name: &'static str, factor: f32 },
}

/// How the rows of a query or key matrix are ordered in the file, within each head of size `2h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PairOrder {
    /// `0, 1, 2, …`: pairs are `h` rows apart.
    Halves,
    /// `0, h, 1, h + 1, …`: pairs are adjacent. Loaders revert it.
    Neighbours,
}

/// The tensor with Llama 3's divisors.
pub(super) const DIVISORS: &str = "rope_freqs.weight";

impl Rope {
    /// The rotation of all layers of a GGUF file. The factor and the tensor (Llama 3) are multiplied, as
    /// in llama.cpp.
    ///
    /// # Errors
    /// Exit code 3 if the context is stretched in a way that is not supported.
    pub(super) fn of_gguf(file: &GgufFile, spec: &ModelSpec) -> Result<Self> {
        let factor = file.rope_factor()? as f32;
        Ok(Self {
            dimensions: spec.rope_dimensions,
            base: spec.rope_base,
            divisors: match file.shape(DIVISORS) {
                Some(_) => Divisors::Tensor {
                    name: DIVISORS,
                    factor,
                },
                None if factor == 1.0 => Divisors::None,
                None => Divisors::Given(vec![factor; spec.rope_dimensions / 2]),
            },
        })
    }

    /// The rotation of all layers of a folder's model.
    ///
    /// # Errors
    /// As [`Self::of_gguf`].
    pub(super) fn of_folder(folder: &SafetensorsFolder, spec: &ModelSpec) -> Result<Self> {
        Ok(Self {
            dimensions: spec.rope_dimensions,
            base: spec.rope_base,
            divisors: folder
                .rope_divisors(spec)?
                .map_or(Divisors::None, Divisors::Given),
        })
    }

    /// What each of the `head_size / 2` pairs of a head turns by from one position to the next, in
    /// radians; 0 for the pairs that are not rotated. `divisors` are [`Self::divisors`], read.
    pub(crate) fn frequencies(&self, head_size: usize, divisors: Option<&[f32]>) -> Vec<f32> {
        (0..head_size / 2)
            .map(|pair| {
                if pair >= self.dimensions / 2 {
                    return 0.0;
                }
                let exponent = (2 * pair) as f64 / self.dimensions as f64;
                let divisor = divisors.map_or(1.0, |divisors| divisors[pair]);
                f64::from(self.base).powf(-exponent) as f32 / divisor
            })
            .collect()
    }
}
