//! Pre-tokenizers: how text is split before the byte-pair merges, by `tokenizer.ggml.pre`.
//!
//! A GGUF names its pre-tokenizer without describing it, so each name needs an explicit mapping. A
//! wrong one yields other tokens than the model was trained on, and nothing fails. The names and
//! their meaning are llama.cpp's (`src/llama-vocab.cpp`). The patterns are from the families' own
//! `tokenizer.json`, because llama.cpp's regex engine cannot express all of them: for example, its
//! `tekken` and `gpt-4o` patterns split off combining marks.
//!
//! Each name was compared with llama.cpp b11549 over 369 texts (226 kB). The tokens differ in two
//! cases only, where llama.cpp does not do what the family's own tokenizer does: composing
//! characters (`nfc`) and, for `falcon`, looking for digits among the characters that encode bytes.
//! `tekken` was also compared with Mistral's own implementation.

use tokenizers::normalizers::{NFC, NormalizerWrapper};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::tokenizer::SplitDelimiterBehavior;

use crate::error::{Error, Result};

/// A splitting step. The steps of a family run in order, each on the pieces of the previous one.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Each match of the pattern is a piece, and so is the text between two matches.
    Split(&'static str),
    /// Each digit is a piece.
    EachDigit,
    /// Each run of digits is a piece.
    Digits,
    /// Each run of punctuation is a piece.
    Punctuation,
    /// GPT-2's pattern, then [`Step::Bytes`].
    Gpt2Bytes,
    /// Maps bytes to the characters that the vocabulary is written in.
    Bytes,
}

/// Vocabularies that are split alike.
struct Family {
    /// The values of `tokenizer.ggml.pre` that belong to the family.
    names: &'static [&'static str],
    steps: &'static [Step],
    /// Whether text is normalized to NFC first.
    nfc: bool,
    /// Whether a piece that is a token is used as it is, whatever the merges would make of it.
    ignore_merges: bool,
    /// Whether BOS is added if the file does not say.
    adds_bos: bool,
}

const DEFAULTS: Family = Family {
    names: &[],
    steps: &[],
    nfc: false,
    ignore_merges: false,
    adds_bos: false,
};

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Cased letters of Unicode 11, as code points because several of them look alike.
const DEEPSEEK_WORDS: &str = r"\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+";
const DEEPSEEK_MARKS: &str =
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+";
const DEEPSEEK_CJK: &str = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+";
const DEEPSEEK_V3_CJK: &str = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+";
const DEEPSEEK_V3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;

