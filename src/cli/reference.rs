//! `docs/reference.md`, made from the flags: the doc comments are the descriptions. After a change of a flag,
//! `UPDATE_REFERENCE=1 cargo test --lib reference` writes it anew.

use std::fmt::Write;

use clap::{Arg, Command, CommandFactory};

use super::Cli;

const HEAD: &str = "# Reference

Every command with its flags. A flag that has a variable can be set by either; the flag wins over the variable,
which wins over the default. An unknown or malformed value is an error (exit code 2). A variable that looks like
a misspelled one of these (`NUMFLOWS`) causes a warning.

Paths are relative to the working directory. Only `templates/`, `fixtures/`, `flows/` and `results/` are those of
the root (`--root`).

This page is made from the program's flags; `UPDATE_REFERENCE=1 cargo test --lib reference` writes it anew.
";

/// What is worth knowing beside a flag's own text, by variable.
const NOTES: &[(&str, &str)] = &[
    (
        "TEMPLATE",
        "`three_step_full` puts about 5,000 tokens of code into each prompt, for GPUs.",
    ),
    (
        "MODEL",
        "A `.gguf` file may be any part of a split model. [models.md](models.md) says which models run. With \
         `MODE=remote`: the name that the server knows the model by (default: the only one that it serves).",
    ),
    (
        "DEVICE",
        "`cuda` without a usable GPU is an error, never a silent run on the CPU ([gpu.md](gpu.md)).",
    ),
    (
        "CONCURRENCY",
        "Above 1, the steps of different flows are batched.",
    ),
    (
        "KV_CACHE_MB",
        "On a GPU it is allocated when the engine starts. A sequence that does not fit is an error; if that is \
         known before the flows run, the exit code is 3.",
    ),
    (
        "CONTEXT",
        "A generation that reaches it ends with `length`. A number above the model's is an error. The context of \
         a model with a sliding window is its window.",
    ),
    (
        "SPECULATE",
        "`run.json` counts `drafted_tokens` and `accepted_tokens`.",
    ),
    ("SEED", "It matters only for steps with a temperature."),
    ("QUIET", "Warnings and the `[RUN]` line stay."),
    (
        "PROFILE",
        "The run's folder also gets `trace.json` for Perfetto ([profiling.md](profiling.md)).",
    ),
    (
        "ENDPOINT",
        "[remote.md](remote.md) describes servers, retries and proxies.",
    ),
    (
        "SERVE_ADDR",
        "[serve.md](serve.md) describes the interface, its limits and its errors.",
    ),
    (
        "RESUME",
        "[resume.md](resume.md) says what is kept, and what has to be the same.",
    ),
    (
        "SHARD",
        "[engines.md](engines.md) shows a job on several machines.",
    ),
];

/// The variables that no flag has.
const VARIABLES: &[(&str, &str)] = &[
    (
        "`API_KEY`",
        "The key of the server of `MODE=remote`. It is neither printed nor recorded",
    ),
    (
        "`http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`",
        "The proxy of `MODE=remote`, as curl has them, also in upper case ([remote.md](remote.md))",
    ),
    (
        "`SSL_CERT_FILE`, `SSL_CERT_DIR`",
        "The certificates that `MODE=remote` trusts, as OpenSSL and curl have them [default: the system's store]",
    ),
    (
        "`HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`",
        "As the Hugging Face tools have them. `HF_HUB_OFFLINE=1` uses no network at all",
    ),
    (
        "`ROLLOUT_RESUME`",
        "`1`: `run --resume` without a run, for the rows of `--output`",
    ),
    (
        "`XDG_CACHE_HOME`",
        "Where the default model is kept: its folder `flowbench` [default: `~/.cache`]",
    ),
    (
        "`GITHUB_STEP_SUMMARY`",
        "The file that `export -o github-summary` appends to; GitHub Actions sets it",
    ),
    (
        "`CUDA_VISIBLE_DEVICES`",
        "The GPU that is used [default: 0, in the order of the PCI bus unless `CUDA_DEVICE_ORDER` is set]",
    ),
];

fn page() -> String {
    let mut page = HEAD.to_owned();
    let mut cli = Cli::command();
    cli.build();
    let mut notes = NOTES.to_vec();
    let is_run = |command: &&Command| command.get_name() == "run";
    let (run, others): (Vec<&Command>, Vec<&Command>) = cli.get_subcommands().partition(is_run);
    for command in run.into_iter().chain(others) {
        section(&mut page, command, "flowbench", &mut notes);
    }
    page.push_str("\n## Variables without a flag\n\n| variable | |\n|---|---|\n");
    for (name, text) in VARIABLES {
        writeln!(page, "| {name} | {text} |").unwrap();
    }
    page
}

