#!/usr/bin/env bash
# Builds flowbench and runs it:
#
#   NUM_FLOWS=25 MODE=standalone bash run.sh     run the default job
#   bash run.sh test                             run every test
#   bash run.sh doctor                           say what this machine lacks
#   bash run.sh init|expand|model|diagnose|report|... any other subcommand, with its flags
#
# Paths are relative to the folder that it is called in. That folder is the root, too, if it has templates/;
# otherwise the checkout is. The exit code is the program's own. The README lists the variables.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() { # message, hint: what a user must do first
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 3
}

command -v cargo >/dev/null 2>&1 ||
    fail 'cargo is not on PATH' 'install Rust 1.89 or later; rustup puts it into ~/.cargo/bin'

if [[ ${1-} == test ]]; then
    shift
    exec bash "$checkout/scripts/test.sh" "$@"
fi

if [[ -z ${FLOWBENCH_ROOT+set} && ! -d templates ]]; then
    export FLOWBENCH_ROOT=$checkout
fi

# The CUDA build, where a compiler and a card are there and the CPU is not asked for. It has a folder
# of its own beside the plain build's, wherever that is (CARGO_TARGET_DIR, build.target-dir).
options=()
build=CPU
capability=
if [[ ${DEVICE-auto} != cpu ]] && command -v nvcc >/dev/null 2>&1 && command -v nvidia-smi >/dev/null 2>&1; then
    # The kernels are compiled for the card that is there: as 9.0, without the dot.
    capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d '. \r') || capability=
fi
if [[ $capability =~ ^[0-9]+$ ]]; then
    export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-$capability}
    options=(--features cuda --target-dir "$(bash "$checkout/scripts/target-dir.sh")/cuda")
    build="CUDA, compute capability $CUDA_COMPUTE_CAP"
fi

# Set before the process starts: CUDA reads it once.
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}

# Cargo says where the program is (messages in JSON, on stdout) and, as it starts on a crate, that
# something is to be built at all (on stderr). It is started in the checkout, whose settings it reads.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
compile() {
    (cd "$checkout" && cargo build --release --locked --bin flowbench ${options[@]+"${options[@]}"} \
        --message-format json-render-diagnostics) >"$work/messages"
}
announce() {
    local line told=0
    while IFS= read -r line; do
        printf '%s\n' "$line"
        if [[ $told == 0 && $line == *Compiling* ]]; then
            told=1
            [[ ${QUIET-0} == 1 ]] || printf '[PROGRESS] Building (%s); the first time takes some minutes\n' "$build" >&2
        fi
    done
}
# On a terminal the compiler's own progress is worth seeing; in a log only its errors are.
if [[ -t 2 && ${QUIET-0} != 1 ]]; then
    compile || fail 'the build failed' 'the errors are above; it needs Rust 1.89 or later and a C compiler as its linker'
else
    compile 2> >(announce >"$work/log") || {
        wait
        cat "$work/log" >&2
        fail 'the build failed' 'the errors are above; it needs Rust 1.89 or later, and the crates (cargo fetch) where there is no network'
    }
fi
binary=$(bash "$checkout/scripts/executable.sh" <"$work/messages") ||
    fail 'cargo did not say where the program is' 'its version may be too old: Rust 1.89 or later is needed'
rm -rf "$work"
trap - EXIT

# The loader would name the first missing library only, and nothing of what to do.
if [[ ${#options[@]} -gt 0 ]]; then
    missing=$(ldd "$binary" 2>/dev/null | awk '/not found/ { printf "%s ", $1 }') || missing=
    if [[ -n $missing ]]; then
        fail "the CUDA build needs libraries that are not here: $missing" \
            'libcuda.so.1 comes with the NVIDIA driver; the others with the CUDA toolkit (its lib64 folder must be on LD_LIBRARY_PATH). DEVICE=cpu runs without them'
    fi
fi

# A first word is a subcommand; flags alone are those of `run`.
case ${1-} in
--help | -h | --version | -V | [!-]*) exec "$binary" "$@" ;;
*) exec "$binary" run "$@" ;;
esac