const FAMILIES: &[Family] = &[
    Family {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "codeshell",
            "exaone",
            "minerva-7b",
        ],
        steps: &[Step::EachDigit, Step::Gpt2Bytes],
        ..DEFAULTS
    },
    Family {
        names: &["command-r"],
        steps: &[Step::EachDigit, Step::Gpt2Bytes],
        nfc: true,
        ..DEFAULTS
    },
    Family {
        names: &[
            "gpt-2",
            "phi-2",
            "jais",
            "trillion",
            "granite-docling",
            "mellum",
            "exaone4",
            "a.x-4.0",
        ],
        steps: &[Step::Gpt2Bytes],
        ..DEFAULTS
    },
    Family {
        // Both use the GPT-NeoX tokenizer.
        names: &["mpt", "olmo"],
        steps: &[Step::Gpt2Bytes],
        nfc: true,
        ..DEFAULTS
    },
    Family {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "lfm2",
        ],
        steps: &[Step::Split(LLAMA3), Step::Bytes],
        ignore_merges: true,
        adds_bos: true,
        ..DEFAULTS
    },
    Family {
        // Phi-4, OLMo 2 and Granite 4 are converted as `dbrx`, too.
        names: &["dbrx", "smaug-bpe"],
        steps: &[Step::Split(LLAMA3), Step::Bytes],
        ..DEFAULTS
    },
    Family {
        names: &["glm4", "chatglm-bpe"],
        steps: &[Step::Split(LLAMA3), Step::Bytes],
        ignore_merges: true,
        ..DEFAULTS
    },
    Family {
        names: &["qwen2", "deepseek-r1-qwen", "megrez"],
        steps: &[Step::Split(QWEN2), Step::Bytes],
        nfc: true,
        ..DEFAULTS
    },
    Family {
        names: &["qwen35"],
        steps: &[Step::Split(QWEN35), Step::Bytes],
        nfc: true,
        ..DEFAULTS
    },
    Family {
        names: &["stablelm2", "hunyuan", "grok-2", "solar-open"],
        steps: &[Step::Split(QWEN2), Step::Bytes],
        ..DEFAULTS
    },
    Family {
        names: &["gpt-4o", "llama4"],
        steps: &[Step::Split(GPT4O), Step::Bytes],
        ignore_merges: true,
        ..DEFAULTS
    },
    Family {
        names: &["tekken"],
        steps: &[Step::Split(TEKKEN), Step::Bytes],
        ignore_merges: true,
        adds_bos: true,
        ..DEFAULTS
    },
    Family {
        names: &["deepseek-llm"],
        steps: &[
            Step::Split(r"[\r\n]"),
            Step::Split(DEEPSEEK_WORDS),
            Step::Split(DEEPSEEK_MARKS),
            Step::Split(r"\s+$"),
            Step::Split(DEEPSEEK_CJK),
            Step::EachDigit,
            Step::Bytes,
        ],
        ..DEFAULTS
    },
    Family {
        names: &["deepseek-coder"],
        steps: &[
            Step::Split(r"[\r\n]"),
            Step::Split(r"\s?\p{L}+"),
            Step::Split(r"\s?\p{P}+"),
            Step::Split(DEEPSEEK_CJK),
            Step::EachDigit,
            Step::Bytes,
        ],
        ..DEFAULTS
    },
    Family {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm"],
        steps: &[
            Step::Split(r"\p{N}{1,3}"),
            Step::Split(DEEPSEEK_V3_CJK),
            Step::Split(DEEPSEEK_V3),
            Step::Bytes,
        ],
        ..DEFAULTS
    },
    Family {
        names: &["falcon"],
        steps: &[
            Step::Punctuation,
            Step::Gpt2Bytes,
            Step::Digits,
            Step::Split("[0-9][0-9][0-9]"),
        ],
        ..DEFAULTS
    },
    Family {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        steps: &[
            Step::Split(
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
            ),
            Step::Bytes,
        ],
        ..DEFAULTS
    },
    Family {
        names: &["seed-coder"],
        steps: &[
            Step::Split(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
            ),
            Step::Bytes,
        ],
        ..DEFAULTS
    },
    Family {
        // llama.cpp's fallback for files converted before pre-tokenizers were named.
        names: &["default"],
        steps: &[
            Step::Split(r"[\p{P}\$\+<=>\^~\|]+"),
            Step::Split(GPT2),
            Step::Split(r"\p{N}+"),
            Step::Split("[0-9][0-9][0-9]"),
            Step::Bytes,
        ],
        ..DEFAULTS
    },
];

/// The steps before the merges.
#[derive(Debug)]
pub(super) struct Pre {
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: PreTokenizerWrapper,
    /// See [`Family::ignore_merges`].
    pub(super) ignore_merges: bool,
    /// See [`Family::adds_bos`].
    pub(super) adds_bos: bool,
}

/// Looks up a pre-tokenizer by name.
///
/// # Errors
/// An unknown name. A default would run, but with other tokens than the model was trained on.
pub(super) fn named(name: &str) -> Result<Pre> {
    let Some(family) = FAMILIES.iter().find(|family| family.names.contains(&name)) else {
        let mut known: Vec<&str> = FAMILIES
            .iter()
            .flat_map(|family| family.names.iter().copied())
            .collect();
        known.sort_unstable();
        return Err(Error::preflight(format!(
            "unknown pre-tokenizer `{name}` (tokenizer.ggml.pre)"
        ))
        .hint(format!(
            "supported: {}. A folder with the model's own tokenizer.json works with any model",
            known.join(", ")
        )));
    };
    let steps = family
        .steps
        .iter()
        .map(|step| step.build(name))
        .collect::<Result<Vec<_>>>()?;
    Ok(Pre {
        normalizer: family.nfc.then(|| NFC.into()),
        pre_tokenizer: Sequence::new(steps).into(),
        ignore_merges: family.ignore_merges,
        adds_bos: family.adds_bos,
    })
}

