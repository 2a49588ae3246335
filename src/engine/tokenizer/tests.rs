use std::path::PathBuf;
use std::time::Instant;

use super::*;
use crate::engine::load::hub::test_model;

/// Metadata of a small byte-level tokenizer: letters `a` to `z`, the space, the newline and a few
/// joined pieces, with `<s>`, `</s>` and the user-defined token `<tool>`.
pub(in crate::engine) fn metadata() -> HashMap<String, Value> {
    let mut texts: Vec<String> = ["<unk>", "<s>", "</s>", "<tool>", "Ġ", "Ċ"]
        .map(str::to_owned)
        .to_vec();
    texts.extend(('a'..='z').map(String::from));
    texts.extend(["he", "ll", "hell", "hello", "Ġh"].map(str::to_owned));
    let kinds = (0..texts.len()).map(|id| match id {
        0 => 2,
        1 | 2 => 3,
        3 => 4,
        _ => 1,
    });
    let kinds = kinds.map(Value::I32).collect();
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ h"]
        .map(|merge| Value::String(merge.to_owned()))
        .to_vec();
    let text = |text: &str| Value::String(text.to_owned());
    HashMap::from(
        [
            ("tokenizer.ggml.model", text("gpt2")),
            ("tokenizer.ggml.pre", text("gpt-2")),
            (
                "tokenizer.ggml.tokens",
                Value::Array(texts.into_iter().map(Value::String).collect()),
            ),
            ("tokenizer.ggml.token_type", Value::Array(kinds)),
            ("tokenizer.ggml.merges", Value::Array(merges)),
            ("tokenizer.ggml.bos_token_id", Value::U32(1)),
            ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ]
        .map(|(key, value)| (key.to_owned(), value)),
    )
}

/// The same tokens in SentencePiece's form: scores by position, `▁` for the space.
fn sentencepiece_metadata() -> HashMap<String, Value> {
    let mut metadata = metadata();
    let Some(Value::Array(texts)) = metadata.get_mut("tokenizer.ggml.tokens") else {
        panic!("an array");
    };
    for text in texts.iter_mut() {
        if let Value::String(text) = text {
            *text = text.replace('Ġ', "▁").replace('Ċ', "<0x0A>");
        }
    }
    // Longer pieces are the better ones.
    let scores = (0..texts.len()).map(|id| Value::F32(id as f32)).collect();
    metadata.insert("tokenizer.ggml.scores".to_owned(), Value::Array(scores));
    metadata.insert(
        "tokenizer.ggml.model".to_owned(),
        Value::String("llama".to_owned()),
    );
    metadata
}

fn set(metadata: &mut HashMap<String, Value>, key: &str, value: Value) {
    metadata.insert(format!("tokenizer.ggml.{key}"), value);
}

fn texts_of(metadata: &HashMap<String, Value>, ids: &[u32]) -> Vec<String> {
    let Value::Array(texts) = &metadata["tokenizer.ggml.tokens"] else {
        panic!("an array");
    };
    ids.iter()
        .map(|id| texts[*id as usize].to_string().unwrap().clone())
        .collect()
}

fn refused(metadata: &HashMap<String, Value>) -> Error {
    let error = Tokenizer::from_gguf(metadata).err().unwrap();
    assert_eq!(error.exit(), Exit::Preflight);
    error
}

#[test]
fn byte_pairs_are_merged_and_special_tokens_are_one_token() {
    let metadata = metadata();
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    let texts = |text: &str| texts_of(&metadata, &tokenizer.encode(text, false).unwrap());
    assert_eq!(texts("hello he\n"), ["hello", "Ġ", "he", "Ċ"]);
    assert_eq!(texts("<s>a</s><tool>"), ["<s>", "a", "</s>", "<tool>"]);
    assert_eq!(texts(""), Vec::<String>::new());
}

