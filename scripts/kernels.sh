#!/usr/bin/env bash
# Compiles the CUDA kernels to the PTX files that the binary embeds. Needs Python and no GPU: the compiler comes
# from a wheel, into target/nvrtc.
#
#   bash scripts/kernels.sh            compile, after a change of a kernel
#   bash scripts/kernels.sh --check    compile, and compare with the files
#   bash scripts/kernels.sh --table    registers, spills and shared memory for each card
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# The oldest compiler that has all that the kernels use. Its PTX, 8.1, needs the driver 530 or later.
nvrtc=nvidia-cuda-nvrtc-cu12==12.1.105
# The first that knows every card of the table.
ptxas=nvidia-cuda-nvcc-cu12==12.9.86

folder=$(bash scripts/target-dir.sh)/nvrtc
install() { # package
    local to=$folder/$1
    if [[ ! -d $to ]]; then
        python3 -m pip install --quiet --no-deps --target "$to.part" "$1" >&2
        mv "$to.part" "$to"
    fi
    printf '%s\n' "$to"
}

case ${1-} in
'') task=build ;;
--check) task=check ;;
--table)
    tools=$(install "$ptxas")
    exec python3 scripts/kernels.py - table "$tools/nvidia/cuda_nvcc/bin/ptxas"
    ;;
*)
    printf 'error: unknown option %s\nhint: --check or --table\n' "$1" >&2
    exit 2
    ;;
esac
compiler=$(install "$nvrtc")/nvidia/cuda_nvrtc/lib
# The compiler loads its built-in functions from its own folder.
LD_LIBRARY_PATH=$compiler${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} python3 scripts/kernels.py "$compiler" "$task"
