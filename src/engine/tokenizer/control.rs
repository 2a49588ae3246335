//! Control tokens by their text: which tokens end an answer, or are markers, whatever a file says.
//!
//! Models are published whose EOS token is not the one that their chats end with, or whose markers
//! are typed as plain text. The names, and what follows from them, are llama.cpp's
//! (`llama-vocab.cpp`, "auto-detect special tokens by text"), which most GGUF files are tried with.

/// Ends of a turn, a message or a text.
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

/// Markers of OpenAI's harmony format inside a turn.
const INSIDE: [&str; 4] = ["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// A marker of code completion (fill in the middle), of which a vocabulary has one.
pub(super) struct Fill {
    /// Keys of `tokenizer.ggml` that name the token; then its text does not matter.
    pub(super) keys: &'static [&'static str],
    /// What it is called in the vocabularies that there are.
    pub(super) names: &'static [&'static str],
    /// Whether an answer ends with it.
    pub(super) is_end: bool,
}

/// The markers of code completion.
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

/// Whether an answer ends with the token of this text, in a vocabulary that `has` others.
pub(super) fn is_end(text: &str, has: impl Fn(&str) -> bool) -> bool {
    match text {
        // Ends a part of a turn, where there are tokens that end the turn.
        "<|end|>" => {
            let has_call = has("<|call|>") || has("<|calls|>");
            !(has_call && (has("<|return|>") || has("<|flush|>")))
        }
        // A tag of HTML in Gemma 4's vocabulary.
        "</s>" => !has("<|tool_response>"),
        text => ENDS.contains(&text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_known_by_name_and_two_by_their_company() {
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
