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
              Without a driver it links against a stub of libcuda, and does not
              start.
  --stand-in  Lint without a CUDA toolkit: scripts/stand-in-nvcc.sh replaces nvcc,
              even if the machine has one.

Uses the toolkit that `scripts/cuda-toolkit.sh env` finds or installs.

--stand-in checks that the Rust code under the `cuda` feature, tests and benches
included, compiles and passes clippy against the API of candle and of cudarc for
CUDA 13.0. It does not check that kernels compile, or that anything links or runs:
kernels are not compiled, and only build scripts and macros are linked. Run the
check without it after changing the version of candle, cudarc or the toolkit.

Environment:
  CUDA_COMPUTE_CAP  architecture to compile kernels for, as 90 or 9.0 (default:
                    90). To run the binary, it must be that of the GPU:
                    nvidia-smi --query-gpu=compute_cap --format=csv,noheader

The first run compiles every CUDA kernel and takes about 10 minutes on two
cores, --build 5 more; target/cuda (1.1 GB) keeps the output. The first run of
--stand-in takes about 2 minutes (3 of CPU time); target/cuda-stand-in (0.4 GB)
keeps the output, and target/cuda is not touched.

Exit status: 0 success, 2 usage error, 3 missing prerequisite; otherwise that of
cargo, 101, with its messages.
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
    fail "--build needs a real toolkit: --stand-in compiles no kernels to link" "give only one of them" 2

use_toolkit() {
    local exports
    # Separate from the `eval`, which would lose the exit status.
    exports=$(scripts/cuda-toolkit.sh env) || exit
    eval "$exports"
}

# The build scripts of the CUDA crates look for nvcc, query its version, and
# have it write PTX and objects. They only pass headers and libraries on to rustc
# and nvcc, so a toolkit that consists of nvcc is enough.
use_stand_in() {
    local root nvcc
    target=target/cuda-stand-in
    root=$repo/$target/toolkit
    nvcc=$root/bin/nvcc
    # Cargo detects a change of nvcc's path but not of its content, so the output
    # of a different stand-in is stale. The path must not change between runs, or
    # cargo would rebuild everything each time.
    if [[ ! -x $nvcc || $(<"$nvcc") != "$(<scripts/stand-in-nvcc.sh)" ]]; then
        rm -rf "$target"
        mkdir -p "$root/bin"
        cp scripts/stand-in-nvcc.sh "$nvcc"
        chmod +x "$nvcc"
    fi
    export CUDA_HOME=$root CUDA_PATH=$root NVCC=$nvcc PATH=$root/bin:$PATH
    # It would take precedence over nvcc.
    unset CUDARC_CUDA_VERSION
    # A configured build folder may hold the kernels of the real build.
    export CARGO_BUILD_BUILD_DIR=$target
    printf 'nvcc is a stand-in: no kernels are compiled, nothing is linked\n' >&2
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
# Always set: otherwise the build script calls nvidia-smi, which may be missing.
CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-90}
# nvidia-smi prints 9.0, but the build script of the kernels only accepts 90.
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP/./}
printf 'CUDA toolkit: %s, compute capability %s\n' "$CUDA_HOME" "$CUDA_COMPUTE_CAP" >&2

# --release for both: a build script compiles the kernels, and cargo caches its
# output per profile. The lint and the build thus share the ten minutes.
cargo clippy --release --locked --workspace --all-targets --features cuda --target-dir "$target" -- -D warnings
if ((build)); then
    cargo build --release --locked --features cuda --target-dir "$target"
fi