#[test]
fn bos_and_eos_are_added_when_asked_for_and_the_file_wants_them() {
    let mut metadata = metadata();
    let encode = |metadata: &HashMap<String, Value>, add_special| {
        let tokenizer = Tokenizer::from_gguf(metadata).unwrap();
        texts_of(metadata, &tokenizer.encode("a", add_special).unwrap())
    };
    assert_eq!(encode(&metadata, true), ["a"]);
    set(&mut metadata, "add_bos_token", Value::Bool(true));
    set(&mut metadata, "add_eos_token", Value::Bool(true));
    assert_eq!(encode(&metadata, true), ["<s>", "a", "</s>"]);
    assert_eq!(encode(&metadata, false), ["a"]);
    // Llama 3's files add a BOS token and do not all say so.
    metadata.remove("tokenizer.ggml.add_bos_token");
    set(&mut metadata, "pre", Value::String("llama-bpe".to_owned()));
    assert_eq!(encode(&metadata, true), ["<s>", "a", "</s>"]);
}

#[test]
fn decoding_leaves_special_tokens_out_and_cleans_nothing_up() {
    let tokenizer = Tokenizer::from_gguf(&metadata()).unwrap();
    let ids = tokenizer.encode("<s>he  a</s><tool>\n", false).unwrap();
    assert_eq!(tokenizer.decode(&ids).unwrap(), "he  a<tool>\n");
    assert_eq!(tokenizer.decode(&[]).unwrap(), "");
    assert_eq!(tokenizer.decode(&[9_999_999]).unwrap(), "");
}

#[test]
fn ends_are_what_the_file_names_and_known_ends_of_turn() {
    let mut metadata = metadata();
    let ends = |metadata: &HashMap<String, Value>| {
        let tokenizer = Tokenizer::from_gguf(metadata).unwrap();
        (0..40)
            .filter(|id| tokenizer.is_end(*id))
            .collect::<Vec<_>>()
    };
    assert_eq!(ends(&metadata), [2]);
    set(&mut metadata, "eot_token_id", Value::U32(3));
    // "None", as converters write it.
    set(&mut metadata, "eom_token_id", Value::U32(u32::MAX));
    assert_eq!(ends(&metadata), [2, 3]);
    // `</s>` is an end by its text where the file names another token; a plain token is not.
    set(&mut metadata, "eos_token_id", Value::U32(1));
    metadata.remove("tokenizer.ggml.eot_token_id");
    assert_eq!(ends(&metadata), [1, 2]);
    set(
        &mut metadata,
        "token_type",
        Value::Array(vec![Value::I32(1); 37]),
    );
    assert_eq!(ends(&metadata), [1]);
    assert!(is_end_of_turn("<|end|>", &[]));
    assert!(!is_end_of_turn("<|end|>", &["<|return|>".to_owned()]));
}

#[test]
fn sentencepiece_files_put_a_space_first_unless_they_say_not_to() {
    let mut metadata = sentencepiece_metadata();
    let encode = |metadata: &HashMap<String, Value>, text: &str| {
        let tokenizer = Tokenizer::from_gguf(metadata).unwrap();
        let ids = tokenizer.encode(text, true).unwrap();
        let decoded = tokenizer.decode(&ids).unwrap();
        (texts_of(metadata, &ids), decoded)
    };
    // After a special token, too, as llama.cpp and transformers' legacy mode have it.
    let (texts, decoded) = encode(&metadata, "hello<tool>hello\n");
    assert_eq!(
        texts,
        [
            "<s>", "▁h", "e", "ll", "o", "<tool>", "▁h", "e", "ll", "o", "<0x0A>"
        ]
    );
    assert_eq!(decoded, "hello<tool> hello\n");
    set(&mut metadata, "add_space_prefix", Value::Bool(false));
    let (texts, decoded) = encode(&metadata, " hello<tool>hello");
    assert_eq!(texts, ["<s>", "▁h", "e", "ll", "o", "<tool>", "hello"]);
    assert_eq!(decoded, " hello<tool>hello");
}

