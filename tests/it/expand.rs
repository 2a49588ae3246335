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
