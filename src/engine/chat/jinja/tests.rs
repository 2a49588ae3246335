use super::*;

#[derive(serde::Deserialize)]
struct Case {
    template: String,
    text: Option<String>,
    error: Option<String>,
}

const MESSAGES: [(&str, &str); 4] = [
    ("system", "  Be brief.\n"),
    ("user", "Hi <b> & 'x' \"y\" é\t😀"),
    ("assistant", "<think>\nhm\n</think>\n\nHello."),
    ("user", "Bye\n"),
];

fn render(source: &str) -> Result<Text, Failure> {
    let turns = MESSAGES.map(|(role, content)| Turn { role, content });
    Template::parse(source)?.render(&turns, &[("bos_token", "<s>"), ("eos_token", "</s>")])
}

/// `python.json` is written by `scripts/jinja-expected.py`, with Jinja2 3.1.6 configured as
/// transformers does.
#[test]
fn templates_render_as_in_python() {
    let cases: Vec<Case> =
        serde_json::from_str(include_str!("../../testdata/chat/python.json")).unwrap();
    assert!(cases.len() > 500);
    let mut wrong = Vec::new();
    for case in cases {
        let rendered = render(&case.template);
        let is_right = match (&rendered, &case.text, &case.error) {
            (Ok(text), Some(expected), _) => text.as_str() == expected,
            (Err(_), None, Some(_)) => true,
            _ => false,
        };
        if !is_right {
            let expected = case.text.or(case.error);
            let rendered = rendered.map(|text| text.as_str().to_owned());
            wrong.push(format!(
                "{:?}\n  expected {expected:?}\n  rendered {rendered:?}",
                case.template
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn a_failure_reports_its_line() {
    let place = |source: &str| render(source).unwrap_err().to_string();
    assert_eq!(
        place("a\n\n{{ foo.bar }}"),
        "'foo' is undefined (chat_template:3)"
    );
    assert_eq!(
        place("{% for m in messages %}\n{% if m.nothing.x %}{% endif %}{% endfor %}"),
        "'dict object' has no attribute 'nothing' (chat_template:2)"
    );
    assert_eq!(
        place("\n{% frobnicate %}"),
        "unknown tag `frobnicate` (chat_template:2)"
    );
    assert_eq!(
        place("{% for x in [1] %}\n"),
        "`{% endfor %}` is missing (chat_template:1)"
    );
    assert_eq!(
        place("{{ 1\n+ }}"),
        "expected an expression, found `}}` (chat_template:2)"
    );
}

/// The rendered text with its content in `⟨⟩`.
fn marked(source: &str) -> String {
    let (text, content) = render(source).unwrap().into_parts();
    let mut marked = String::new();
    let mut end = 0;
    for range in content {
        assert!(range.start >= end && !range.is_empty());
        marked.push_str(&text[end..range.start]);
        marked.push_str(&format!("⟨{}⟩", &text[range.clone()]));
        end = range.end;
    }
    marked + &text[end..]
}

#[test]
fn content_is_tracked_through_every_operation() {
    let with = |expression: &str| {
        let set = "{% set sys = messages[0].content %}{% set said = messages[2].content %}";
        marked(&format!("{set}[{{{{ {expression} }}}}]"))
    };
    for (expression, expected) in [
        ("sys", "[⟨  Be brief.\n⟩]"),
        ("sys | trim", "[⟨Be brief.⟩]"),
        ("sys.strip() ~ eos_token", "[⟨Be brief.⟩</s>]"),
        ("'<s>' + sys.strip()[3:] + '</s>'", "[<s>⟨brief.⟩</s>]"),
        ("sys.strip().upper()", "[⟨BE BRIEF.⟩]"),
        ("sys.strip() | title", "[⟨Be Brief.⟩]"),
        ("sys.strip() | replace('brief', 'BRIEF')", "[⟨Be ⟩BRIEF⟨.⟩]"),
        ("'a x b'.replace('x', sys.strip())", "[a ⟨Be brief.⟩ b]"),
        ("said.split('</think>')[-1].lstrip('\\n')", "[⟨Hello.⟩]"),
        (
            "said.split('</think>')[0].split('<think>')[-1].strip()",
            "[⟨hm⟩]",
        ),
        (
            "said.partition('</think>') | join('|')",
            "[⟨<think>\nhm\n⟩|⟨</think>⟩|⟨\n\nHello.⟩]",
        ),
        ("'%s: %s' % ('x', sys.strip())", "[x: ⟨Be brief.⟩]"),
        ("'{}-{}'.format('x', sys.strip())", "[x-⟨Be brief.⟩]"),
        ("sys.strip() | tojson", "[\"⟨Be brief.⟩\"]"),
        ("[sys.strip()]", "[['⟨Be brief.⟩']]"),
        ("sys.strip() | e", "[⟨Be brief.⟩]"),
        ("sys.strip() | list | join", "[⟨Be brief.⟩]"),
        ("sys.strip()[::-1]", "[⟨.feirb eB⟩]"),
        ("(sys.strip() ~ '\\nx') | indent(1)", "[⟨Be brief.⟩\n x]"),
        ("sys.strip() | wordwrap(4)", "[⟨Be\nbrie\nf.⟩]"),
        ("sys.strip().center(13, '-')", "[--⟨Be brief.⟩--]"),
        (
            "messages | map(attribute='content') | map('trim') | last",
            "[⟨Bye⟩]",
        ),
        ("sys | length", "[12]"),
        ("sys.strip() == 'Be brief.' and sys in sys", "[True]"),
    ] {
        assert_eq!(with(expression), expected, "{expression}");
    }
    assert_eq!(
        marked(
            "{% macro m(x) %}<{{ x }}>{% endmacro %}{% set y %}{{ m(messages[3].content) }}{% endset %}{% filter upper %}{{ y }}{% endfilter %}"
        ),
        "<⟨BYE\n⟩>"
    );
    assert_eq!(marked("{{ messages[0].role }}{{ bos_token }}"), "system<s>");
}

#[test]
fn runaway_templates_are_errors() {
    let doubling = "{% set ns = namespace(x='ab') %}{% for i in range(99999) %}{% set ns.x = ns.x + ns.x %}{% endfor %}";
    let nested = "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}";
    let wide = "{{ range(99999) | map('center', 90000) | join }}";
    for (source, expected) in [
        (doubling, "too much text"),
        (nested, "nested too deeply"),
        (wide, "too much text"),
        ("{{ 'ab' * 99999999999 }}", "too much text"),
        ("{{ [1] * 99999999999 }}", "too much text"),
        ("{{ ['x' * 1000000] * 1000 }}", "too much text"),
        ("{{ '%99999999999d' % 1 }}", "too wide"),
        ("{{ 2 ** 64 }}", "too large"),
        ("{{ 1e100 | int }}", "too large"),
        ("{{ '99999999999999999999' | int }}", "too large"),
        ("{{ 9223372036854775807 + 1 }}", "too large"),
        ("{{ 'a\\nb' | indent(99999999999) }}", "too much text"),
        (
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            "calls itself too often",
        ),
        (
            "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
            "calls itself too often",
        ),
    ] {
        let error = render(source).unwrap_err();
        assert!(error.to_string().contains(expected), "{source}: {error}");
    }
    for source in [
        format!(
            "{}1{}",
            "{{ (".to_owned() + &"(".repeat(5000),
            ")".repeat(5001) + " }}"
        ),
        format!("{{{{ {}1 }}}}", "-".repeat(5000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(5000)),
        format!("{{{{ {}{} }}}}", "[".repeat(5000), "]".repeat(5000)),
        "{% if true %}".repeat(5000) + &"{% endif %}".repeat(5000),
    ] {
        let error = render(&source).unwrap_err();
        assert!(error.to_string().contains("nested too deeply"), "{error}");
    }
    // Long is not the same as deep.
    assert!(render(&format!("{{{{ {}'' }}}}", "'a' + ".repeat(1000))).is_ok());
    assert!(render(&format!("{{{{ ''{} }}}}", " | trim".repeat(5000))).is_ok());
}

#[test]
fn random_templates_do_not_panic() {
    use proptest::prelude::*;
    let words = [
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "-%}",
        "{%-",
        "for",
        "in",
        "if",
        "else",
        "endif",
        "endfor",
        "set",
        "messages",
        "content",
        "[",
        "]",
        "(",
        ")",
        "'",
        "\"",
        ".",
        "|",
        "~",
        "+",
        "%",
        "*",
        "x",
        "1",
        "-1",
        "trim",
        "raw",
        "endraw",
        " ",
        "\n",
        "is",
        "not",
        "defined",
        ":",
        ",",
        "=",
        "é",
        "\\",
        "macro",
        "endmacro",
        "m",
        "namespace",
        "split",
        "{",
        "}",
    ];
    let template = proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..24);
    proptest!(ProptestConfig::with_cases(2000), |(parts in template)| {
        let _ = render(&parts.concat());
        let _ = render(&format!("{{{{ {} }}}}", parts.join(" ")));
    });
}
