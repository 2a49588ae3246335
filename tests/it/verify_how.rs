//! `how` of `verify` steps, end to end on the scripted engine.

use crate::common::{Printed, Workspace, run};

/// Runs one flow whose answer is checked in this way. `row` is the expected text.
fn check(how: &str, response: &str, expected: &str) -> (Workspace, Printed) {
    let workspace = Workspace::new();
    let template = format!(
        "schema = 1\nname = \"checked\"\nsuite = \"checked.suite.jsonl\"\n\
         [[step]]\nid = \"answer\"\nprompt = \"{{{{ row.problem }}}}\"\nmax_tokens = 50\n\
         [[step]]\nid = \"check\"\nkind = \"verify\"\nof = \"answer\"\n\
         question = \"{{{{ row.problem }}}}\"\nexpected = \"{{{{ row.answer }}}}\"\nhow = {how}\n"
    );
    workspace.write("templates/checked.toml", template);
    let row = serde_json::json!({"problem": "Which?", "answer": expected});
    workspace.write("templates/checked.suite.jsonl", format!("{row}\n"));
    let line = serde_json::json!({"step": "answer", "output": response});
    workspace.write("templates/checked.script.jsonl", format!("{line}\n"));
    let printed = run(workspace
        .scripted()
        .env("TEMPLATE", "checked")
        .env("NUM_FLOWS", "1"));
    (workspace, printed)
}

#[test]
fn answers_are_compared_as_the_template_says() {
    for (how, response, expected, outcome, score, answer) in [
        (
            r#""exact""#,
            "Paris\n",
            "Paris",
            "equal",
            Some(1.0),
            Some("Paris"),
        ),
        (
            r#""exact""#,
            "It is Paris",
            "Paris",
            "unequal",
            Some(0.0),
            Some("It is Paris"),
        ),
        (
            r#""contains""#,
            "It is Paris.",
            "Paris",
            "equal",
            Some(1.0),
            Some("Paris"),
        ),
        (
            r#""contains""#,
            "It is London.",
            "Paris",
            "no_answer",
            Some(0.0),
            None,
        ),
        (
            r#""regex""#,
            "id: 17",
            r"id: (\d+)",
            "equal",
            Some(1.0),
            Some("17"),
        ),
        (
            r#""choice""#,
            "Thus:\nAnswer: (B)",
            "B",
            "equal",
            Some(1.0),
            Some("B"),
        ),
        (
            r#""choice""#,
            "I take B today",
            "B",
            "no_answer",
            Some(0.0),
            None,
        ),
        (
            r#"{ choice = "lenient" }"#,
            "I take B today",
            "B",
            "equal",
            Some(1.0),
            Some("B"),
        ),
        (r#""choice""#, "B", "none of them", "undecided", None, None),
        (
            r#""numeric""#,
            "about 3.14",
            "3.1416",
            "unequal",
            Some(0.0),
            Some("3.14"),
        ),
        (
            r#"{ numeric = { relative = 0.01 } }"#,
            "about 3.14",
            "3.1416",
            "equal",
            Some(1.0),
            Some("3.14"),
        ),
        (
            r#""math""#,
            r"\boxed{1/2}",
            "0.5",
            "equal",
            Some(1.0),
            Some("1/2"),
        ),
    ] {
        let (workspace, printed) = check(how, response, expected);
        assert_eq!(printed.code, 0, "{how}: {}", printed.err);
        let steps = workspace.steps();
        let checked = steps.iter().find(|step| step["step"] == "check").unwrap();
        assert_eq!(checked["outcome"], outcome, "{how} {response}: {checked}");
        assert_eq!(checked["score"].as_f64(), score, "{how} {response}");
        assert_eq!(checked["answer"].as_str(), answer, "{how} {response}");
        let says_why = checked["detail"]
            .as_str()
            .is_some_and(|why| !why.is_empty());
        assert_eq!(says_why, outcome != "equal", "{how} {response}: {checked}");
    }
}

#[test]
fn what_is_no_way_to_compare_is_told_with_its_place() {
    for (how, told) in [
        (r#""regexp""#, "answers cannot be compared by `regexp`"),
        (
            r#"{ numeric = { relative = -1.0 } }"#,
            "a tolerance is a number of at least 0",
        ),
        (
            r#"{ choice = "loose" }"#,
            "expected a name, or a table of one name and its settings",
        ),
        (
            "3",
            "expected a name, or a table of one name and its settings",
        ),
    ] {
        let (workspace, printed) = check(how, "B", "B");
        assert_eq!(printed.code, 2, "{how}: {}", printed.err);
        assert!(printed.err.contains(told), "{how}: {}", printed.err);
        assert!(
            printed.err.contains("checked.toml:"),
            "{how}: {}",
            printed.err
        );
        assert!(printed.err.contains("hint: "), "{how}: {}", printed.err);
        assert!(!workspace.file("results").join("latest").exists());
    }
    // The pattern is the row's, and the run has not begun.
    let (_, printed) = check(r#""regex""#, "B", "(");
    assert_eq!(printed.code, 2, "{}", printed.err);
    assert!(
        printed
            .err
            .contains("flow 1, step check: the expected text is no pattern"),
        "{}",
        printed.err
    );
}
