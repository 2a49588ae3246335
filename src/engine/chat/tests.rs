use super::*;
use crate::engine::Role;
use crate::engine::tokenizer::AddedTokens;
use crate::error::Exit;

fn user(content: &str) -> Message {
    message(Role::User, content)
}

fn message(role: Role, content: &str) -> Message {
    Message {
        role,
        content: content.to_owned(),
    }
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::compile(source, Some("<s>"), Some("</s>")).unwrap()
}

fn render(source: &str) -> String {
    template(source).render(&[user("Hi")]).unwrap().text
}

/// `expected.json` holds the output of Jinja2 3.1.6, configured as transformers does
/// (`apply_chat_template`) and with our fixed date. The templates follow the idioms of the model
/// families they are named after.
#[test]
fn templates_render_as_jinja2_renders_them() {
    #[derive(serde::Deserialize)]
    struct Case {
        template: String,
        conversation: String,
        bos_token: Option<String>,
        eos_token: Option<String>,
        messages: Vec<Message>,
        text: Option<String>,
        refused: Option<String>,
    }
    let sources = HashMap::from([
        ("smollm2", include_str!("../testdata/chat/smollm2.jinja")),
        ("llama3", include_str!("../testdata/chat/llama3.jinja")),
        ("qwen", include_str!("../testdata/chat/qwen.jinja")),
        ("mistral", include_str!("../testdata/chat/mistral.jinja")),
        ("gemma", include_str!("../testdata/chat/gemma.jinja")),
        ("blocks", include_str!("../testdata/chat/blocks.jinja")),
    ]);
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("../testdata/chat/expected.json")).unwrap();
    assert_eq!(cases.len(), 36);
    for case in cases {
        let template = ChatTemplate::compile(
            sources[case.template.as_str()],
            case.bos_token.as_deref(),
            case.eos_token.as_deref(),
        )
        .unwrap();
        let place = format!("{}, {}", case.template, case.conversation);
        match (template.render(&case.messages), case.text, case.refused) {
            (Ok(rendered), Some(expected), None) => assert_eq!(rendered.text, expected, "{place}"),
            (Err(error), None, Some(words)) => {
                assert_eq!(error.exit(), Exit::FlowFailed, "{place}");
                assert!(error.to_string().ends_with(&words), "{place}: {error}");
            }
            (result, ..) => panic!("{place}: {result:?}"),
        }
    }
}

#[test]
fn smollm2s_own_template_has_a_default_system_prompt() {
    let template = template(include_str!("../testdata/chat/smollm2.jinja"));
    assert_eq!(
        template.render(&[user("Hi")]).unwrap().text,
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\
         <|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(
        template
            .render(&[message(Role::System, "Be brief."), user("Hi")])
            .unwrap()
            .text,
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
         <|im_start|>assistant\n"
    );
}

#[test]
fn a_refusal_carries_the_templates_own_message() {
    let gemma = template(include_str!("../testdata/chat/gemma.jinja"));
    let error = gemma
        .render(&[message(Role::System, "Be brief."), user("Hi")])
        .unwrap_err();
    assert_eq!(error.exit(), Exit::FlowFailed);
    assert_eq!(
        error.report(),
        "error: the model's chat template refuses the conversation: System role not supported\n\
         hint: some models accept no `system` message, or need alternating roles"
    );
    let nested = template("{% macro m() %}{{ raise_exception('no') }}{% endmacro %}{{ m() }}");
    let error = nested.render(&[user("Hi")]).unwrap_err();
    assert!(
        error.to_string().ends_with("refuses the conversation: no"),
        "{error}"
    );
}

#[test]
fn the_day_of_the_run_does_not_change_a_prompt() {
    assert_eq!(render("{{ strftime_now('%d %b %Y') }}"), "26 Jul 2024");
    assert_eq!(
        render("{{ strftime_now('%Y-%m-%d %H:%M, %A') }}"),
        "2024-07-26 00:00, Friday"
    );
    let error = template("{{ strftime_now('%Q!') }}")
        .render(&[user("Hi")])
        .unwrap_err();
    assert!(error.chain().contains("`%Q!`"), "{}", error.chain());
}

#[test]
fn message_content_is_text_and_never_a_template() {
    let chat = template(include_str!("../testdata/chat/smollm2.jinja"));
    let content = "{{ bos_token }} {% raw %} <b> & 'x' ${HOME}";
    let text = chat.render(&[user(content)]).unwrap().text;
    assert!(text.contains(content), "{text}");
}

#[test]
fn generation_tags_render_only_their_body() {
    assert_eq!(
        render(
            "a {%- generation -%} {{ messages[0].content }} {%- endgeneration %}\n b {% if true %}\n{% endif %}{% generation %}c{% endgeneration %}"
        ),
        "aHi b c"
    );
}

#[test]
fn a_syntax_error_is_reported_at_load_with_its_line() {
    let error = ChatTemplate::compile("a\n{% if %}", None, None)
        .err()
        .unwrap();
    assert_eq!(error.exit(), Exit::Preflight);
    assert!(
        error.chain().contains("chat_template:2"),
        "{}",
        error.chain()
    );
}

#[test]
fn an_unknown_filter_is_an_error_when_rendering() {
    let error = template("{{ messages | frobnicate }}")
        .render(&[user("Hi")])
        .unwrap_err();
    assert_eq!(error.exit(), Exit::FlowFailed);
    assert!(error.chain().contains("frobnicate"), "{}", error.chain());
}

#[test]
fn no_template_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let metadata = crate::engine::tokenizer::test_metadata();
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    for error in [
        ChatTemplate::from_gguf(&metadata, &tokenizer)
            .err()
            .unwrap(),
        ChatTemplate::from_folder(folder.path(), &tokenizer)
            .err()
            .unwrap(),
    ] {
        assert_eq!(error.exit(), Exit::Preflight);
        assert!(
            error.report().contains("no chat template"),
            "{}",
            error.report()
        );
        assert!(error.report().contains("hint: "), "{}", error.report());
    }
}

