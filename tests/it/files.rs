//! What is read and what is written: files that are no files, marks at their start, numbers of rows,
//! outputs onto inputs, disks that are full, and what is shown of text from elsewhere.

use std::fs;
use std::path::Path;

use crate::common::{Workspace, run};

/// Lines of three steps for every flow, of which the first says `text`.
fn says(text: &str) -> String {
    let line = serde_json::json!({"output": text, "latency_ms": 1});
    format!("{line}\n")
}

#[test]
fn text_from_elsewhere_does_nothing_to_a_terminal() {
    let workspace = Workspace::new();
    let evil = "\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}1m\u{202e}\n[TIMING] benchmark_total_ms=1.00";
    workspace.write("templates/chain.script.jsonl", says(evil));
    let shown = run(workspace
        .scripted()
        .env("NUM_FLOWS", "1")
        .arg("--show-output"));
    assert_eq!(shown.code, 0, "{}", shown.err);
    let line =
        "| \\x1b[2J\\x1b]0;owned\\x07\\u{9b}1m\\u{202e}\n| [TIMING] benchmark_total_ms=1.00\n";
    assert!(shown.err.contains(line), "{}", shown.err);

    let fails = serde_json::json!({"fail": "\u{1b}[31mred\n[TIMING] avg_workflow_ms=1.00"});
    workspace.write("templates/chain.script.jsonl", format!("{fails}\n"));
    let failed = run(workspace.scripted().env("NUM_FLOWS", "1"));
    assert_eq!(failed.code, 4, "{}", failed.err);
    assert!(
        failed.err.contains("\\x1b[31mred\n    [TIMING]"),
        "{}",
        failed.err
    );

    for (name, value) in [
        ("TEMPLATE", "\u{1b}[31mx"),
        ("MODE", "\u{1b}[31mx"),
        ("SCRIPT", "\u{1b}[31mx"),
        ("STATS_ADDR", "\u{1b}[31mx"),
    ] {
        let wrong = run(workspace.scripted().env(name, value));
        assert_eq!(wrong.code, 2, "{name}: {}", wrong.err);
        let printed = wrong.err.clone() + &wrong.out;
        assert!(printed.contains("x1b[31mx"), "{name}: {printed}");
        let active = |c: char| c.is_control() && c != '\n';
        assert!(!printed.contains(active), "{name}: {printed:?}");
    }
}

