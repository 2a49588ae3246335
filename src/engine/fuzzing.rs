//! Fuzz targets of what an engine reads: model files, tokenizers, chat templates, streams.

use std::path::Path;

use super::chat;
use super::load::gguf;
use super::load::safetensors::SafetensorsFolder;
use super::model;
use super::remote;
use super::tokenizer::{AddedTokens, Tokenizer};
use crate::engine::Script;

/// Text that meets most of what a tokenizer does: spaces, digits, combining and wide characters, a control
/// character, the text of a special token.
const SAMPLE: &str =
    "Hello  wörld, it's 2024!\r\n\t e\u{301} 日本語 \u{1f600}\u{200d} \0 <s>[INST]</s>";

/// A GGUF file in `folder`: the header's sizes lie within the file; if it is complete, the model is described.
pub(crate) fn gguf(data: &[u8], folder: &Path) {
    if !gguf::fuzzing::is_complete(data) {
        return;
    }
    let path = folder.join("model.gguf");
    std::fs::write(&path, data).expect("a temporary folder");
    let _ = model::inspect(&path);
}

/// The vocabulary in a GGUF file's metadata.
pub(crate) fn vocabulary(data: &[u8]) {
    let Some(metadata) = gguf::fuzzing::metadata(data) else {
        return;
    };
    if let Ok(tokenizer) = Tokenizer::from_gguf(&metadata) {
        tokenize(&tokenizer, SAMPLE);
        let _ = chat::ChatTemplate::find_in_gguf(&metadata, &tokenizer);
    }
}

/// A model folder. The bytes of each tensor are those of its shape.
pub(crate) fn safetensors(folder: &Path) {
    let Ok(opened) = SafetensorsFolder::open(folder) else {
        return;
    };
    let names: Vec<String> = opened.tensor_names().map(str::to_owned).collect();
    for name in &names {
        let (dtype, shape, bytes) = opened.stored(name).expect("the tensor is listed");
        let width = match dtype {
            "F64" | "I64" | "U64" => 8,
            "F32" | "I32" | "U32" => 4,
            "F16" | "BF16" | "I16" | "U16" => 2,
            "I8" | "U8" | "BOOL" => 1,
            _ => continue,
        };
        let elements = shape.iter().product::<usize>();
        assert_eq!(elements * width, bytes.len(), "{name}");
        let _ = opened.tensor(name);
    }
    let _ = model::inspect(folder);
}

/// The tokenizer of a model folder, on `text`.
pub(crate) fn tokenizer(folder: &Path, text: &str) {
    if let Ok(tokenizer) = Tokenizer::from_folder(folder) {
        tokenize(&tokenizer, text);
        let _ = chat::ChatTemplate::find_in_folder(folder, &tokenizer);
    }
}

/// Ids are in the vocabulary, and content becomes no control token.
fn tokenize(tokenizer: &Tokenizer, text: &str) {
    for add_special in [false, true] {
        if let Ok(ids) = tokenizer.encode(text, add_special) {
            let _ = tokenizer.decode(&ids);
        }
    }
    let few: Vec<u32> = (0..200).chain([u32::MAX]).collect();
    let _ = tokenizer.decode(&few);
    for id in few {
        let _ = (tokenizer.token_text(id), tokenizer.is_end(id));
    }
    if let Ok(added) = AddedTokens::of(tokenizer) {
        let content = std::iter::once(0..text.len()).collect::<Vec<_>>();
        let _ = tokenizer.encode_rendered(&added, (text, &content), false);
    }
}

/// Any text, as message content, survives a byte-level tokenizer in `folder` that has every byte.
pub(crate) fn text(folder: &Path, text: &str) {
    let tokenizer = Tokenizer::from_folder(folder).expect("a sound tokenizer");
    let added = AddedTokens::of(&tokenizer).expect("few tokens");
    let content = match text.len() {
        0 => Vec::new(),
        length => std::iter::once(0..length).collect::<Vec<_>>(),
    };
    let encoded = tokenizer.encode_rendered(&added, (text, &content), false);
    let ids = encoded.expect("any text is encoded").ids;
    assert_eq!(tokenizer.decode(&ids).expect("its own tokens"), text);
}

/// A server's stream; its first byte says how it is cut.
pub(crate) fn stream(data: &[u8]) {
    remote::fuzzing::stream(data);
}

/// A model's chat template, with message content.
pub(crate) fn jinja(source: &str, content: &str) {
    chat::fuzzing::render(source, content);
}

/// Recorded answers.
pub(crate) fn script(text: &str) {
    let _ = Script::parse(text, "script.jsonl");
}