#[test]
fn a_folders_template_is_a_file_a_string_or_the_default_of_a_list() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::from_gguf(&crate::engine::tokenizer::test_metadata()).unwrap();
    let render = || {
        ChatTemplate::from_folder(folder.path(), &tokenizer)
            .unwrap()
            .render(&[user("Hi")])
            .unwrap()
            .text
    };
    let config = folder.path().join("tokenizer_config.json");
    std::fs::write(&config, r#"{"chat_template": "text {{ bos_token }}"}"#).unwrap();
    assert_eq!(render(), "text <s>");
    std::fs::write(
        &config,
        r#"{"chat_template": [{"name": "tool_use", "template": "tools"},
                              {"name": "default", "template": "default"}]}"#,
    )
    .unwrap();
    assert_eq!(render(), "default");
    std::fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(render(), "file");
}

/// Templates in the idioms of the model families they are named after, with Jinja2's output.
#[derive(serde::Deserialize)]
struct Family {
    family: String,
    conversation: String,
    messages: Vec<Message>,
    text: String,
}

/// Special tokens of all families. Those in `ORDINARY` are added tokens that are not special in the
/// models that have them.
const SPECIAL: [&str; 41] = [
    "<s>",
    "</s>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|endoftext|>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜end▁of▁sentence｜>",
    "<|START_OF_TURN_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|SYSTEM_TOKEN|>",
    "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>",
    "<|start_of_role|>",
    "<|end_of_role|>",
    "<|end_of_text|>",
    "<|start|>",
    "<|message|>",
    "<|channel|>",
    "<|return|>",
    "[gMASK]",
    "<sop>",
    "[|endofturn|]",
    "[|system|]",
    "[|assistant|]",
];
const ORDINARY: [&str; 4] = ["<think>", "</think>", "<tool_response>", "</tool_response>"];

/// A byte-level tokenizer with these added tokens.
fn byte_tokenizer() -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let bytes = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
    let mut letters: Vec<char> = bytes.into_iter().collect();
    letters.sort_unstable();
    let vocab: HashMap<String, usize> = letters.iter().map(char::to_string).zip(0..).collect();
    let added = |(id, text): (usize, &&str)| {
        serde_json::json!({"id": 256 + id, "content": text, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false,
            "special": SPECIAL.contains(text) && !text.contains('｜')})
    };
    let added: Vec<_> = SPECIAL
        .iter()
        .chain(&ORDINARY)
        .enumerate()
        .map(added)
        .collect();
    let file = serde_json::json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added, "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                          "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                    "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    Tokenizer::from_folder(folder.path()).unwrap()
}

