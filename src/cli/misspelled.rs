//! Environment variables that look like one of ours but are not: `NUMFLOWS` for `NUM_FLOWS`.
//!
//! Nothing reads such a variable, so that a run with it would silently use the default. It is only a warning,
//! and only for names that hardly anything else uses: another program's `CONTENT` or `DEVICES` is none of our
//! business.

use std::collections::BTreeSet;
use std::ffi::OsString;

use clap::CommandFactory;

use super::Cli;

/// Variables that begin so are ours alone.
const PREFIX: &str = "FLOWBENCH_";

/// Variables with [`PREFIX`] that no flag has: those of this project's own tests.
const TESTS: &str = "FLOWBENCH_TEST_";

/// A warning for each of `variables` that is probably a misspelled one of ours.
pub fn misspelled(variables: impl IntoIterator<Item = OsString>) -> Vec<String> {
    let known = known();
    let mut warnings: Vec<String> = variables
        .into_iter()
        .filter_map(|name| warning(name.to_str()?, &known))
        .collect();
    warnings.sort();
    warnings
}

/// The variables of all flags.
fn known() -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    let mut commands = vec![Cli::command()];
    while let Some(command) = commands.pop() {
        let variables = command.get_arguments().filter_map(|flag| flag.get_env());
        known.extend(variables.map(|name| name.to_string_lossy().into_owned()));
        commands.extend(command.get_subcommands().cloned());
    }
    known
}

fn warning(name: &str, known: &BTreeSet<String>) -> Option<String> {
    if known.contains(name) || name.starts_with(TESTS) {
        return None;
    }
    let meant = known
        .iter()
        .filter_map(|variable| Some((nearness(name, variable)?, variable)))
        .min();
    match meant {
        Some((_, meant)) => Some(format!(
            "warning: the environment variable {name} is not read; did you mean {meant}?"
        )),
        None if name.starts_with(PREFIX) => Some(format!(
            "warning: the environment variable {name} is not read; `flowbench run --help` names all that are"
        )),
        None => None,
    }
}

/// How many edits away a name is from one of our variables; `None` if it may well be someone else's.
///
/// Names of two words may differ in case and underscores, and by one edit from 7 letters on, by two from 11
/// on. Names of a single word are words that others use, too: one edit, from 8 letters on, and not a plural.
fn nearness(name: &str, variable: &str) -> Option<usize> {
    let letters = |text: &str| -> Vec<char> {
        let all = text.chars().filter(|c| *c != '_' && *c != '-');
        all.map(|c| c.to_ascii_uppercase()).collect()
    };
    let (ours, theirs) = (letters(variable), letters(name));
    let is_compound = variable.contains('_');
    let allowed = match (is_compound, ours.len()) {
        (true, 11..) => 2,
        (true, 7..) => 1,
        (true, _) => 0,
        (false, 8..) => 1,
        (false, _) => return None,
    };
    if !is_compound && (name != name.to_uppercase() || name.strip_suffix('S') == Some(variable)) {
        return None;
    }
    let distance = distance(&ours, &theirs);
    // A key is a secret of some service: nobody's APIKEY is a mistake.
    (distance <= allowed && variable != "API_KEY").then_some(distance)
}

