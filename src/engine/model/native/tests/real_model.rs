//! The default model against the candle path in f32.

use super::*;
use crate::engine::model::testing::test_model;
use crate::engine::tokenizer::Tokenizer;
use crate::thorough::cases;

const PROMPTS: &str = include_str!("../../../../../tests/data/greedy_prompts.txt");
const NEW_TOKENS: usize = 16;

/// Maximum gap between the candle path's highest logit and its logit for the chosen token. Measured:
/// 0.33.
const NEAR_TIE: f32 = 0.5;
/// Maximum percentage of tokens that differ because of such a near tie. Measured: 2.7 (13 of 480).
const NEAR_TIES: usize = 5;

/// Both models, with `sequences` open sequences of up to 256 tokens.
struct Pair {
    ours: NativeModel,
    theirs: CandleModel,
    slots: Vec<Slot>,
    tables: Vec<Vec<u32>>,
}

impl Pair {
    fn open(path: &Path, sequences: usize) -> Self {
        const PAGES_EACH: u32 = 16;
        let mut theirs = reference(path, sequences * PAGES_EACH as usize);
        let slots = (0..sequences).map(|_| theirs.open().unwrap()).collect();
        let tables = (0..sequences as u32)
            .map(|sequence| (sequence * PAGES_EACH..(sequence + 1) * PAGES_EACH).collect())
            .collect();
        Self {
            ours: native(path, 2, sequences * PAGES_EACH as usize),
            theirs,
            slots,
            tables,
        }
    }

    /// The logits of both after the tokens of each text from `starts` on, in one batch.
    fn step(&mut self, texts: &[&[u32]], starts: &[usize]) -> [Vec<Vec<f32>>; 2] {
        let batch: Vec<Chunk<'_>> = texts
            .iter()
            .zip(starts)
            .enumerate()
            .map(|(index, (text, &start))| Chunk {
                slot: self.slots[index],
                pages: &self.tables[index],
                tokens: &text[start..],
                start,
                logits: true,
            })
            .collect();
        [
            self.ours.forward(&batch).unwrap(),
            self.theirs.forward(&batch).unwrap(),
        ]
    }
}

pub(super) fn tokenizer(path: &Path) -> Tokenizer {
    Tokenizer::from_gguf(GgufFile::open(path).unwrap().metadata()).unwrap()
}

fn best(logits: &[f32]) -> u32 {
    let best = (0u32..).zip(logits).max_by(|a, b| {
        // The lowest token id among equals.
        a.1.total_cmp(b.1).then(b.0.cmp(&a.0))
    });
    best.unwrap().0
}

/// Prompts are continued greedily, and the candle path is fed the same tokens. Every token is its
/// choice as well, or a near tie.
#[test]
fn greedy_text_matches_the_candle_path_except_near_ties() {
    let Some(path) = test_model() else { return };
    let tokenizer = tokenizer(&path);
    let mut texts: Vec<Vec<u32>> = PROMPTS
        .lines()
        .map(|prompt| {
            let text = format!(
                "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by \
                 Hugging Face<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n\
                 <|im_start|>assistant\n"
            );
            tokenizer.encode(&text, false).unwrap()
        })
        .collect();
    assert_eq!(texts.len(), 50);
    texts.truncate(cases(20, 50));
    let mut pair = Pair::open(&path, texts.len());
    let (mut starts, mut most, mut ties) = (vec![0; texts.len()], 0.0f32, Vec::new());
    for new in 0..NEW_TOKENS {
        let known: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let [ours, theirs] = pair.step(&known, &starts);
        for (index, text) in texts.iter_mut().enumerate() {
            most = most.max(difference(&ours[index], &theirs[index]));
            let (token, expected) = (best(&ours[index]), best(&theirs[index]));
            if token != expected {
                let gap = theirs[index][expected as usize] - theirs[index][token as usize];
                eprintln!("prompt {index}, token {new}: {gap:.3} below the highest logit");
                ties.push(gap);
            }
            starts[index] = text.len();
            text.push(token);
        }
    }
    let compared = NEW_TOKENS * texts.len();
    eprintln!(
        "{} of {compared} tokens differ; logits by {most:.1e}",
        ties.len()
    );
    assert!(ties.iter().all(|gap| *gap < NEAR_TIE), "{ties:?}");
    assert!(ties.len() * 100 <= compared * NEAR_TIES);
}
