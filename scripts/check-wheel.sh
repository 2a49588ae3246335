#!/usr/bin/env bash
# Builds the Python wheel, installs it into a clean environment, and runs the default job and a fresh folder from
# it in a folder without a checkout.
#
#   bash scripts/check-wheel.sh              of the release build
#   PROFILE=dev bash scripts/check-wheel.sh  of the build that `cargo test` has made
#
# It installs maturin into .venv/. The wheel is for this machine's C library: for others it is built in a
# manylinux container.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
    printf 'error: %s\n' "$1" >&2
    exit 1
}

cd "$checkout"
maturin=.venv/bin/maturin
if [[ ! -x $maturin ]]; then
    python3 -m venv .venv
    .venv/bin/pip install --quiet --disable-pip-version-check maturin==1.16.0
fi
"$maturin" build --profile "${PROFILE:-release}" --compatibility linux --out "$work/wheels"

python3 -m venv "$work/clean"
"$work/clean/bin/pip" install --quiet --disable-pip-version-check --no-index "$work"/wheels/flowbench-*.whl

mkdir "$work/folder"
cd "$work/folder"
flowbench() {
    env -i PATH="$work/clean/bin:/usr/bin:/bin" HOME="$work/folder" MODE=scripted SCRIPT_LATENCY=0 \
        ${variables[@]+"${variables[@]}"} flowbench "$@"
}
variables=()
flowbench --version
flowbench run >run.log
steps=$(grep -c '^\[TARGET\]' run.log) || true
[[ $steps == 75 ]] || fail "the default job has 75 steps, and $steps were run"
[[ -d flows && -d results ]] || fail 'flows/ and results/ are not in the working directory'

flowbench init mybench >/dev/null
cd mybench
variables=(TEMPLATE=review)
flowbench run >run.log
flowbench diagnose >/dev/null
printf 'the wheel works: %s\n' "$(basename "$work"/wheels/*.whl)"
