#!/usr/bin/env bash
# Replaces nvcc when only the Rust code of the CUDA build is checked:
# scripts/check-cuda.sh --stand-in installs it as `nvcc`. It compiles nothing.
# It prints a version and creates the requested output file, which contains no
# machine code: linking or loading it fails.
set -euo pipefail

# cudarc selects its bindings by this: the release that scripts/cuda-toolkit.sh pins.
readonly RELEASE=13.0

output=''
folder=''
kernel=''
while (($#)); do
    case $1 in
    --version)
        # cudarc reads the fourth line, and cudaforge the one with "release".
        printf '%s\n' 'nvcc: a stand-in that compiles nothing' '' '' \
            "Cuda compilation tools, release $RELEASE, V$RELEASE.0"
        exit
        ;;
    # Objects and libraries are requested by name, PTX by output folder.
    -o) output=${2:-} ;;
    --output-directory) folder=${2:-} ;;
    *.cu) kernel=${1##*/} ;;
    esac
    shift
done

if [[ -z $output && -n $folder && -n $kernel ]]; then
    output=$folder/${kernel%.cu}.ptx
fi
# Fail loudly: a build script with other arguments would get no file.
if [[ -z $output ]]; then
    printf 'error: the stand-in for nvcc cannot determine its output file\n' >&2
    printf 'hint: adapt scripts/stand-in-nvcc.sh to the arguments of the build script\n' >&2
    exit 1
fi
# Print nothing on stdout: cargo would attribute it to the build script.
printf '// A stand-in: no kernel was compiled.\n' >"$output"
