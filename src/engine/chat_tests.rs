use super::*;
use crate::engine::Role;
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
    template(source).render(&[user("Hi")]).unwrap()
}

/// `expected.json` is what Jinja2 3.1.6 makes of these templates, in an environment set up as
/// transformers does it (`apply_chat_template`) and with our date. The templates are in the idioms
/// of the families that they are named after.
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
        ("smollm2", include_str!("testdata/chat/smollm2.jinja")),
        ("llama3", include_str!("testdata/chat/llama3.jinja")),
        ("qwen", include_str!("testdata/chat/qwen.jinja")),
        ("mistral", include_str!("testdata/chat/mistral.jinja")),
        ("gemma", include_str!("testdata/chat/gemma.jinja")),
        ("blocks", include_str!("testdata/chat/blocks.jinja")),
    ]);
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("testdata/chat/expected.json")).unwrap();
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
            (Ok(text), Some(expected), None) => assert_eq!(text, expected, "{place}"),
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
    let template = template(include_str!("testdata/chat/smollm2.jinja"));
    assert_eq!(
        template.render(&[user("Hi")]).unwrap(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\
         <|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(
        template
            .render(&[message(Role::System, "Be brief."), user("Hi")])
            .unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
         <|im_start|>assistant\n"
    );
}

#[test]
fn a_refusal_is_told_in_the_templates_own_words() {
    let gemma = template(include_str!("testdata/chat/gemma.jinja"));
    let error = gemma
        .render(&[message(Role::System, "Be brief."), user("Hi")])
        .unwrap_err();
    assert_eq!(error.exit(), Exit::FlowFailed);
    assert_eq!(
        error.report(),
        "error: the model's chat template refuses the conversation: System role not supported\n\
         hint: some models take no `system` message, or want user and assistant in turn"
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
    let chat = template(include_str!("testdata/chat/smollm2.jinja"));
    let content = "{{ bos_token }} {% raw %} <b> & 'x' ${HOME}";
    let text = chat.render(&[user(content)]).unwrap();
    assert!(text.contains(content), "{text}");
}

#[test]
fn generation_marks_are_passed_over() {
    assert_eq!(
        render(
            "a {%- generation -%} {{ messages[0].content }} {%- endgeneration %}\n b {% if true %}\n{% endif %}{% generation %}c{% endgeneration %}"
        ),
        "aHi b c"
    );
    assert_eq!(without_generation_blocks("a {% unclosed"), "a {% unclosed");
}

#[test]
fn a_broken_template_is_an_error_at_load_with_its_place() {
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
fn what_the_renderer_does_not_know_is_an_error_when_it_is_met() {
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
fn a_folders_template_is_a_file_a_text_or_the_default_of_a_list() {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::from_gguf(&crate::engine::tokenizer::test_metadata()).unwrap();
    let render = || {
        ChatTemplate::from_folder(folder.path(), &tokenizer)
            .unwrap()
            .render(&[user("Hi")])
            .unwrap()
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