impl Step {
    fn build(self, name: &str) -> Result<PreTokenizerWrapper> {
        Ok(match self {
            Self::Split(pattern) => Split::new(
                SplitPattern::Regex(pattern.to_owned()),
                SplitDelimiterBehavior::Isolated,
                false,
            )
            .map_err(|error| {
                Error::preflight(format!("failed to build the pre-tokenizer `{name}`"))
                    .caused_by(error)
            })?
            .into(),
            Self::EachDigit => Digits::new(true).into(),
            Self::Digits => Digits::new(false).into(),
            Self::Punctuation => Punctuation::new(SplitDelimiterBehavior::Contiguous).into(),
            Self::Gpt2Bytes => ByteLevel::new(false, false, true).into(),
            Self::Bytes => ByteLevel::new(false, false, false).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    use super::*;

    fn pieces(name: &str, text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        named(name)
            .unwrap()
            .pre_tokenizer
            .pre_tokenize(&mut pieces)
            .unwrap();
        pieces
            .get_splits(OffsetReferential::Original, OffsetType::Byte)
            .into_iter()
            .map(|(_, (start, end), _)| text[start..end].to_owned())
            .collect()
    }

    #[test]
    fn every_family_builds_and_no_name_is_listed_twice() {
        let mut seen = std::collections::HashSet::new();
        for name in FAMILIES.iter().flat_map(|family| family.names) {
            assert!(seen.insert(name), "{name} is listed twice");
            let text = "I'll pay $1234.50 — or 3?\r\n\r\n   日本語 ok\t\n ";
            assert_eq!(pieces(name, text).concat(), text, "{name} loses text");
        }
    }

    #[test]
    fn families_split_like_their_tokenizer_json() {
        let text = "We'LL add 1234\n\n  x";
        let expect = |name: &str, pieces_expected: &[&str]| {
            assert_eq!(pieces(name, text), pieces_expected, "{name}");
        };
        expect(
            "smollm",
            &[
                "We", "'", "LL", " add", " ", "1", "2", "3", "4", "\n\n ", " x",
            ],
        );
        expect("gpt-2", &["We", "'", "LL", " add", " 1234", "\n\n ", " x"]);
        expect(
            "llama-bpe",
            &["We", "'LL", " add", " ", "123", "4", "\n\n", " ", " x"],
        );
        expect(
            "qwen2",
            &[
                "We", "'LL", " add", " ", "1", "2", "3", "4", "\n\n", " ", " x",
            ],
        );
        expect(
            "gpt-4o",
            &["We'LL", " add", " ", "123", "4", "\n\n", " ", " x"],
        );
        expect(
            "tekken",
            &[
                "We", "'LL", " add", " ", "1", "2", "3", "4", "\n\n", " ", " x",
            ],
        );
        expect(
            "falcon",
            &["We", "'", "LL", " add", " ", "123", "4", "\n\n ", " x"],
        );
    }

    #[test]
    fn an_unknown_name_is_an_error_that_lists_the_known_ones() {
        let error = named("klingon-bpe").unwrap_err();
        assert_eq!(error.exit(), crate::error::Exit::Preflight);
        assert!(
            error.report().contains("`klingon-bpe`"),
            "{}",
            error.report()
        );
        assert!(error.report().contains("smollm"), "{}", error.report());
    }

    /// If its regex engine fails, the library silently takes the rest of the text as one piece. The
    /// engine fails after a million backtracking steps. A pattern that backtracks more than once
    /// per character of a run would reach that limit long before a prompt fills the context.
    #[test]
    fn long_runs_stay_below_the_regex_backtracking_limit() {
        for name in FAMILIES.iter().map(|family| family.names[0]) {
            for run in [" ", "\n", "a", "1", "!", "é", "\r\n", " \n"] {
                let text = format!("{}. The end", run.repeat(50_000));
                let last = pieces(name, &text).pop().unwrap();
                assert!(last.len() <= 4, "{name} gives up on a run of {run:?}");
            }
        }
    }
}
