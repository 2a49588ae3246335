//! flowbench in the user's own folder: where files are found, what is embedded, and `flowbench init`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use crate::common::{Printed, Workspace, run};
use tempfile::TempDir;

const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");

fn empty() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn put(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().expect("a folder above")).expect("writable");
    fs::write(path, text).expect("writable");
}

/// A program in a folder, with these variables and nothing else of the environment.
fn start(program: &Path, folder: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Printed {
    let mut command = assert_cmd::Command::new(program);
    command
        .current_dir(folder)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", folder)
        .env("HF_HUB_OFFLINE", "1")
        .env("SCRIPT_LATENCY", "0")
        .envs(variables.iter().copied())
        .args(arguments);
    run(&mut command)
}

fn flowbench(folder: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Printed {
    let program = Path::new(env!("CARGO_BIN_EXE_flowbench"));
    start(program, folder, variables, arguments)
}

/// A scripted run of a template.
fn scripted(folder: &Path, template: &str) -> Printed {
    flowbench(
        folder,
        &[("MODE", "scripted"), ("TEMPLATE", template)],
        &["run"],
    )
}

#[track_caller]
fn succeeds(printed: Printed) -> Printed {
    assert_eq!(printed.code, 0, "{}\n{}", printed.out, printed.err);
    printed
}

#[track_caller]
fn fails(printed: &Printed, code: i32, parts: &[&str]) {
    assert_eq!(printed.code, code, "{}\n{}", printed.out, printed.err);
    for part in parts {
        assert!(printed.err.contains(part), "{part}: {}", printed.err);
    }
}

/// What a template's flows come to: hashes of the cache file, and the flows' bytes.
fn expansion(root: &Path) -> (serde_json::Value, Vec<Vec<u8>>) {
    let text = fs::read_to_string(root.join("flows/.expanded_cache.json")).expect("expanded");
    let mut cache: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    cache["created_at"].take();
    let files = cache["files"].as_array().expect("a list");
    let flows = files.iter().map(|file| {
        let name = file["name"].as_str().expect("a name");
        fs::read(root.join("flows").join(name)).expect("a flow")
    });
    let flows = flows.collect();
    (cache, flows)
}

/// The binary alone, copied to where no checkout is.
fn installed() -> (TempDir, PathBuf) {
    let folder = empty();
    let program = folder.path().join("flowbench");
    fs::copy(env!("CARGO_BIN_EXE_flowbench"), &program).expect("can be copied");
    (folder, program)
}

#[test]
fn the_binary_alone_runs_the_default_job() {
    let (_holder, program) = installed();
    let folder = empty();
    let scripted = [("MODE", "scripted")];
    let printed = succeeds(start(&program, folder.path(), &scripted, &["run"]));
    assert_eq!(printed.count("[TARGET]"), 75);
    assert!(
        printed
            .out
            .contains("[INPUT] fixture_bytes=2430 fixture_files=2")
    );
    let made: Vec<_> = fs::read_dir(folder.path())
        .expect("readable")
        .map(|entry| entry.expect("readable").file_name())
        .collect();
    assert_eq!(made.len(), 2, "flows/ and results/ only: {made:?}");

    let cached = succeeds(start(&program, folder.path(), &scripted, &["run"]));
    assert!(cached.err.contains("Using cached expanded flows"));
    assert_eq!(printed.hashes(), cached.hashes());
    // The README's cold start.
    let removed = std::process::Command::new("bash")
        .args([
            "-c",
            "rm -f flows/.expanded_cache.json flows/_expanded_*.json",
        ])
        .current_dir(folder.path())
        .status();
    assert!(removed.is_ok_and(|status| status.success()));
    let cold = succeeds(start(&program, folder.path(), &scripted, &["run"]));
    assert!(
        cold.err
            .contains("Regenerating expanded flows (cache miss: no cache)")
    );

    succeeds(start(&program, folder.path(), &[], &["diagnose"]));
    succeeds(start(&program, folder.path(), &[], &["report"]));
}

#[test]
fn the_binary_alone_runs_the_default_job_on_the_real_model() {
    let Some(model) = crate::common::model() else {
        return;
    };
    let (_holder, program) = installed();
    let folder = empty();
    let variables = [
        ("MODE", "standalone"),
        ("NUM_FLOWS", "1"),
        ("MODEL", model.to_str().expect("UTF-8")),
        ("MAX_TOKENS", "4"),
    ];
    let printed = succeeds(start(&program, folder.path(), &variables, &["run"]));
    assert_eq!(printed.count("[TARGET]"), 3);
}

#[test]
fn a_shipped_template_expands_to_the_same_flows_as_its_files() {
    for (template, flows) in [
        ("three_step", 25),
        ("three_step_full", 25),
        ("evolve_packing", 1),
        ("math_judge", 152),
    ] {
        let embedded = empty();
        let on_disk = empty();
        for folder in ["templates", "fixtures"] {
            symlink(
                Path::new(CHECKOUT).join(folder),
                on_disk.path().join(folder),
            )
            .expect("a link");
        }
        for folder in [&embedded, &on_disk] {
            succeeds(flowbench(
                folder.path(),
                &[],
                &["expand", "--template", template],
            ));
        }
        let of_binary = expansion(embedded.path());
        assert_eq!(of_binary.0["num_flows"], flows, "{template}");
        assert!(of_binary == expansion(on_disk.path()), "{template}");
    }
}

#[test]
fn shipped_templates_play_their_shipped_scripts() {
    let folder = empty();
    for template in ["three_step", "three_step_full", "math_judge"] {
        succeeds(scripted(folder.path(), template));
    }
    // A file of the root replaces the shipped one of that name.
    let answer = "{\"output\": \"mine\"}\n";
    put(folder.path(), "templates/three_step.script.jsonl", answer);
    let printed = flowbench(
        folder.path(),
        &[("MODE", "scripted"), ("NUM_FLOWS", "1")],
        &["run", "--show-output"],
    );
    assert!(succeeds(printed).err.contains("| mine"));
    let rows = "{\"task\": \"a\"}\n{\"task\": \"b\"}\n";
    put(folder.path(), "templates/three_step.suite.jsonl", rows);
    let printed = succeeds(scripted(folder.path(), "three_step"));
    assert_eq!(printed.count("[TARGET]"), 6, "two rows, three steps");
}

#[test]
fn a_mistake_in_a_shipped_template_is_placed_in_it() {
    let folder = empty();
    let printed = flowbench(folder.path(), &[], &["expand", "--set", "no_such=1"]);
    fails(&printed, 2, &["<shipped>/templates/three_step.toml"]);
    put(folder.path(), "fixtures/helpdesk/other.py", "x = 1\n");
    let printed = flowbench(folder.path(), &[], &["expand"]);
    fails(&printed, 2, &["matches no file in fixtures/helpdesk/"]);
}

const OWN: &str = r#"schema = 1
name = "own"
suite = "own.suite.jsonl"
fixture = { dir = "data" }

[[step]]
id = "answer"
prompt = "{% include 'rules.txt' %} {{ row.task }} {{ fixture.text }}"
"#;

/// A template and all that it names, in one folder.
fn put_own(folder: &Path) {
    put(folder, "own.toml", OWN);
    put(
        folder,
        "own.suite.jsonl",
        "{\"task\": \"one\"}\n{\"task\": \"two\"}\n",
    );
    put(folder, "own.script.jsonl", "{\"output\": \"done\"}\n");
    put(folder, "rules.txt", "Be brief.");
    put(folder, "data/a.txt", "beside");
}

#[test]
fn what_a_template_names_is_found_beside_it() {
    let folder = empty();
    put_own(&folder.path().join("jobs/deep"));
    // By path, with and without extension, from the folder itself, from outside, and absolutely.
    let absolute = folder.path().join("jobs/deep/own.toml");
    for (from, template) in [
        (".", "jobs/deep/own.toml"),
        (".", "jobs/deep/own"),
        (".", "./jobs/../jobs/deep/own.toml"),
        ("jobs/deep", "own.toml"),
        ("jobs", "../jobs/deep/own.toml"),
        ("jobs", absolute.to_str().expect("UTF-8")),
    ] {
        let from = folder.path().join(from);
        let printed = succeeds(scripted(&from, template));
        assert_eq!(
            printed.count("[TARGET]"),
            2,
            "{template}: a flow for each row"
        );
        assert!(from.join("results").is_dir() && from.join("flows").is_dir());
    }
    // Not in templates/, so it has no name.
    fails(
        &scripted(folder.path(), "own"),
        2,
        &["searched: templates/own.toml, the shipped templates"],
    );
}

#[test]
fn then_in_the_root() {
    let folder = empty();
    let at = |name: &str| folder.path().join(name);
    put_own(&at("templates"));
    // A template elsewhere, whose files are in the root's templates/ and fixtures/.
    fs::create_dir(at("jobs")).expect("writable");
    fs::rename(at("templates/own.toml"), at("jobs/own.toml")).expect("can be moved");
    fs::remove_dir_all(at("templates/data")).expect("can be removed");
    put(folder.path(), "fixtures/data/a.txt", "of the root");
    succeeds(scripted(folder.path(), "jobs/own.toml"));
    let (_, flows) = expansion(folder.path());
    assert!(String::from_utf8_lossy(&flows[0]).contains("of the root"));
    // What is beside the template wins.
    put(folder.path(), "jobs/data/a.txt", "of the job");
    succeeds(scripted(folder.path(), "jobs/own.toml"));
    let (_, flows) = expansion(folder.path());
    assert!(String::from_utf8_lossy(&flows[0]).contains("of the job"));
    // Folders of templates/ are part of a name, and templates/ itself is searched after them.
    fs::rename(at("jobs"), at("templates/nightly")).expect("can be moved");
    succeeds(scripted(folder.path(), "nightly/own"));
    succeeds(scripted(folder.path(), "nightly/own.toml"));
}

#[test]
fn a_template_outside_of_the_root_brings_its_folder_along() {
    let project = empty();
    put_own(&project.path().join("templates"));
    let data = project.path().join("templates/data");
    fs::create_dir(project.path().join("fixtures")).expect("writable");
    fs::rename(data, project.path().join("fixtures/data")).expect("can be moved");
    let here = empty();
    let template = project.path().join("templates/own.toml");
    let template = template.to_str().expect("UTF-8");
    // The fixtures/ next to its templates/, with results here, or in another root.
    succeeds(scripted(here.path(), template));
    assert!(here.path().join("results").is_dir());
    assert!(!project.path().join("results").exists());
    let root = here.path().join("other");
    fs::create_dir(&root).expect("writable");
    let variables = [
        ("MODE", "scripted"),
        ("FLOWBENCH_ROOT", "other"),
        ("TEMPLATE", template),
    ];
    succeeds(flowbench(here.path(), &variables, &["run"]));
    assert!(root.join("flows").is_dir() && root.join("results").is_dir());
    let latest = flowbench(
        here.path(),
        &[("FLOWBENCH_ROOT", "other")],
        &["report", "-o", "md"],
    );
    succeeds(latest);
    // From inside the project's templates/, too.
    let inside = project.path().join("templates");
    succeeds(scripted(&inside, "own.toml"));
    // A link to the template brings along what is beside its target.
    symlink(template, here.path().join("linked.toml")).expect("a link");
    succeeds(scripted(here.path(), "linked.toml"));
}

#[test]
fn paths_are_relative_to_the_working_directory_and_results_to_the_root() {
    let workspace = Workspace::new();
    let elsewhere = empty();
    put(elsewhere.path(), "rows.jsonl", crate::common::SUITE);
    let root = workspace.path().to_str().expect("UTF-8");
    let variables = [
        ("MODE", "scripted"),
        ("TEMPLATE", "chain"),
        ("FLOWBENCH_ROOT", root),
    ];
    let arguments = ["run", "--input", "rows.jsonl", "--output", "out.jsonl"];
    succeeds(flowbench(elsewhere.path(), &variables, &arguments));
    assert!(elsewhere.path().join("out.jsonl").is_file());
    assert!(workspace.file("results").is_dir() && workspace.file("flows").is_dir());
    assert!(!elsewhere.path().join("results").exists());
    let out = [&variables[..], &[("OUT", "mine")]].concat();
    succeeds(flowbench(elsewhere.path(), &out, &["run"]));
    assert!(elsewhere.path().join("mine").is_dir());
}

#[test]
fn a_template_that_is_nowhere_names_the_places() {
    let folder = empty();
    fails(
        &scripted(folder.path(), "three_stpe"),
        2,
        &[
            "there is no template `three_stpe` (searched: templates/three_stpe.toml, the shipped templates)",
            "did you mean `three_step`?",
        ],
    );
    fails(
        &scripted(folder.path(), "../nowhere/three_step.toml"),
        2,
        &[
            "searched: ../nowhere/three_step.toml)",
            "did you mean `three_step`?",
        ],
    );
    put_own(folder.path());
    fs::remove_dir_all(folder.path().join("data")).expect("can be removed");
    fails(
        &scripted(folder.path(), "own.toml"),
        2,
        &["there is no fixture folder `data` (searched: ./, fixtures/, the shipped fixtures)"],
    );
    fs::remove_file(folder.path().join("own.suite.jsonl")).expect("can be removed");
    fails(
        &scripted(folder.path(), "own.toml"),
        2,
        &["there is no suite `own.suite.jsonl` (searched: ./, templates/, the shipped templates)"],
    );
}

#[test]
fn links_do_not_lead_out_of_their_folders() {
    let folder = empty();
    let at = |name: &str| folder.path().join(name);
    put(folder.path(), "secret.txt", "{\"task\": \"secret\"}");
    put_own(&at("jobs"));
    let replace = |name: &str| {
        fs::remove_file(at(name)).expect("can be removed");
        symlink(at("secret.txt"), at(name)).expect("a link");
    };
    replace("jobs/data/a.txt");
    fails(
        &scripted(folder.path(), "jobs/own"),
        2,
        &["to outside the fixture"],
    );
    put_own(&at("fresh"));
    replace("fresh/own.suite.jsonl");
    fails(
        &scripted(folder.path(), "fresh/own"),
        2,
        &["is a symlink to outside its folder"],
    );
    put_own(&at("other"));
    replace("other/rules.txt");
    fails(&scripted(folder.path(), "other/own"), 2, &["rules.txt"]);
    // A folder may be a link as a whole.
    put_own(&at("real"));
    symlink("real", at("linked")).expect("a link");
    succeeds(scripted(folder.path(), "linked/own"));
    // A name does not lead out either.
    let up = OWN.replace("own.suite.jsonl", "../secret.txt");
    put(folder.path(), "real/up.toml", &up);
    fails(
        &scripted(folder.path(), "real/up"),
        2,
        &["is outside of the template's folder"],
    );
}

#[test]
fn a_root_that_is_no_folder_is_a_usage_error() {
    let folder = empty();
    put(folder.path(), "file", "");
    for (root, what) in [
        ("file", "the root file is not a folder"),
        ("none", "there is no folder none to be the root"),
    ] {
        for command in ["run", "expand"] {
            let variables = [("FLOWBENCH_ROOT", root)];
            fails(
                &flowbench(folder.path(), &variables, &[command]),
                2,
                &[what, "hint: --root"],
            );
        }
        assert!(!folder.path().join("none").exists());
    }
}

#[test]
fn a_root_that_cannot_be_written_is_an_output_error() {
    let (holder, program) = installed();
    let folder = empty();
    let open = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("modes can be set");
    };
    open(holder.path(), 0o755);
    open(folder.path(), 0o555);
    let mut command = std::process::Command::new(&program);
    if fs::write(folder.path().join("probe"), "").is_ok() {
        // Root may always write: run it as nobody.
        fs::remove_file(folder.path().join("probe")).expect("can be removed");
        command.uid(65534).gid(65534);
    }
    let output = command
        .current_dir(folder.path())
        .env_clear()
        .env("MODE", "scripted")
        .arg("run")
        .output()
        .expect("starts");
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(110), "{err}");
    assert!(err.contains("failed to create the folder flows"), "{err}");
    assert!(err.contains("--root"), "{err}");
    open(folder.path(), 0o755);
}