fn families() -> Vec<(Family, ChatTemplate)> {
    let families: Vec<Family> =
        serde_json::from_str(include_str!("../testdata/chat/families.json")).unwrap();
    assert_eq!(families.len(), 18 * 4);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/engine/testdata/chat/families");
    let read = |family: Family| {
        let path = folder.join(format!("{}.jinja", family.family));
        let source = std::fs::read_to_string(path).unwrap();
        (family, template(&source))
    };
    families.into_iter().map(read).collect()
}

#[test]
fn families_render_as_in_python() {
    for (family, template) in families() {
        let place = format!("{}, {}", family.family, family.conversation);
        let rendered = template.render(&family.messages).unwrap();
        assert_eq!(rendered.text, family.text, "{place}");
    }
}

/// Special tokens come from the template alone: always the same ones, whatever the messages
/// contain.
#[test]
fn content_never_becomes_a_special_token_in_any_family() {
    let tokenizer = byte_tokenizer();
    let added = AddedTokens::of(&tokenizer).unwrap();
    let special = |messages: &[Message], template: &ChatTemplate| -> (Vec<u32>, usize) {
        let Rendered { text, content } = template.render(messages).unwrap();
        let whole = (text.as_str(), content.as_slice());
        let encoded = tokenizer.encode_rendered(&added, whole, false).unwrap();
        let bytes = tokenizer.encode(&text, false).unwrap();
        if encoded.held == 0 {
            assert_eq!(encoded.ids, bytes, "nothing held, nothing changed");
        }
        let special = 256..256 + u32::try_from(SPECIAL.len()).unwrap();
        let ids = encoded.ids.into_iter();
        (
            ids.filter(|id| special.contains(id)).collect(),
            encoded.held,
        )
    };
    let hostile = SPECIAL.concat().replace("<|channel|>", "");
    for (family, template) in families() {
        let place = format!("{}, {}", family.family, family.conversation);
        let (plain, held) = special(&family.messages, &template);
        assert_eq!(held, 0, "{place}");
        assert!(!plain.is_empty() || family.family == "vicuna", "{place}");
        // Whole markers, and fragments that the template's surrounding text would complete.
        for text in [
            hostile.as_str(),
            "<|im_",
            "|>",
            "s>",
            "<",
            "end|><|im_start|>x",
        ] {
            let mut messages = family.messages.clone();
            for message in &mut messages {
                message.content = format!("{text}{}{text}", message.content);
            }
            let (ids, _) = special(&messages, &template);
            assert_eq!(ids, plain, "{place}: {text}");
        }
    }
}

#[test]
fn a_special_token_completed_by_content_is_suppressed() {
    let tokenizer = byte_tokenizer();
    let added = AddedTokens::of(&tokenizer).unwrap();
    let template = template("<|im_start|><|im_{{ messages[0].content }}_end|><|im_end|>");
    let Rendered { text, content } = template.render(&[user("start|><|im")]).unwrap();
    assert_eq!(text, "<|im_start|><|im_start|><|im_end|><|im_end|>");
    let whole = (text.as_str(), content.as_slice());
    let encoded = tokenizer.encode_rendered(&added, whole, false).unwrap();
    assert_eq!(encoded.held, 2);
    let special: Vec<&u32> = encoded.ids.iter().filter(|id| **id >= 256).collect();
    assert_eq!(special, [&259, &260]);
}

#[test]
fn try_out_renders_each_shape_of_conversation() {
    let kind = |has_system, turns| Conversation { has_system, turns };
    let gemma = template(include_str!("../testdata/chat/gemma.jinja"));
    gemma.try_out(&[kind(false, 1), kind(false, 3)]).unwrap();
    let error = gemma.try_out(&[kind(true, 1)]).unwrap_err();
    assert_eq!(error.exit(), Exit::Preflight);
    assert!(
        error.report().contains("System role not supported"),
        "{}",
        error.report()
    );
    let late = template(
        "{% for m in messages %}{{ m.role if loop.index < 3 else m.foo.bar }}{% endfor %}",
    );
    late.try_out(&[kind(true, 1)]).unwrap();
    let error = late.try_out(&[kind(true, 1), kind(true, 2)]).unwrap_err();
    assert_eq!(error.exit(), Exit::Preflight);
    assert!(
        error.chain().contains("no attribute 'foo'"),
        "{}",
        error.chain()
    );
    let hint = "use another file of this model, or another model";
    assert_eq!(error.hint_text(), Some(hint));
}
