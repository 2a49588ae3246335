#!/usr/bin/env bash
# Takes nvcc's place where only the Rust code of the CUDA build is looked at:
# scripts/check-cuda.sh --stand-in installs it as `nvcc`. It compiles nothing.
# It tells its version, and writes the file that it is asked for, whose content
# is no machine code: what links it or loads it fails.
set -euo pipefail

# cudarc takes its bindings by it: the release that scripts/cuda-toolkit.sh pins.
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
    # Objects and libraries are asked for by name, PTX by the folder it goes to.
    -o) output=${2:-} ;;
    --output-directory) folder=${2:-} ;;
    *.cu) kernel=${1##*/} ;;
    esac
    shift
done

if [[ -z $output && -n $folder && -n $kernel ]]; then
    output=$folder/${kernel%.cu}.ptx
fi
# Not silently: a build script that asks in another form gets no file otherwise.
if [[ -z $output ]]; then
    printf 'error: the stand-in for nvcc does not know what to write\n' >&2
    printf 'hint: adapt scripts/stand-in-nvcc.sh to how the build script calls nvcc\n' >&2
    exit 1
fi
# Nothing on stdout, where cargo would take it for the build script's.
printf '// A stand-in: no kernel was compiled.\n' >"$output"
