//! Qwen 3, dense: heads of queries and keys are normed.

use super::{Attention, Decoder, Family};

pub(crate) const FAMILY: Family = Family {
    name: "qwen3",
    model_types: &["qwen3"],
    from_gguf: |file| Decoder::whole_heads_of_gguf(file).map(with_head_norms),
    from_folder: |folder| Decoder::whole_heads_of_folder(folder).map(with_head_norms),
};

fn with_head_norms(decoder: Decoder) -> Decoder {
    Decoder {
        attention: Attention {
            head_norm: true,
            ..decoder.attention
        },
        ..decoder
    }
}