#[test]
fn phi_3s_special_tokens_take_the_space_after_them_along() {
    let mut metadata = sentencepiece_metadata();
    metadata.insert(
        "general.name".to_owned(),
        Value::String("Phi-3 Mini".to_owned()),
    );
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    let texts = |text: &str| texts_of(&metadata, &tokenizer.encode(text, false).unwrap());
    assert_eq!(texts("</s>\n a"), ["</s>", "▁", "a"]);
    assert_eq!(texts("<s> a"), ["<s>", "▁", "▁", "a"]);
}

#[test]
fn what_a_file_lacks_is_an_error_that_names_it() {
    let without = |key: &str| {
        let mut metadata = metadata();
        metadata.remove(&format!("tokenizer.ggml.{key}")).unwrap();
        refused(&metadata).report()
    };
    assert!(without("tokens").contains("`tokenizer.ggml.tokens` is missing"));
    assert!(without("merges").contains("`tokenizer.ggml.merges` is missing"));
    assert!(without("model").contains("`tokenizer.ggml.model` is missing"));
    assert!(without("pre").contains("does not name its pre-tokenizer"));

    let with = |key: &str, value: Value| {
        let mut metadata = metadata();
        set(&mut metadata, key, value);
        refused(&metadata).report()
    };
    let text = |text: &str| Value::String(text.to_owned());
    assert!(with("pre", text("klingon")).contains("unknown pre-tokenizer `klingon`"));
    assert!(with("model", text("bert")).contains("unsupported kind of tokenizer `bert`"));
    assert!(with("model", text("llama")).contains("`tokenizer.ggml.scores` is missing"));
    assert!(with("tokens", Value::U32(1)).contains("`tokenizer.ggml.tokens` is not an array"));
    assert!(with("merges", Value::Array(vec![text("nospace")])).contains("not a merge"));
    assert!(with("merges", Value::Array(vec![text("x nope")])).contains("do not fit"));
    assert!(with("token_type", Value::Array(vec![])).contains("0 token types for 37 tokens"));
    assert!(with("add_bos_token", Value::U32(1)).contains("neither true nor false"));

    let mut metadata = metadata();
    metadata.remove("tokenizer.ggml.bos_token_id");
    set(&mut metadata, "add_bos_token", Value::Bool(true));
    assert!(refused(&metadata).report().contains("adds a BOS token"));
}

/// A folder's `tokenizer.json` with the settings that files are found with.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = r#"{
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null,
                    "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"},
        "added_tokens": [
            {"id": 3, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
             "normalized": false, "special": true},
            {"id": 4, "content": "<|im_end|>", "single_word": false, "lstrip": false,
             "rstrip": false, "normalized": false, "special": true}],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                       {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "<s>": 3}, "merges": ["a b"]}
    }"#;
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer).unwrap();
    folder
}

#[test]
fn a_folders_tokenizer_neither_cuts_nor_pads() {
    let folder = folder();
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("ababab", true).unwrap(), [3, 2, 2, 2]);
    assert_eq!(tokenizer.encode("b<|im_end|>", false).unwrap(), [1, 4]);
    assert_eq!(tokenizer.decode(&[3, 2, 0, 4]).unwrap(), "aba");
    assert_eq!(tokenizer.vocabulary(), 5);
    assert_eq!(tokenizer.bos_token(), None);
}