/// Names of a server's models and the like are no markup in Markdown.
#[test]
fn text_from_elsewhere_is_no_markdown() {
    let workspace = Workspace::new();
    let printed = run(workspace.scripted().env("NUM_FLOWS", "1"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let evil = "m<b> it's [a](http://b) ![c](d) | `e` **f** @user \u{1b}[31mR\u{202e}\n# H";
    let path = workspace.run_folder().join("run.json");
    let mut record = workspace.record();
    record["engine"]["model"] = evil.into();
    record["run_id"] = evil.into();
    fs::write(&path, record.to_string()).expect("writable");
    let name = "m\\<b\\> it's \\[a\\]\\(http\\://b) \\!\\[c\\]\\(d) \\| \\`e\\` \\*\\*f\\*\\* \\@user \\[31mR \\# H";
    for command in [&["report", "-o", "md"][..], &["diagnose"]] {
        let printed = run(&mut workspace.flowbench(command));
        assert_eq!(printed.code, 0, "{}", printed.err);
        assert!(printed.out.contains(name), "{}", printed.out);
        assert!(!printed.out.contains("&#39;") && !printed.out.contains('\u{1b}'));
    }
}

#[test]
fn what_is_no_regular_file_is_named() {
    let workspace = Workspace::new();
    let pipe = |name: &str| {
        let path = workspace.file(name);
        let _ = fs::remove_file(&path);
        let made = std::process::Command::new("mkfifo").arg(path).status();
        assert!(made.expect("mkfifo is there").success());
    };
    pipe("templates/pipe.toml");
    fs::create_dir(workspace.file("templates/folder.toml")).expect("writable");
    std::os::unix::fs::symlink("nowhere", workspace.file("templates/link.toml")).expect("writable");
    pipe("pipe.jsonl");
    let rejected = |variables: &[(&str, &str)], kind: &str| {
        let printed = run(workspace.scripted().envs(variables.iter().copied()));
        assert_eq!(printed.code, 2, "{variables:?}: {}", printed.err);
        assert!(printed.err.contains(kind), "{variables:?}: {}", printed.err);
        assert!(!printed.err.contains("did you mean"), "{}", printed.err);
    };
    rejected(&[("TEMPLATE", "pipe")], "a named pipe, not a regular file");
    rejected(
        &[("TEMPLATE", "folder.toml")],
        "a folder, not a regular file",
    );
    rejected(
        &[("TEMPLATE", "templates/folder.toml")],
        "a folder, not a regular file",
    );
    rejected(
        &[("TEMPLATE", "link")],
        "a broken symbolic link, not a regular file",
    );
    rejected(
        &[("SCRIPT", "pipe.jsonl")],
        "a named pipe, not a regular file",
    );
    rejected(&[("SCRIPT", "/dev/null")], "a device, not a regular file");
    rejected(
        &[("ROLLOUT_INPUT", "pipe.jsonl")],
        "a named pipe, not a regular file",
    );
    rejected(
        &[("PIN_OUTPUTS", "pipe.jsonl")],
        "a named pipe, not a regular file",
    );
    pipe("templates/chain.suite.jsonl");
    rejected(&[], "a named pipe, not a regular file");

    let workspace = Workspace::new();
    let rows = crate::common::TEMPLATE.replace(
        "dir = \"code\", include = [\"**/*.py\"]",
        "rows = \"r.jsonl\"",
    );
    workspace.write(
        "templates/chain.toml",
        rows.replace("fixture.text", "fixture.rows"),
    );
    fs::create_dir_all(workspace.file("fixtures/r.jsonl")).expect("writable");
    let printed = run(&mut workspace.scripted());
    assert_eq!(printed.code, 2);
    assert!(
        printed.err.contains("a folder, not a regular file"),
        "{}",
        printed.err
    );
}

#[test]
fn a_suite_that_is_a_link_out_of_the_templates_is_refused() {
    let workspace = Workspace::new();
    workspace.write("elsewhere.jsonl", crate::common::SUITE);
    let suite = workspace.file("templates/chain.suite.jsonl");
    fs::remove_file(&suite).expect("there");
    std::os::unix::fs::symlink("../elsewhere.jsonl", &suite).expect("a link");
    let printed = run(&mut workspace.scripted());
    assert_eq!(printed.code, 2, "{}", printed.err);
    assert!(
        printed.err.contains("is a symlink to outside"),
        "{}",
        printed.err
    );
    // Within the folder it is followed.
    workspace.write("templates/real.jsonl", crate::common::SUITE);
    fs::remove_file(&suite).expect("there");
    std::os::unix::fs::symlink("real.jsonl", &suite).expect("a link");
    let printed = run(&mut workspace.scripted());
    assert_eq!(printed.code, 0, "{}", printed.err);
}

/// Marks at the start, and line ends of another system, change no prompt and no answer.
#[test]
fn byte_order_marks_and_line_ends_change_nothing() {
    let flows = |marked: bool| {
        let workspace = Workspace::new();
        let input = "{\"id\": \"r0\", \"task\": \"p\"}\n{\"id\": \"r1\", \"task\": \"q\"}\n";
        workspace.write("in.jsonl", input);
        workspace.write("s.jsonl", crate::common::SCRIPT);
        if marked {
            for name in [
                "templates/chain.toml",
                "templates/chain.suite.jsonl",
                "in.jsonl",
                "s.jsonl",
            ] {
                let text = workspace.read(name).replace('\n', "\r\n");
                workspace.write(name, format!("\u{feff}{text}"));
            }
            let text = workspace.read("fixtures/code/a.py");
            workspace.write("fixtures/code/a.py", format!("\u{feff}{text}"));
        }
        let suite = run(workspace.scripted().env("NUM_FLOWS", "3"));
        assert_eq!(suite.code, 0, "{}", suite.err);
        let of_suite = workspace.read("flows/_expanded_00002.json");
        let rows = run(workspace
            .scripted()
            .envs([("SCRIPT", "s.jsonl"), ("PIN_OUTPUTS", "s.jsonl")])
            .args(["--input", "in.jsonl", "--output", "out.jsonl"]));
        assert_eq!(rows.code, 0, "{}", rows.err);
        (
            of_suite,
            workspace.read("flows/_expanded_00002.json"),
            workspace.read("out.jsonl"),
        )
    };
    let plain = flows(false);
    assert_eq!(flows(true), plain);
    assert!(plain.2.starts_with("{\"id\": \"r0\""), "{}", plain.2);
}

#[test]
fn numbers_of_rows_stay_as_they_are_written() {
    let workspace = Workspace::new();
    let row = "{\"id\": 12345678901234567890123, \"task\": 1.0, \"x\": [1e400, -0.5, NaN, 1.50]";
    workspace.write("in.jsonl", format!("{row}}}\n{row}}}\n"));
    let template = crate::common::TEMPLATE.replace(
        "{{ row.task }}",
        "{{ row.id }} {{ row.task }} {{ row.x[0] }} {{ row.x[2] }}",
    );
    workspace.write("templates/chain.toml", template);
    for resume in [false, true] {
        let mut command = workspace.scripted();
        command.args(["--input", "in.jsonl", "--output", "out.jsonl"]);
        if resume {
            // The last line was cut off.
            let text = workspace.read("out.jsonl");
            workspace.write("out.jsonl", &text[..text.len() - 9]);
            command.arg("--resume");
        }
        let printed = run(&mut command);
        assert_eq!(printed.code, 0, "{}", printed.err);
        let out = workspace.read("out.jsonl");
        assert_eq!(out.lines().count(), 2, "{out}");
        for line in out.lines() {
            assert!(line.starts_with(&format!("{row},\"rollout\":")), "{line}");
        }
        assert!(
            printed.out.contains("[ROLLOUTS]") || printed.out.contains("done=2"),
            "{}",
            printed.out
        );
    }
    let flow = workspace.read("flows/_expanded_00001.json");
    assert!(
        flow.contains("12345678901234567890123 1.0 1e400 NaN"),
        "{flow}"
    );
}

/// No output replaces what the run is made from, whatever the name that it is given by.
#[test]
fn outputs_are_not_inputs() {
    let workspace = Workspace::new();
    workspace.write("in.jsonl", "{\"id\": \"r0\", \"task\": \"p\"}\n");
    workspace.write("pins.jsonl", crate::common::SCRIPT);
    workspace.write("s.jsonl", crate::common::SCRIPT);
    workspace.write("s2.jsonl.partial", crate::common::SCRIPT);
    workspace.write("templates/rules.txt", "Be short.");
    let template = crate::common::TEMPLATE.replace("You review code:", "{% include 'rules.txt' %}");
    workspace.write("templates/chain.toml", template);
    for (name, target) in [
        ("soft.jsonl", "templates/chain.toml"),
        ("folder", "templates"),
    ] {
        std::os::unix::fs::symlink(target, workspace.file(name)).expect("a link");
    }
    fs::hard_link(workspace.file("s.jsonl"), workspace.file("hard.jsonl")).expect("a link");
    let script = ["--script", "s.jsonl"];
    let rows = ["--input", "in.jsonl"];
    let cases: &[(&[&str], &str)] = &[
        (&["--record", "templates/chain.script.jsonl"], "the script"),
        (&["--record", "folder/chain.script.jsonl"], "the script"),
        (&["--record", "s.jsonl", script[0], script[1]], "the script"),
        (
            &["--record", "./hard.jsonl", script[0], script[1]],
            "the script",
        ),
        (
            &["--record", "s2.jsonl", "--script", "s2.jsonl.partial"],
            "the script",
        ),
        (&["--record", "soft.jsonl"], "the template"),
        (&["--record", "templates/chain.suite.jsonl"], "the suite"),
        (
            &["--record", "templates/rules.txt"],
            "a file that the template includes",
        ),
        (&["--record", "fixtures/code/b.py"], "a file of the fixture"),
        (
            &["--record", "pins.jsonl", "--pin-outputs", "pins.jsonl"],
            "--pin-outputs",
        ),
        (&["--record", "in.jsonl", rows[0], rows[1]], "--input"),
        (
            &["--output", "in.jsonl", rows[0], rows[1], "--resume"],
            "--input",
        ),
        (
            &["--output", "folder/chain.toml", rows[0], rows[1]],
            "the template",
        ),
        (
            &[
                "--record",
                "x.jsonl",
                "--output",
                "./x.jsonl",
                rows[0],
                rows[1],
            ],
            "--record",
        ),
        (
            &["--record", "flows/_expanded_00001.json"],
            "an expanded flow",
        ),
        (
            &[
                "--record",
                "p/x.log",
                "--profile",
                "--profile-dir",
                "p",
                "--profile-name",
                "x",
            ],
            "--record",
        ),
    ];
    let all = || {
        let mut files: Vec<(std::path::PathBuf, Vec<u8>)> = walk(workspace.path())
            .into_iter()
            .filter(|path| !path.starts_with(workspace.file("flows")))
            .map(|path| (path.clone(), fs::read(path).expect("readable")))
            .collect();
        files.sort();
        files
    };
    let before = all();
    for (arguments, what) in cases {
        let printed = run(workspace.scripted().args(*arguments));
        assert_eq!(printed.code, 2, "{arguments:?}: {}", printed.err);
        assert!(printed.err.contains(what), "{arguments:?}: {}", printed.err);
        assert!(printed.err.contains("hint: "), "{}", printed.err);
        assert_eq!(all(), before, "{arguments:?}");
    }
    // A recording beside the script that is played is fine, and so is one over an older recording.
    for _ in 0..2 {
        let printed = run(workspace
            .scripted()
            .args(["--record", "templates/new.script.jsonl"]));
        assert_eq!(printed.code, 0, "{}", printed.err);
    }
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        match path.is_dir() && !path.is_symlink() {
            true => files.extend(walk(&path)),
            false if path.is_file() => files.push(path),
            false => {}
        }
    }
    files
}

/// A file that cannot be written to its end is not there at all, and the others are whole. The limit of
/// a file's size stands for a disk that is full.
#[test]
fn files_are_whole_or_not_there() {
    let workspace = Workspace::new();
    workspace.write("in.jsonl", {
        let row = |number| format!("{{\"id\": {number}, \"task\": \"{}\"}}\n", "t".repeat(500));
        (0..40).map(row).collect::<String>()
    });
    let child = workspace.child(&[]);
    let mut command = assert_cmd::Command::new("sh");
    command
        .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\""])
        .arg(child.get_program())
        .args([
            "run",
            "--profile",
            "--profile-dir",
            "p",
            "--profile-name",
            "x",
        ])
        .args([
            "--input",
            "in.jsonl",
            "--output",
            "out.jsonl",
            "--record",
            "r.jsonl",
        ])
        .current_dir(workspace.path())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs([("MODE", "scripted"), ("TEMPLATE", "chain")]);
    let printed = run(&mut command);
    assert_eq!(printed.code, 110, "{}", printed.err);
    let results = workspace.run_folder();
    for path in walk(&results)
        .into_iter()
        .chain(walk(&workspace.file("flows")))
    {
        let name = path
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        assert!(!name.ends_with(".tmp"), "{name}");
        let text = fs::read_to_string(&path).expect("readable");
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => drop(serde_json::from_str::<serde_json::Value>(&text).expect("whole")),
            Some("jsonl") => assert_lines(&text, &name),
            _ => assert!(!text.is_empty() || name == ".lock", "{name}"),
        }
    }
    for name in ["out.jsonl", "r.jsonl", "r.jsonl.partial"] {
        if let Ok(text) = fs::read_to_string(workspace.file(name)) {
            assert_lines(&text, name);
        }
    }
    for path in walk(&workspace.file("p")) {
        assert!(
            fs::metadata(&path).expect("there").len() > 0,
            "{}",
            path.display()
        );
    }
}

fn assert_lines(text: &str, name: &str) {
    assert!(text.is_empty() || text.ends_with('\n'), "{name}");
    for line in text.lines() {
        assert!(
            serde_json::from_str::<serde_json::Value>(line).is_ok(),
            "{name}: {line}"
        );
    }
}

#[test]
fn the_latest_run_is_found_among_many_of_a_second() {
    let workspace = Workspace::new();
    let printed = run(workspace.scripted().env("NUM_FLOWS", "1"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let first = workspace.run_folder();
    for number in ["2", "9", "10", "11"] {
        let copy = std::path::PathBuf::from(format!("{}-{number}", first.display()));
        fs::create_dir(&copy).expect("writable");
        for name in ["run.json", "steps.jsonl"] {
            fs::copy(first.join(name), copy.join(name)).expect("copied");
        }
    }
    let printed = run(&mut workspace.flowbench(&["report"]));
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert!(printed.out.contains("-11/report.html"), "{}", printed.out);
}
