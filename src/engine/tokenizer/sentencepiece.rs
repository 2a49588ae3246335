//! SentencePiece's byte-pair model, as GGUF files of the `llama` kind contain it: pieces with
//! scores instead of merges. The adjacent pair whose union is the piece with the best score is
//! joined, the leftmost among equals, until no pair is left. Text that is not a piece then becomes
//! byte pieces.
//!
//! The tokenizers library supports merges only. Deriving merges from the scores, as converters do,
//! is correct except for ties between different splits of one piece. This is the algorithm itself
//! (`sentencepiece/src/bpe_model.cc`), as a model of the library.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::path::{Path, PathBuf};

use tokenizers::models::bpe::BpeTrainer;
use tokenizers::tokenizer::{Model, Result, Token};

/// The character for a space in pieces.
pub(super) const SPACE: char = '▁';

#[derive(Debug)]
pub(super) struct SentencePiece {
    texts: Vec<String>,
    ids: HashMap<String, u32>,
    /// The pieces that text may become: id and score.
    pieces: HashMap<String, (u32, f32)>,
    /// The piece of each byte, if the vocabulary has them.
    bytes: [Option<u32>; 256],
    unknown: Option<u32>,
    space_prefix: bool,
}

/// A span of text that is one symbol so far. The symbols form a linked list. One that was joined to
/// its left neighbor has length 0.
struct Symbol {
    start: usize,
    length: usize,
    previous: Option<usize>,
    next: Option<usize>,
}

/// Two adjacent symbols whose union is a piece.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    /// Length of the union when the pair was queued. The pair is stale if it has changed since.
    length: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score
            .total_cmp(&other.score)
            .then_with(|| other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

impl SentencePiece {
    /// `is_piece[id]` says which tokens text may become (not the control and byte tokens).
    /// `space_prefix` puts a space before each span of text between special tokens, as the Llama
    /// family was trained with.
    pub(super) fn new(
        texts: Vec<String>,
        scores: &[f32],
        is_piece: &[bool],
        unknown: Option<u32>,
        space_prefix: bool,
    ) -> Self {
        let ids: HashMap<String, u32> = texts.iter().cloned().zip(0..).collect();
        let pieces = texts
            .iter()
            .zip(0..)
            .zip(scores.iter().zip(is_piece))
            .filter(|(_, (_, is_piece))| **is_piece)
            // Adding zero turns -0 into 0; `total_cmp` tells them apart.
            .map(|((text, id), (score, _))| (text.clone(), (id, *score + 0.0)))
            .collect();
        let bytes =
            std::array::from_fn(|byte| ids.get(format!("<0x{byte:02X}>").as_str()).copied());
        Self {
            texts,
            ids,
            pieces,
            bytes,
            unknown,
            space_prefix,
        }
    }

    /// Tokenizes a span of text without special tokens.
    fn ids_of(&self, text: &str) -> Vec<u32> {
        let mut escaped = String::with_capacity(text.len() * 2);
        if self.space_prefix {
            escaped.push(SPACE);
        }
        escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));

        let mut symbols: Vec<Symbol> = escaped
            .char_indices()
            .enumerate()
            .map(|(index, (start, c))| Symbol {
                start,
                length: c.len_utf8(),
                previous: index.checked_sub(1),
                next: Some(index + 1),
            })
            .collect();
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }

        let mut queue = BinaryHeap::new();
        for right in 1..symbols.len() {
            self.push_pair(&escaped, &symbols, Some(right - 1), Some(right), &mut queue);
        }
        while let Some(pair) = queue.pop() {
            let (left, right) = (&symbols[pair.left], &symbols[pair.right]);
            let is_stale =
                left.length == 0 || right.length == 0 || left.length + right.length != pair.length;
            if is_stale {
                continue;
            }
            let next = right.next;
            symbols[pair.left].length = pair.length;
            symbols[pair.left].next = next;
            symbols[pair.right].length = 0;
            if let Some(next) = next {
                symbols[next].previous = Some(pair.left);
            }
            let previous = symbols[pair.left].previous;
            self.push_pair(&escaped, &symbols, previous, Some(pair.left), &mut queue);
            self.push_pair(&escaped, &symbols, Some(pair.left), next, &mut queue);
        }

        let mut ids = Vec::with_capacity(symbols.len() / 3);
        for symbol in symbols.iter().filter(|symbol| symbol.length > 0) {
            self.push_ids(
                &escaped[symbol.start..symbol.start + symbol.length],
                &mut ids,
            );
        }
        ids
    }

    fn push_pair(
        &self,
        text: &str,
        symbols: &[Symbol],
        left: Option<usize>,
        right: Option<usize>,
        queue: &mut BinaryHeap<Pair>,
    ) {
        let (Some(left), Some(right)) = (left, right) else {
            return;
        };
        let start = symbols[left].start;
        let length = symbols[left].length + symbols[right].length;
        if let Some((_, score)) = self.pieces.get(&text[start..start + length]) {
            queue.push(Pair {
                score: *score,
                left,
                right,
                length,
            });
        }
    }

    /// The piece itself, or its bytes, or the unknown token (once per run).
    fn push_ids(&self, symbol: &str, ids: &mut Vec<u32>) {
        if let Some((id, _)) = self.pieces.get(symbol) {
            ids.push(*id);
            return;
        }
        let bytes: Option<Vec<u32>> = symbol
            .bytes()
            .map(|byte| self.bytes[usize::from(byte)])
            .collect();
        match (bytes, self.unknown) {
            (Some(bytes), _) => ids.extend(bytes),
            (None, Some(unknown)) if ids.last() != Some(&unknown) => ids.push(unknown),
            (None, _) => {}
        }
    }
}