#[test]
fn a_folders_ends_come_from_all_its_files() {
    let folder = folder();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let ends = || {
        let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
        (0..20)
            .filter(|id| tokenizer.is_end(*id))
            .collect::<Vec<_>>()
    };
    assert_eq!(ends(), [4]);
    write("generation_config.json", r#"{"eos_token_id": [7, 8]}"#);
    write("config.json", r#"{"eos_token_id": 6}"#);
    assert_eq!(ends(), [4, 6, 7, 8]);
    write(
        "tokenizer_config.json",
        r#"{"bos_token": null, "eos_token": {"content": "<s>"}}"#,
    );
    assert_eq!(ends(), [3, 4, 6, 7, 8]);
    let tokenizer = Tokenizer::from_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.eos_token(), Some("<s>"));

    write("config.json", "{");
    let error = Tokenizer::from_folder(folder.path()).err().unwrap();
    assert!(error.report().contains("config.json"), "{}", error.report());
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let error = Tokenizer::from_folder(folder.path()).err().unwrap();
    assert!(
        error.report().contains("tokenizer.json"),
        "{}",
        error.report()
    );
}

#[test]
fn an_added_token_whose_id_the_library_would_change_is_an_error() {
    let folder = folder();
    let path = folder.path().join("tokenizer.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace(r#""id": 4,"#, r#""id": 9,"#)).unwrap();
    let error = Tokenizer::from_folder(folder.path()).err().unwrap();
    assert_eq!(error.exit(), Exit::Preflight);
    assert!(
        error.report().contains("`<|im_end|>` has the id 9"),
        "{}",
        error.report()
    );
}

fn smollm2() -> Option<Tokenizer> {
    let path: PathBuf = test_model()?;
    let mut file = std::fs::File::open(path).unwrap();
    let content = candle_core::quantized::gguf_file::Content::read(&mut file).unwrap();
    Some(Tokenizer::from_gguf(&content.metadata).unwrap())
}

/// `smollm2_tokens.json` was made by two implementations that agree: a byte-pair encoder written
/// for this in Python, from the file's own vocabulary and merges, and llama.cpp (b11549).
#[test]
fn smollm2_is_encoded_as_llama_cpp_does_it() {
    let Some(tokenizer) = smollm2() else { return };
    let cases: Vec<(String, Vec<u32>)> =
        serde_json::from_str(include_str!("../testdata/smollm2_tokens.json")).unwrap();
    assert_eq!(cases.len(), 42);
    for (text, ids) in cases {
        assert_eq!(tokenizer.encode(&text, false).unwrap(), ids, "{text:?}");
        // SmolLM2 adds nothing.
        assert_eq!(tokenizer.encode(&text, true).unwrap(), ids, "{text:?}");
        let no_special = !text.contains("<|im_") && !text.contains("<|endoftext|>");
        // Six control characters and two unassigned planes have no token.
        let is_covered = !text.contains(['\u{1}', '\u{10FFFF}']) || text.is_empty();
        if no_special && is_covered {
            assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        }
    }
}

#[test]
fn smollm2s_facts() {
    let Some(tokenizer) = smollm2() else { return };
    assert_eq!(tokenizer.vocabulary(), 49_152);
    assert_eq!(tokenizer.bos_token(), Some("<|im_start|>"));
    assert_eq!(tokenizer.eos_token(), Some("<|im_end|>"));
    let ends: Vec<u32> = (0..49_152).filter(|id| tokenizer.is_end(*id)).collect();
    assert_eq!(ends, [0, 2]);
    assert_eq!(tokenizer.encode("<|im_end|>", false).unwrap(), [2]);
}

/// The target is 2 ms; the bound leaves room for a busy machine.
#[test]
fn a_prompt_is_encoded_in_milliseconds() {
    let Some(tokenizer) = smollm2() else { return };
    let code = "def total(items, rate=0.19):\n    \"\"\"Sum with VAT, café №7.\"\"\"\n    \
                return sum(i.price * i.count for i in items) * (1 + rate)  # 1234\n\n";
    let prompt = &code.repeat(20)[..2_700];
    let times: Vec<_> = (0..9)
        .map(|_| {
            let start = Instant::now();
            assert!(tokenizer.encode(prompt, false).unwrap().len() > 500);
            start.elapsed()
        })
        .collect();
    let best = times.iter().min().unwrap();
    assert!(best.as_millis() < 10, "{times:?}");
}
