#!/usr/bin/env bash
# Checks that the CUDA build compiles, on machines with or without a GPU.
# See --help.
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
readonly repo
target=target/cuda
build=0
stand_in=0

usage() {
    cat <<'TEXT'
Lint the CUDA build; with --build, link it as well.

Usage: scripts/check-cuda.sh [--build | --stand-in]

  --build     Also make the release binary, target/cuda/release/flowbench.
              Without a driver it links against a stand-in for libcuda, and does
              not start.
  --stand-in  Lint without a CUDA toolkit: scripts/stand-in-nvcc.sh takes the
              place of nvcc, whether or not the machine has one.

Uses the toolkit that `scripts/cuda-toolkit.sh env` finds or installs.

--stand-in checks the Rust code under the `cuda` feature, tests and benches
included: that it compiles and that clippy has no complaint, against the API of
candle and of cudarc for CUDA 13.0. It does not check that a kernel compiles, nor
that anything links or runs: kernels are not compiled, and nothing is linked but
build scripts and macros. Run the check without it after a change to the versions
of candle, cudarc or the toolkit.

Environment:
  CUDA_COMPUTE_CAP  the architecture to compile kernels for, 90 or 9.0 (default:
                    90). A binary that is to run needs the one of its card:
                    nvidia-smi --query-gpu=compute_cap --format=csv,noheader

The first run compiles every CUDA kernel and takes about 10 minutes on two
cores, --build 5 more; target/cuda (1.1 GB) keeps what is compiled. The first run
of --stand-in takes about 2 minutes (3 of CPU time); target/cuda-stand-in (0.4 GB)
keeps what it makes, and target/cuda is not touched.

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
    --stand-in) stand_in=1 ;;
    *) fail "unknown argument '$argument': expected --build or --stand-in" "scripts/check-cuda.sh --help" 2 ;;
    esac
done
((!build || !stand_in)) ||
    fail "--build needs a real toolkit: --stand-in compiles no kernel to link" "give one of the two" 2

use_toolkit() {
    local exports
    # Apart from the `eval`, which would lose the exit status.
    exports=$(scripts/cuda-toolkit.sh env) || exit
    eval "$exports"
}

# The build scripts of the CUDA crates look for nvcc, ask for its version, and
# have it write PTX and objects. Headers and libraries they only name to rustc
# and to nvcc, so that a toolkit of nvcc alone will do.
use_stand_in() {
    local root nvcc
    target=target/cuda-stand-in
    root=$repo/$target/toolkit
    nvcc=$root/bin/nvcc
    # Cargo sees a change of nvcc's path and not of what it does: what another
    # stand-in has made is stale. The path stays the same from run to run, or
    # cargo would start over each time.
    if [[ ! -x $nvcc || $(<"$nvcc") != "$(<scripts/stand-in-nvcc.sh)" ]]; then
        rm -rf "$target"
        mkdir -p "$root/bin"
        cp scripts/stand-in-nvcc.sh "$nvcc"
        chmod +x "$nvcc"
    fi
    export CUDA_HOME=$root CUDA_PATH=$root NVCC=$nvcc PATH=$root/bin:$PATH
    # It would be believed before nvcc.
    unset CUDARC_CUDA_VERSION
    # Where one is configured, the real build may keep its kernels in it.
    export CARGO_BUILD_BUILD_DIR=$target
    printf 'nvcc is a stand-in: no kernel is compiled, nothing is linked\n' >&2
}

cd "$repo"
command -v cargo >/dev/null ||
    fail "cargo is not on PATH" "install Rust, or load its environment (. ~/.cargo/env)"
cargo clippy --version >/dev/null 2>&1 ||
    fail "cargo has no clippy" "rustup component add clippy"

if ((stand_in)); then
    use_stand_in
else
    use_toolkit
fi
# Always set: the build script would ask nvidia-smi, which may not be there.
CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
# nvidia-smi writes 9.0; the kernels' build script takes 90 alone.
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP/./}
printf 'CUDA toolkit: %s, compute capability %s\n' "$CUDA_HOME" "$CUDA_COMPUTE_CAP" >&2

# --release for both: the kernels are compiled by a build script, whose output
# cargo keeps by profile. So the lint and the build share the ten minutes.
cargo clippy --release --locked --workspace --all-targets --features cuda --target-dir "$target" -- -D warnings
if ((build)); then
    cargo build --release --locked --features cuda --target-dir "$target"
fi