#[test]
fn a_variable_that_looks_like_one_of_ours_is_told() {
    let workspace = Workspace::new();
    let printed = run(workspace.scripted().env("NUMFLOWS", "2").env("QUIET", "1"));
    let printed = succeeds(printed);
    assert_eq!(printed.count("[TARGET]"), 9, "it is not read");
    let warning =
        "warning: the environment variable NUMFLOWS is not read; did you mean NUM_FLOWS?\n";
    assert!(printed.err.starts_with(warning), "{}", printed.err);
}

#[test]
fn init_makes_a_folder_that_runs() {
    let folder = empty();
    let printed = succeeds(flowbench(folder.path(), &[], &["init", "my bench"]));
    insta::assert_snapshot!(printed.out);
    let bench = folder.path().join("my bench");
    let printed = succeeds(scripted(&bench, "review"));
    assert_eq!(printed.count("[TARGET]"), 6, "three rows, two steps");
    assert!(!printed.err.contains("warning"), "{}", printed.err);
    succeeds(flowbench(
        &bench,
        &[("TEMPLATE", "review")],
        &["expand", "--check"],
    ));

    if let Some(model) = crate::common::model() {
        let variables = [
            ("TEMPLATE", "review"),
            ("MODE", "standalone"),
            ("NUM_FLOWS", "1"),
            ("MAX_TOKENS", "4"),
            ("MODEL", model.to_str().expect("UTF-8")),
        ];
        let printed = succeeds(flowbench(&bench, &variables, &["run"]));
        assert_eq!(printed.count("[TARGET]"), 2);
    }
}