/// Each of the `notes` is used up where its variable comes first.
fn section(page: &mut String, command: &Command, above: &str, notes: &mut Vec<(&str, &str)>) {
    let name = format!("{above} {}", command.get_name());
    if command.get_name() == "help" {
        return;
    }
    if command.has_subcommands() {
        for command in command.get_subcommands() {
            section(page, command, &name, notes);
        }
        return;
    }
    let about = command.get_about().map(ToString::to_string);
    let shown =
        |flag: &&Arg| !flag.is_hide_set() && !matches!(flag.get_id().as_str(), "help" | "version");
    let flags: Vec<&Arg> = command.get_arguments().filter(shown).collect();
    write!(page, "\n## `{name}`\n\n{}.\n", about.unwrap_or_default()).unwrap();
    if command.get_name() == "calibrate" {
        page.push_str("\nIt has the flags of `flowbench run`.\n");
        return;
    }
    page.push_str("\n| flag | variable | default | |\n|---|---|---|---|\n");
    let (operands, options): (Vec<&Arg>, Vec<&Arg>) =
        flags.into_iter().partition(|flag| flag.is_positional());
    for flag in operands.into_iter().chain(options) {
        row(page, flag, notes);
    }
}

fn row(page: &mut String, flag: &Arg, notes: &mut Vec<(&str, &str)>) {
    let value = flag.get_value_names().and_then(|names| names.first());
    let mut names: Vec<String> = flag
        .get_short()
        .map(|c| format!("`-{c}`"))
        .into_iter()
        .collect();
    let variable = flag
        .get_env()
        .map(|name| name.to_string_lossy().into_owned());
    // A value is shown if it says more than the variable's name does.
    let telling = value.filter(|value| {
        let has_value = flag
            .get_num_args()
            .is_some_and(|number| number.min_values() > 0);
        has_value
            && variable
                .as_deref()
                .is_none_or(|name| !name.ends_with(value.as_str()))
    });
    let value_of =
        |long| telling.map_or(format!("`--{long}`"), |value| format!("`--{long} {value}`"));
    names.extend(flag.get_long().map(value_of));
    if flag.is_positional() {
        names.extend(value.map(|value| format!("`{value}`")));
    }
    let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
    let help = help.replace('\n', " ");
    // A default that is worked out stands in the text.
    let (help, worked_out) = match help.split_once(" [default: ") {
        Some((text, default)) => (
            text.to_owned(),
            Some(default.trim_end_matches(']').to_owned()),
        ),
        None => (help, None),
    };
    let fixed: Vec<String> = (flag.get_default_values().iter())
        .map(|value| value.to_string_lossy().into_owned())
        .collect();
    // A switch without a variable is off by default, which clap calls `false`.
    let is_shown = !flag.is_hide_default_value_set() && fixed != ["false"] && !fixed.is_empty();
    let fixed = is_shown.then(|| format!("`{}`", fixed.join(",")));
    let mut text = format!("{help}.");
    let values = flag.get_possible_values();
    for value in values.iter().filter(|_| flag.get_action().takes_values()) {
        if let Some(help) = value.get_help() {
            let help = help.to_string();
            write!(text, " `{}`: {}", value.get_name(), help.replace('\n', " ")).unwrap();
            if !text.ends_with('.') {
                text.push('.');
            }
        }
    }
    let note = (notes.iter()).position(|(name, _)| Some(*name) == variable.as_deref());
    if let Some(note) = note {
        write!(text, " {}", notes.remove(note).1).unwrap();
    }
    let cells = [
        names.join(", "),
        variable.map_or_else(String::new, |name| format!("`{name}`")),
        worked_out.or(fixed).unwrap_or_default(),
        text,
    ];
    let cells = cells.map(|cell| cell.replace('|', "\\|"));
    writeln!(page, "| {} |", cells.join(" | ")).unwrap();
}

#[test]
fn the_reference_in_docs_is_made_of_the_flags() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference.md");
    let page = page();
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == page,
        "docs/reference.md is not what the flags say: UPDATE_REFERENCE=1 cargo test --lib reference"
    );
    for (name, _) in NOTES {
        assert!(
            page.contains(&format!("| `{name}` |")),
            "no flag has {name}"
        );
    }
    assert!(page.lines().count() <= 340);
}
