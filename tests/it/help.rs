//! The help texts, as a user reads them.

use crate::common::{Workspace, run};

#[test]
fn help_texts() {
    let workspace = Workspace::new();
    for arguments in [
        &["--help"][..],
        &["run", "--help"],
        &["calibrate", "--help"],
        &["expand", "--help"],
        &["diagnose", "--help"],
        &["report", "--help"],
        &["ab", "--help"],
        &["compare", "--help"],
        &["history", "--help"],
        &["export", "--help"],
        &["serve", "--help"],
        &["merge", "--help"],
        &["init", "--help"],
        &["doctor", "--help"],
        &["model", "--help"],
        &["model", "fetch", "--help"],
        &["bench-engine", "--help"],
    ] {
        let printed = run(&mut workspace.flowbench(arguments));
        assert_eq!(printed.code, 0);
        let name = arguments.join("_").replace('-', "");
        insta::assert_snapshot!(name, printed.out);
    }
}

#[test]
fn version_and_mistakes() {
    let workspace = Workspace::new();
    let version = run(&mut workspace.flowbench(&["--version"]));
    assert_eq!(
        version.out,
        format!("flowbench {}\n", env!("CARGO_PKG_VERSION"))
    );
    for arguments in [
        &[][..],
        &["rnu"],
        &["run", "--no-such-flag"],
        &["run", "surplus"],
    ] {
        let printed = run(&mut workspace.flowbench(arguments));
        assert_eq!(printed.code, 2, "{arguments:?}");
        assert_eq!(printed.out, "");
    }
}
