//! Qwen 2 and 2.5: queries, keys and values have biases.

use super::{Attention, Decoder, Family, Presence};

pub(crate) const FAMILY: Family = Family {
    name: "qwen2",
    model_types: &["qwen2"],
    from_gguf: |file| Decoder::whole_heads_of_gguf(file).map(with_biases),
    from_folder: |folder| Decoder::whole_heads_of_folder(folder).map(with_biases),
};

fn with_biases(decoder: Decoder) -> Decoder {
    Decoder {
        attention: Attention {
            bias: Presence::Required,
            ..decoder.attention
        },
        ..decoder
    }
}
