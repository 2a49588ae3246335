#!/usr/bin/env bash
# Runs the portable kernels and the thread pool under Miri, which finds undefined behaviour and data
# races. See --help.
set -euo pipefail

usage() {
    cat <<'TEXT'
Run tests of crates/kernels under Miri.

Usage: scripts/miri.sh [NAME...]

  NAME  tests whose names contain NAME (default: the pool and its row helpers,
        scratch memory, repacking, and the scalar kernels' quantisation, vector
        operations and products)

Miri interprets the code, about a thousand times slower than it runs, so tests
use smaller sizes under it. It runs neither SIMD families nor reserved memory
(attention): it knows few of their instructions and no PROT_NONE mapping.

Needs a nightly toolchain:
  rustup toolchain install nightly --component miri,rust-src
TEXT
}

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    usage
    exit
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if ! cargo +nightly miri --version >/dev/null 2>&1; then
    printf 'error: there is no Miri\nhint: rustup toolchain install nightly --component miri,rust-src\n' >&2
    exit 3
fi

tests=("$@")
if ((${#tests[@]} == 0)); then
    tests=(
        pool:: parallel:: scratch:: half::rounds a_wrong_shape
        scalar_family::quantizes scalar_family::vector scalar_family::multiplies
        scalar_paired_family::multiplies
    )
fi
# The pool reads the clock; regions of memory are kept for the life of the process.
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-ignore-leaks ${MIRIFLAGS:-}"
cargo +nightly miri test --locked -p flowbench-kernels --lib -- "${tests[@]}"
