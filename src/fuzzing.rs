//! What is fuzzed: a function per target, which panics if one of its laws does not hold.
//!
//! It is compiled for tests and for `fuzz/` only (`docs/reliability.md`), and stands above all layers: a target
//! may use any of them. Where the laws need a room's own types, they are in a `fuzzing.rs` of that room.
//!
//! An input of several files has them separated by [`SEPARATOR`].

mod flows;
mod folder;
mod records;

#[cfg(test)]
mod tests;

use crate::engine::fuzzing as engine;
use crate::evaluate::{program, verify};

use folder::Folder;

/// Between the files of an input.
pub const SEPARATOR: &[u8] = b"\n=====\n";

/// A target's name, and the function that panics if a law does not hold.
pub type Target = (&'static str, fn(&[u8]));

/// The targets, in the order of `docs/reliability.md`.
pub const TARGETS: &[Target] = &[
    ("gguf", gguf),
    ("safetensors", safetensors),
    ("vocabulary", engine::vocabulary),
    ("tokenizer", tokenizer),
    ("text", text),
    ("jinja", jinja),
    ("sse", engine::stream),
    ("template", flows::template),
    ("suite", flows::suite),
    ("expression", expression),
    ("flow", flows::flow),
    ("cache", flows::cache),
    ("records", records::records),
    ("history", records::history),
    ("script", script),
    ("answer", answer),
];

/// Runs the target of that name.
///
/// # Panics
/// If there is none, or a law does not hold.
pub fn run(target: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|(name, _)| *name == target);
    let (_, run) = found.expect("a target of this name");
    run(data);
}

/// The files of an input; those that it lacks are empty.
fn files<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut rest = data;
    std::array::from_fn(|index| {
        let end = rest
            .windows(SEPARATOR.len())
            .position(|window| window == SEPARATOR)
            .filter(|_| index + 1 < N);
        match end {
            Some(end) => {
                let file = &rest[..end];
                rest = &rest[end + SEPARATOR.len()..];
                file
            }
            None => std::mem::take(&mut rest),
        }
    })
}

fn utf8(data: &[u8]) -> String {
    String::from_utf8_lossy(data).into_owned()
}

fn gguf(data: &[u8]) {
    engine::gguf(data, Folder::new().path());
}

fn safetensors(data: &[u8]) {
    let [config, weights, index] = files(data);
    let folder = Folder::new();
    folder.write("config.json", config);
    folder.write("model.safetensors", weights);
    if !index.is_empty() {
        folder.write("model.safetensors.index.json", index);
    }
    engine::safetensors(folder.path());
}

fn tokenizer(data: &[u8]) {
    let [tokenizer, config, text] = files(data);
    let folder = Folder::new();
    folder.write("tokenizer.json", tokenizer);
    if !config.is_empty() {
        folder.write("tokenizer_config.json", config);
    }
    engine::tokenizer(folder.path(), &utf8(text));
}

fn text(data: &[u8]) {
    let folder = Folder::new();
    let tokenizer = include_bytes!("../fuzz/kept/bytes.tokenizer.json");
    folder.write("tokenizer.json", tokenizer);
    engine::text(folder.path(), &utf8(data));
}

fn jinja(data: &[u8]) {
    let [source, content] = files(data);
    engine::jinja(&utf8(source), &utf8(content));
}

fn expression(data: &[u8]) {
    let text = utf8(data);
    if !asks_for_gigabytes(&text) {
        crate::flow::fuzzing::expression(&text);
    }
}

/// Whether a template may repeat a list up to minijinja's own limit, 100 million elements, which take more memory
/// than a fuzzer should. `flow::limits` cannot limit an operator.
fn asks_for_gigabytes(template: &str) -> bool {
    let mut numbers = template.split(|c: char| !c.is_ascii_digit());
    template.contains('*') && numbers.any(|number| number.len() > 6)
}

fn script(data: &[u8]) {
    engine::script(&utf8(data));
}

/// An answer and the expected one. A text is never unlike itself.
fn answer(data: &[u8]) {
    let [answer, expected] = files(data);
    let (answer, expected) = (utf8(answer), utf8(expected));
    let _ = program::of_answer(&answer, &["solve"]);
    let _ = (verify::given_answer(&answer), verify::last_boxed(&answer));
    let _ = verify::compare(&answer, &expected);
    let same = verify::compare(&expected, &expected);
    assert_ne!(same, verify::Verdict::Unequal, "{expected}");
}