#[test]
fn the_nightly_job_runs() {
    let folder = empty();
    succeeds(flowbench(folder.path(), &[], &["init"]));
    let job = folder.path().join("nightly.sh");
    assert_eq!(
        fs::metadata(&job).expect("written").permissions().mode() & 0o100,
        0o100
    );
    // From another folder, as cron starts it.
    let output = std::process::Command::new("bash")
        .arg(&job)
        .current_dir("/")
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("FLOWBENCH", env!("CARGO_BIN_EXE_flowbench"))
        .env("MODE", "scripted")
        .output()
        .expect("starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}\n{err}");
    assert!(text.contains("[TIMING] benchmark_total_ms="), "{text}");
    let nights = fs::read_dir(folder.path().join("logs")).expect("kept");
    for night in nights {
        let night = night.expect("readable").path();
        for name in ["nightly.log", "diagnosis.md"] {
            assert!(
                night.join(name).metadata().expect("kept").len() > 0,
                "{name}"
            );
        }
    }
    // A run that must not be judged by ends the job.
    put(
        folder.path(),
        "templates/review.script.jsonl",
        "{\"output\": \"a\"}\n{\"step\": \"rate\", \"fail\": \"no\"}\n",
    );
    let status = std::process::Command::new("bash")
        .arg(&job)
        .env("FLOWBENCH", env!("CARGO_BIN_EXE_flowbench"))
        .env("MODE", "scripted")
        .output()
        .expect("starts")
        .status;
    assert_eq!(status.code(), Some(98));
}