/// Edits that make one into the other: insertions, deletions, replacements, and swaps of two neighbours
/// (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = match (i, j) {
                (0, other) | (other, 0) => other,
                _ => {
                    let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                    let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                    let swap = if swapped {
                        rows[i - 2][j - 2] + 1
                    } else {
                        usize::MAX
                    };
                    (rows[i - 1][j] + 1)
                        .min(rows[i][j - 1] + 1)
                        .min(replaced)
                        .min(swap)
                }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(name: &str) -> Option<String> {
        let warnings = misspelled([OsString::from(name)]);
        let warning = warnings.first()?;
        let (_, meant) = warning.split_once("did you mean ")?;
        Some(meant.trim_end_matches('?').to_owned())
    }

    #[test]
    fn misspelled_variables_are_told() {
        for (name, variable) in [
            ("NUMFLOWS", "NUM_FLOWS"),
            ("NUM_FLOW", "NUM_FLOWS"),
            ("num_flows", "NUM_FLOWS"),
            ("NUM-FLOWS", "NUM_FLOWS"),
            ("FLOWBENCH_ROT", "FLOWBENCH_ROOT"),
            ("FLOWBENCHROOT", "FLOWBENCH_ROOT"),
            ("MAXTOKENS", "MAX_TOKENS"),
            ("TEMPALTE", "TEMPLATE"),
            ("CONCURENCY", "CONCURRENCY"),
            ("KV_CACHE_MIB", "KV_CACHE_MB"),
            ("ENDPOINT_HEADER", "ENDPOINT_HEADERS"),
        ] {
            assert_eq!(meant(name).as_deref(), Some(variable), "{name}");
        }
        let other = misspelled([OsString::from("FLOWBENCH_COLOUR")]);
        assert!(other[0].contains("is not read; `flowbench run --help`"));
    }

    /// What shells, desktops, CI services, and the tools of this field set.
    #[test]
    fn variables_of_other_programs_are_not() {
        let common = "PATH HOME HOSTNAME USER SHELL TERM PWD OLDPWD LANG LC_ALL LOGNAME MAIL EDITOR PAGER TMPDIR \
            DISPLAY COLUMNS LINES SHLVL HOST HOSTTYPE MACHTYPE OSTYPE XDG_CACHE_HOME XDG_RUNTIME_DIR SSH_TTY \
            NODE NODE_ENV NODE_PATH MODEM CODE MODES MODELS DEVICES SCRIPTS ROUND BOUNDS CONTENT CONTEXTS RECORDS \
            PYTHON3 PYTHONPATH PYTHONHOME PYTHON_VERSION PYTHON_BIN VIRTUAL_ENV CONDA_PREFIX PROFILES AWS_PROFILE \
            TEMPLATES BACKENDS ENDPOINTS TOKENIZERS_PARALLELISM APIKEY API_KEYS OPENAI_API_KEY HF_DATASETS_CACHE \
            HF_XET_CACHE HF_HUB_ENABLE_HF_TRANSFER HF_ASSETS_CACHE TRANSFORMERS_OFFLINE TRANSFORMERS_CACHE \
            CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_HOME LD_LIBRARY_PATH OMP_NUM_THREADS MKL_NUM_THREADS NUM_THREADS NUM_WORKERS \
            RAYON_NUM_THREADS CARGO_HOME CARGO_TARGET_DIR RUSTUP_HOME RUSTFLAGS RUST_LOG RUST_BACKTRACE CI DEBUG \
            GITHUB_STEP_SUMMARY GITHUB_OUTPUT GITHUB_ENV RUNNER_OS RUNNER_TEMP BUILD_ID JOB_NAME SLURM_JOB_ID \
            SEEDS SHARED SHARDS QUIT TOKEN TOKENS MAX_LEN MAX_JOBS OUTPUT INPUT LIMIT REPEATS RETRIES TIMEOUT \
            WORLD_SIZE RANK LOCAL_RANK MASTER_ADDR VLLM_USE_V1 OLLAMA_HOST OLLAMA_MODELS LLAMA_CACHE GGML_CUDA \
            http_proxy https_proxy no_proxy all_proxy SSL_CERT_FILE REQUESTS_CA_BUNDLE CURL_CA_BUNDLE \
            mode model device template context profile endpoint concurrency npm_config_cache \
            FLOWBENCH_TEST_MODEL FLOWBENCH_TEST_PYTHON NUM_FLOWS FLOWBENCH_ROOT MODE";
        let names = common.split_whitespace().map(OsString::from);
        assert_eq!(misspelled(names), [""; 0]);
    }
}
