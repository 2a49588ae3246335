#!/usr/bin/env bash
# Checks that the CUDA build compiles, on machines with or without a GPU.
# See --help.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
readonly repo
readonly target=target/cuda
build=0

usage() {
    cat <<'TEXT'
Lint the CUDA build; with --build, link it as well.

Usage: scripts/check-cuda.sh [--build]

  --build  Also make the release binary, target/cuda/release/flowbench. Without
           a driver it links against a stand-in for libcuda, and does not start.

Uses the toolkit that `scripts/cuda-toolkit.sh env` finds or installs.

Environment:
  CUDA_COMPUTE_CAP  the architecture to compile kernels for, 90 or 9.0 (default:
                    90). A binary that is to run needs the one of its card:
                    nvidia-smi --query-gpu=compute_cap --format=csv,noheader

The first run compiles every CUDA kernel and takes about 10 minutes on two
cores, --build 5 more; target/cuda (1.1 GB) keeps what is compiled.

Exit status: 0 done, 2 usage, 3 something that it needs is missing; otherwise
cargo's own, 101, with its messages.
TEXT
}

fail() {
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit "${3:-3}"
}

for argument in "$@"; do
    case $argument in
    -h | --help)
        usage
        exit
        ;;
    --build) build=1 ;;
    *) fail "unknown argument '$argument': expected --build" "scripts/check-cuda.sh --help" 2 ;;
    esac
done

cd "$repo"
command -v cargo >/dev/null ||
    fail "cargo is not on PATH" "install Rust, or load its environment (. ~/.cargo/env)"
cargo clippy --version >/dev/null 2>&1 ||
    fail "cargo has no clippy" "rustup component add clippy"

# Apart from the `eval`, which would lose the exit status.
exports=$(scripts/cuda-toolkit.sh env) || exit
eval "$exports"
CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
# nvidia-smi writes 9.0; the kernels' build script takes 90 alone.
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP/./}
printf 'CUDA toolkit: %s, compute capability %s\n' "$CUDA_HOME" "$CUDA_COMPUTE_CAP" >&2

# --release for both: the kernels are compiled by a build script, whose output
# cargo keeps by profile. So the lint and the build share the ten minutes.
cargo clippy --release --locked --all-targets --features cuda --target-dir "$target" -- -D warnings
if ((build)); then
    cargo build --release --locked --features cuda --target-dir "$target"
fi
