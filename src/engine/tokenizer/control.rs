//! Recognizes control tokens by their text, whatever the model's file says: tokens that end an
//! answer, and other markers.
//!
//! Some published models end their chats with another token than their EOS token, or declare their
//! markers as plain text. The names and rules are llama.cpp's (`llama-vocab.cpp`, "auto-detect
//! special tokens by text"), which most GGUF files are tested with.

/// Tokens that end a turn, a message or a text.
const ENDS: [&str; 22] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Markers inside a turn, in OpenAI's harmony format.
const INSIDE: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// A fill-in-the-middle marker. A vocabulary uses one token of each kind.
pub(super) struct Fill {
    /// Keys under `tokenizer.ggml` that name the token. If one is set, `names` is not used.
    pub(super) keys: &'static [&'static str],
    /// Texts of the token in known vocabularies.
    pub(super) names: &'static [&'static str],
    pub(super) is_end: bool,
}

pub(super) const FILLS: [Fill; 6] = [
    Fill {
        keys: &["fim_pre_token_id", "prefix_token_id"],
        names: &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
        is_end: false,
    },
    Fill {
        keys: &["fim_suf_token_id", "suffix_token_id"],
        names: &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
        is_end: false,
    },
    Fill {
        keys: &["fim_mid_token_id", "middle_token_id"],
        names: &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
        is_end: false,
    },
    Fill {
        keys: &["fim_pad_token_id"],
        names: &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"],
        is_end: true,
    },
    Fill {
        keys: &["fim_rep_token_id"],
        names: &[
            "<|fim_repo|>",
            "<|repo_name|>",
            "<fim-repo>",
            "<REPO>",
            "<reponame>",
        ],
        is_end: true,
    },
    Fill {
        keys: &["fim_sep_token_id"],
        names: &["<|file_sep|>"],
        is_end: true,
    },
];

/// Whether a token of this text is a control token, whatever its type.
pub(super) fn is_control(text: &str) -> bool {
    ENDS.contains(&text) || INSIDE.contains(&text)
}

/// Whether an answer ends with the token of this text. `has` looks up other texts in the
/// vocabulary.
pub(super) fn is_end(text: &str, has: impl Fn(&str) -> bool) -> bool {
    match text {
        // Ends only part of a turn if other tokens end the turn.
        "<|end|>" => {
            let has_call = has("<|call|>") || has("<|calls|>");
            !(has_call && (has("<|return|>") || has("<|flush|>")))
        }
        // In Gemma 4's vocabulary it is an HTML tag.
        "</s>" => !has("<|tool_response>"),
        text => ENDS.contains(&text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_recognized_by_text_and_two_depend_on_other_tokens() {
        let none = |_: &str| false;
        for end in ["<|im_end|>", "<end_of_turn>", "[EOS]", "<|end|>", "</s>"] {
            assert!(is_end(end, none) && is_control(end), "{end}");
        }
        for other in ["<|im_start|>", "<|message|>", "<|fim_pad|>", "end", ""] {
            assert!(!is_end(other, none), "{other}");
        }
        let harmony = |text: &str| ["<|return|>", "<|call|>"].contains(&text);
        assert!(!is_end("<|end|>", harmony) && is_end("<|return|>", harmony));
        assert!(!is_end("<|end|>", |text| ["<|calls|>", "<|flush|>"].contains(&text)));
        assert!(is_end("<|end|>", |text| text == "<|call|>"));
        assert!(!is_end("</s>", |text| text == "<|tool_response>"));
    }
}
