//! `flowbench expand`, end to end.

use crate::common::{Workspace, run};

#[test]
fn expand_then_check() {
    let workspace = Workspace::new();
    let expand = |arguments: &[&str]| {
        let mut command = workspace.flowbench(&["expand", "--template", "chain"]);
        run(command.args(arguments))
    };
    let before = expand(&["--check"]);
    assert_eq!(before.code, 99);
    assert!(!workspace.file("flows").exists(), "--check writes nothing");

    let cold = expand(&["--num-flows", "4"]);
    insta::assert_snapshot!(cold.redacted(&workspace));
    assert_eq!(expand(&["--num-flows", "4", "--check"]).code, 0);
    assert_eq!(expand(&["--num-flows", "5", "--check"]).code, 99);
    assert!(expand(&["--num-flows", "4"]).err.contains("Using cached"));

    let flow: serde_json::Value =
        serde_json::from_str(&workspace.read("flows/_expanded_00001.json")).expect("JSON");
    assert!(
        flow["system"]
            .as_str()
            .is_some_and(|text| text.contains("return '${HOME} {{x}}'")),
        "fixture text stays as it is"
    );

    let altered = workspace
        .read("flows/_expanded_00002.json")
        .replace("names", "games");
    workspace.write("flows/_expanded_00002.json", altered);
    let printed = expand(&["--num-flows", "4", "--check"]);
    assert_eq!(printed.code, 99);
    assert!(printed.out.contains("file altered"), "{}", printed.out);
}

#[test]
fn every_template_that_is_shipped_expands() {
    let workspace = Workspace::new();
    let root = env!("CARGO_MANIFEST_DIR");
    let copy = |from: &str| {
        let status = std::process::Command::new("cp")
            .args(["-r", &format!("{root}/{from}"), "."])
            .current_dir(workspace.path())
            .status();
        assert!(status.is_ok_and(|status| status.success()));
    };
    copy("templates");
    copy("fixtures");
    for template in ["three_step", "three_step_full"] {
        let mut command = workspace.flowbench(&["expand", "--template", template]);
        let printed = run(&mut command);
        assert_eq!(printed.code, 0, "{}", printed.err);
        let flows = std::fs::read_dir(workspace.file("flows")).expect("expanded");
        let count = flows
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.starts_with("_expanded_"))
            .count();
        assert_eq!(count, 25);
    }
}

/// The value of `key` in the line of stdout that begins with `start`.
fn value(out: &str, start: &str, key: &str) -> String {
    let line = out.lines().find(|line| line.starts_with(start));
    let line = line.unwrap_or_else(|| panic!("no {start} in {out}"));
    let words = line.split(' ').filter_map(|word| word.split_once('='));
    let found = words.into_iter().find(|(name, _)| *name == key);
    found
        .unwrap_or_else(|| panic!("no {key} in {line}"))
        .1
        .to_owned()
}

fn number(out: &str, start: &str, key: &str) -> f64 {
    value(out, start, key)
        .trim_end_matches('%')
        .parse()
        .expect("a number")
}