#[test]
fn init_copies_a_shipped_template() {
    let folder = empty();
    let list = succeeds(flowbench(folder.path(), &[], &["init", "--list"]));
    insta::assert_snapshot!(list.out);
    for line in list.out.lines() {
        let name = line.split_whitespace().next().expect("a name");
        let printed = flowbench(folder.path(), &[], &["init", name, "--template", name]);
        let printed = succeeds(printed);
        assert!(printed.out.contains(&format!("TEMPLATE={name} ")));
        let copy = folder.path().join(name);
        // The same expansion as that of the shipped one.
        succeeds(flowbench(
            folder.path(),
            &[],
            &["expand", "--template", name],
        ));
        succeeds(flowbench(&copy, &[], &["expand", "--template", name]));
        assert!(expansion(folder.path()) == expansion(&copy), "{name}");
        let job = fs::read_to_string(copy.join("nightly.sh")).expect("written");
        assert!(job.contains(&format!("TEMPLATE:-{name}}}")));
    }
    let printed = flowbench(folder.path(), &[], &["init", "--template", "three"]);
    fails(
        &printed,
        2,
        &["no shipped template is called `three`", "init --list"],
    );
}

#[test]
fn init_replaces_nothing() {
    let folder = empty();
    put(folder.path(), "fixtures/shop/prices.py", "mine");
    let printed = flowbench(folder.path(), &[], &["init"]);
    fails(&printed, 2, &["fixtures/shop/prices.py exists already"]);
    assert!(
        !folder.path().join("templates").exists(),
        "nothing is written"
    );
    assert_eq!(
        fs::read_to_string(folder.path().join("fixtures/shop/prices.py")).expect("there"),
        "mine"
    );
    // A link that leads nowhere is something, too.
    let other = empty();
    symlink("nowhere", other.path().join("nightly.sh")).expect("a link");
    let printed = flowbench(other.path(), &[], &["init"]);
    fails(&printed, 2, &["nightly.sh exists already"]);
    put(other.path(), "file", "");
    let printed = flowbench(other.path(), &[], &["init", "file"]);
    fails(
        &printed,
        110,
        &["failed to write file/templates/review.toml"],
    );
}

