#!/usr/bin/env bash
# Builds flowbench and runs it:
#
#   NUM_FLOWS=25 MODE=standalone bash run.sh     run the default job
#   bash run.sh test                             run every test
#   bash run.sh doctor                           say what this machine lacks
#   bash run.sh expand|model|diagnose|report|... any other subcommand, with its flags
#
# The exit code is the program's own. The README lists the variables.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"

fail() { # message, hint: what a user must do first
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 3
}

command -v cargo >/dev/null 2>&1 ||
    fail 'cargo is not on PATH' 'install Rust 1.89 or later; rustup puts it into ~/.cargo/bin'

if [[ ${1-} == test ]]; then
    shift
    exec bash scripts/test.sh "$@"
fi

# The CUDA build, where a compiler and a card are there and the CPU is not asked for.
features=()
target=target
capability=
if [[ ${DEVICE-auto} != cpu ]] && command -v nvcc >/dev/null 2>&1 && command -v nvidia-smi >/dev/null 2>&1; then
    # The kernels are compiled for the card that is there: as 9.0, without the dot.
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. \r') || capability=
fi
if [[ $capability =~ ^[0-9]+$ ]]; then
    export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-$capability}
    features=(--features cuda)
    target=target/cuda
    build="CUDA, compute capability $CUDA_COMPUTE_CAP"
else
    build=CPU
fi

# Set before the process starts: CUDA reads it once.
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}

[[ ${QUIET-0} == 1 ]] || printf '[PROGRESS] Building (%s); the first time takes some minutes\n' "$build" >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# On a terminal the compiler's own progress is worth seeing; in a log only its errors are.
if [[ -t 2 && ${QUIET-0} != 1 ]]; then
    cargo build --release --locked --target-dir "$target" ${features[@]+"${features[@]}"} ||
        fail 'the build failed' 'the errors are above; it needs Rust 1.89 or later and a C compiler as its linker'
else
    cargo build --release --locked --target-dir "$target" ${features[@]+"${features[@]}"} >"$log" 2>&1 || {
        cat "$log" >&2
        fail 'the build failed' 'the errors are above; it needs Rust 1.89 or later, and the crates (cargo fetch) where there is no network'
    }
fi
rm -f "$log"
trap - EXIT

binary=$target/release/flowbench
# The loader would name the first missing library only, and nothing of what to do.
if [[ ${#features[@]} -gt 0 ]]; then
    missing=$(ldd "$binary" 2>/dev/null | awk '/not found/ { printf "%s ", $1 }') || missing=
    if [[ -n $missing ]]; then
        fail "the CUDA build needs libraries that are not here: $missing" \
            'libcuda.so.1 comes with the NVIDIA driver; the others with the CUDA toolkit (its lib64 folder must be on LD_LIBRARY_PATH). DEVICE=cpu runs without them'
    fi
fi

case ${1-} in
run | expand | diagnose | report | merge | doctor | model | bench-engine | help | --help | -h | --version | -V) exec "$binary" "$@" ;;
*) exec "$binary" run "$@" ;;
esac
