//! Compares the default model with candle-transformers' quantized Llama, both in f32.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::{AddedToken, Tokenizer};

use super::*;
use crate::thorough::cases;

const PROMPTS: &str = include_str!("../../../../../tests/data/greedy_prompts.txt");
const NEW_TOKENS: usize = 16;
/// Upper bound on the difference of logits, relative to the largest one. The test prints the
/// measured difference.
const LOGIT_BOUND: f32 = 1e-4;
/// Two logits of the reference that are closer than this may swap ranks.
const NEAR_TIE: f32 = 1e-3;

fn tokenizer(file: &GgufFile) -> Tokenizer {
    let texts = |key: &str| -> Vec<String> {
        let values = file.metadata()[key].to_vec().unwrap();
        values
            .iter()
            .map(|value| value.to_string().unwrap().clone())
            .collect()
    };
    assert_eq!(
        file.metadata()["tokenizer.ggml.pre"].to_string().unwrap(),
        "smollm"
    );
    let tokens = texts("tokenizer.ggml.tokens");
    let merges = texts("tokenizer.ggml.merges")
        .iter()
        .map(|merge| {
            let (left, right) = merge.split_once(' ').unwrap();
            (left.to_owned(), right.to_owned())
        })
        .collect();
    let types = file.metadata()["tokenizer.ggml.token_type"]
        .to_vec()
        .unwrap();
    let special: Vec<AddedToken> = tokens
        .iter()
        .zip(types)
        .filter(|(_, kind)| matches!(kind, Value::I32(3)))
        .map(|(token, _)| AddedToken::from(token.clone(), true))
        .collect();
    let vocab: Vocab = tokens.into_iter().zip(0..).collect();
    let model = BPE::builder()
        .vocab_and_merges(vocab, merges)
        .build()
        .unwrap();
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(vec![
        Digits::new(true).into(),
        ByteLevel::new(false, true, true).into(),
    ])));
    tokenizer.add_special_tokens(special).unwrap();
    tokenizer
}

fn prompts(file: &GgufFile) -> Vec<Vec<u32>> {
    let tokenizer = tokenizer(file);
    PROMPTS
        .lines()
        .map(|prompt| {
            let text = format!(
                "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by \
                 Hugging Face<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n\
                 <|im_start|>assistant\n"
            );
            tokenizer.encode(text, false).unwrap().get_ids().to_vec()
        })
        .collect()
}

/// The token with the highest logit, and its distance to the second highest.
fn greedy(logits: &[f32]) -> (u32, f32) {
    let (mut best, mut second) = (0, f32::NEG_INFINITY);
    for (token, &logit) in logits.iter().enumerate().skip(1) {
        if logit > logits[best] {
            second = logits[best];
            best = token;
        } else {
            second = second.max(logit);
        }
    }
    (best as u32, logits[best] - second)
}

/// Prompts with 16 new tokens each; here in one batch, in the reference one after another.
#[test]
fn greedy_text_matches_candle_transformers() {
    let Some(path) = test_model() else { return };
    let file = GgufFile::open(&path).unwrap();
    let mut prompts = prompts(&file);
    assert_eq!(prompts.len(), 50);
    prompts.truncate(cases(12, 50));
    let mut model = CandleModel::from_gguf(&file).unwrap();
    assert_eq!(model.weights(), "Q4_1 as f32");
    const PAGES_EACH: u32 = 16;
    model
        .set_pages(prompts.len() * PAGES_EACH as usize)
        .unwrap();
    let tables: Vec<Vec<u32>> = (0..prompts.len() as u32)
        .map(|text| (text * PAGES_EACH..(text + 1) * PAGES_EACH).collect())
        .collect();

    let slots: Vec<Slot> = prompts.iter().map(|_| model.open().unwrap()).collect();
    let mut texts = prompts.clone();
    // For each pass, the logits of all texts.
    let mut logits: Vec<Vec<Vec<f32>>> = Vec::new();
    for pass in 0..NEW_TOKENS {
        let start = |text: usize| match pass {
            0 => 0,
            _ => prompts[text].len() + pass - 1,
        };
        let batch: Vec<Chunk<'_>> = slots
            .iter()
            .enumerate()
            .map(|(text, &slot)| Chunk {
                slot,
                pages: &tables[text],
                tokens: &texts[text][start(text)..],
                start: start(text),
                logits: true,
            })
            .collect();
        let next = model.forward(&batch).unwrap();
        for (text, logits) in texts.iter_mut().zip(&next) {
            text.push(greedy(logits).0);
        }
        logits.push(next);
    }
    drop(model);

    let mut reference = Reference::load("llama", &mut in_f32(&path));
    let (mut most, mut compared, mut ties) = (0.0f32, 0, 0);
    for (text, prompt) in prompts.iter().enumerate() {
        let mut theirs = reference.forward(prompt, 0);
        for (pass, logits) in logits.iter().enumerate() {
            most = most.max(difference(&logits[text], &theirs));
            compared += 1;
            let at = prompt.len() + pass;
            let (token, gap) = greedy(&theirs);
            if token != texts[text][at] {
                eprintln!("prompt {text}, token {pass}: a near-tie, {gap:.1e} apart");
                assert!(gap < NEAR_TIE, "prompt {text}, token {pass}: {gap} apart");
                // From here on, the two texts differ.
                ties += 1;
                break;
            }
            if pass + 1 < NEW_TOKENS {
                theirs = reference.forward(&[token], at);
            }
        }
    }
    eprintln!(
        "{compared} tokens of {} texts, {ties} near-ties; logits differ by {most:.1e}",
        prompts.len()
    );
    assert!(most < LOGIT_BOUND, "logits differ by {most}");
    assert!(compared * 8 > prompts.len() * NEW_TOKENS * 7);
}