impl Model for SentencePiece {
    // The trait requires one; nothing is trained here.
    type Trainer = BpeTrainer;

    /// The tokens only carry ids: `encode_fast` uses nothing else.
    fn tokenize(&self, sequence: &str) -> Result<Vec<Token>> {
        if sequence.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self
            .ids_of(sequence)
            .into_iter()
            .map(|id| Token::new(id, String::new(), (0, 0)))
            .collect())
    }

    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    fn id_to_token(&self, id: u32) -> Option<String> {
        self.texts.get(id as usize).cloned()
    }

    fn get_vocab(&self) -> HashMap<String, u32> {
        self.ids.clone()
    }

    fn get_vocab_size(&self) -> usize {
        self.texts.len()
    }

    fn save(&self, _folder: &Path, _prefix: Option<&str>) -> Result<Vec<PathBuf>> {
        Err("a vocabulary read from a model file cannot be saved".into())
    }

    fn get_trainer(&self) -> BpeTrainer {
        BpeTrainer::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vocabulary of `<unk>`, the byte pieces `<0x00>` to `<0xFF>` (ids 1 to 256), and `pieces`,
    /// best first.
    fn model(pieces: &[&str], space_prefix: bool) -> SentencePiece {
        let mut texts = vec!["<unk>".to_owned()];
        texts.extend((0..256).map(|byte| format!("<0x{byte:02X}>")));
        texts.extend(pieces.iter().map(|piece| (*piece).to_owned()));
        let scores: Vec<f32> = (0..texts.len()).map(|id| -(id as f32)).collect();
        let is_piece: Vec<bool> = (0..texts.len()).map(|id| id > 256).collect();
        SentencePiece::new(texts, &scores, &is_piece, Some(0), space_prefix)
    }

    fn texts(model: &SentencePiece, text: &str) -> Vec<String> {
        model
            .ids_of(text)
            .into_iter()
            .map(|id| model.id_to_token(id).unwrap())
            .collect()
    }

    #[test]
    fn the_best_scored_pair_is_joined_first_and_the_leftmost_among_equals() {
        let model = model(&["ab", "bc", "abc", "aa", "aaa", "a", "b", "c", "▁"], false);
        assert_eq!(texts(&model, "abc"), ["abc"]);
        assert_eq!(texts(&model, "bcab"), ["bc", "ab"]);
        assert_eq!(texts(&model, "aaaaa"), ["aa", "aaa"]);
        assert_eq!(texts(&model, "aab"), ["a", "ab"]);
    }

    #[test]
    fn spaces_are_pieces_and_the_space_prefix_is_optional() {
        let pieces = ["▁a", "▁▁", "a", "▁"];
        assert_eq!(texts(&model(&pieces, true), "a a"), ["▁a", "▁a"]);
        assert_eq!(texts(&model(&pieces, true), "  a"), ["▁▁", "▁a"]);
        assert_eq!(texts(&model(&pieces, false), "a a"), ["a", "▁a"]);
    }

    #[test]
    fn text_that_is_no_piece_becomes_bytes_or_the_unknown_token() {
        let with_bytes = model(&["a"], false);
        assert_eq!(
            texts(&with_bytes, "a\né"),
            ["a", "<0x0A>", "<0xC3>", "<0xA9>"]
        );
        let mut without = model(&["a"], false);
        without.bytes = [None; 256];
        assert_eq!(texts(&without, "aéía"), ["a", "<unk>", "a"]);
    }

    #[test]
    fn the_text_of_a_byte_token_stays_text() {
        let model = model(&["<", "0", "x", "A", ">"], false);
        assert_eq!(texts(&model, "<0x0A>"), ["<", "0", "x", "0", "A", ">"]);
    }
}