#[test]
fn the_cost_of_an_edit_is_known_before_a_run() {
    let workspace = Workspace::new();
    let expand = |arguments: &[&str]| {
        let mut command = workspace.flowbench(&["expand", "--template", "chain"]);
        run(command.args(arguments))
    };
    let nothing = expand(&["--cost"]);
    assert_eq!((nothing.code, nothing.err.as_str()), (0, ""));
    assert!(!workspace.file("flows").exists(), "--cost writes nothing");
    assert!(
        nothing.out.contains("prompt_bytes_before=null"),
        "{}",
        nothing.out
    );
    assert!(
        nothing.out.contains("(flows/ has no earlier expansion"),
        "{}",
        nothing.out
    );
    assert!(
        nothing
            .out
            .contains("[COST] tokens=null (no rates: results holds no run"),
        "{}",
        nothing.out
    );

    assert_eq!(run(&mut workspace.scripted()).code, 0);
    let same = expand(&["--cost"]).out;
    assert!(!same.contains("changed_at"), "{same}");
    for key in ["prompt_bytes", "reusable_bytes"] {
        let of = |when: &str| number(&same, "[COST] step=planner", &format!("{key}_{when}"));
        assert_eq!(of("before"), of("after"), "{same}");
    }
    // By the rates of the run, the run itself.
    let tokens = workspace.record()["totals"]["prefill_tokens"]
        .as_f64()
        .expect("a count");
    assert_eq!(
        number(&same, "[COST] prefill_tokens", "prefill_tokens_before"),
        tokens,
        "{same}"
    );

    // The row comes first: nothing of the system message is shared any more.
    let template =
        crate::common::TEMPLATE.replace("You review code:", "{{ row.id }}: you review code:");
    workspace.write("templates/chain.toml", template);
    let before = workspace.read("flows/_expanded_00001.json");
    let edited = expand(&["--cost"]);
    assert_eq!(edited.code, 0, "{}", edited.err);
    for step in ["planner", "executor", "verifier"] {
        let start = format!("[COST] step={step} ");
        assert_eq!(
            value(&edited.out, &start, "changed_at"),
            "0",
            "{}",
            edited.out
        );
        assert_eq!(value(&edited.out, &start, "message"), "system");
    }
    let share = |when: &str| number(&edited.out, "[COST] flows", &format!("reusable_{when}"));
    assert!(share("after") < share("before"), "{}", edited.out);
    let tokens = |when: &str| {
        number(
            &edited.out,
            "[COST] prefill_tokens",
            &format!("prefill_tokens_{when}"),
        )
    };
    assert!(tokens("after") > tokens("before"), "{}", edited.out);
    assert!(
        edited.out.trim_end().ends_with("(estimated)"),
        "{}",
        edited.out
    );
    assert_eq!(workspace.read("flows/_expanded_00001.json"), before);

    // An ordinary expansion says it in a line, once.
    let written = expand(&[]);
    assert_eq!(
        written.count("[COST] flows_before=3 flows_after=3 "),
        1,
        "{}",
        written.out
    );
    assert_eq!(expand(&[]).count("[COST]"), 0);
    assert_eq!(expand(&["--cost", "--check"]).code, 2);
}

#[test]
fn the_cost_names_the_message_that_changed() {
    let workspace = Workspace::new();
    let cost = || {
        let printed = run(&mut workspace.flowbench(&["expand", "--template", "chain", "--cost"]));
        assert_eq!(printed.code, 0, "{}", printed.err);
        printed.out
    };
    let edit = |from: &str, to: &str| {
        let template = crate::common::TEMPLATE.replace(from, to);
        assert_ne!(template, crate::common::TEMPLATE);
        workspace.write("templates/chain.toml", template);
    };
    assert_eq!(
        run(&mut workspace.flowbench(&["expand", "--template", "chain"])).code,
        0
    );
    edit("You review code:", "You review the code:");
    let out = cost();
    assert_eq!(
        value(&out, "[COST] step=planner", "changed_at"),
        "11",
        "{out}"
    );
    assert_eq!(value(&out, "[COST] step=planner", "message"), "system");
    // The rows' tasks begin alike.
    edit("{{ row.task }}", "Task: {{ row.task }}");
    let out = cost();
    assert_eq!(
        value(&out, "[COST] step=planner", "changed_at"),
        "0",
        "{out}"
    );
    assert_eq!(value(&out, "[COST] step=planner", "message"), "user");
    // A step that is gone, and another one.
    edit("id = \"verifier\"", "id = \"checker\"");
    let out = cost();
    assert_eq!(
        value(&out, "[COST] step=checker", "prompt_bytes_before"),
        "null",
        "{out}"
    );
    assert_eq!(
        value(&out, "[COST] step=verifier", "prompt_bytes_after"),
        "0",
        "{out}"
    );
    // Flows of another template are not compared with.
    workspace.write(
        "templates/other.toml",
        crate::common::TEMPLATE.replace("\"chain\"", "\"other\""),
    );
    let printed = run(&mut workspace.flowbench(&["expand", "--template", "other", "--cost"]));
    assert!(
        printed.out.contains("flows_before=null"),
        "{}{}",
        printed.out,
        printed.err
    );
}