/// `run.sh` with a `cargo` that only says where the binary is, so that nothing is built.
#[test]
fn run_sh_keeps_the_callers_folder() {
    let tools = empty();
    let cargo = format!(
        "#!/bin/sh\nprintf '%s' '{{\"reason\":\"compiler-artifact\",\"executable\":\"{}\",\"fresh\":true}}'\n",
        env!("CARGO_BIN_EXE_flowbench")
    );
    put(tools.path(), "cargo", &cargo);
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(tools.path().join("cargo"), mode).expect("modes can be set");
    let path = format!("{}:/usr/bin:/bin", tools.path().display());
    let script = Path::new(CHECKOUT).join("run.sh");
    let run_sh = |folder: &Path, variables: &[(&str, &str)], arguments: &[&str]| {
        let mut command = assert_cmd::Command::new("bash");
        command
            .arg(&script)
            .args(arguments)
            .current_dir(folder)
            .env_clear()
            .env("PATH", &path)
            .env("DEVICE", "cpu")
            .envs(variables.iter().copied());
        run(&mut command)
    };
    // A folder with templates/ is the root, and paths are relative to it.
    let workspace = Workspace::new();
    workspace.write("rows.jsonl", crate::common::SUITE);
    let chain = [("MODE", "scripted"), ("TEMPLATE", "chain")];
    succeeds(run_sh(
        workspace.path(),
        &chain,
        &["run", "--input", "rows.jsonl"],
    ));
    assert!(workspace.file("results").is_dir());
    // Without, the checkout is, so that `expand --check` looks at its flows/.
    let folder = empty();
    let checked = run_sh(folder.path(), &[], &["doctor"]);
    assert!(
        checked.out.contains(&format!("{CHECKOUT}/templates")),
        "{}",
        checked.out
    );
    let own = run_sh(folder.path(), &[("FLOWBENCH_ROOT", ".")], &["doctor"]);
    assert!(
        own.out.contains("only those that are shipped"),
        "{}",
        own.out
    );
    succeeds(run_sh(folder.path(), &[], &["init", "made"]));
    assert!(folder.path().join("made/templates/review.toml").is_file());
}
