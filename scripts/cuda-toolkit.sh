#!/usr/bin/env bash
# Provides the CUDA compiler and the libraries to link for `--features cuda`, on
# machines with or without a GPU. See --help.
set -euo pipefail

# These versions belong together: all parts of the compiler are from one release,
# and 13.0 is the newest whose output a driver of the 580 series accepts.
readonly WHEELS=(
    nvidia-cuda-nvcc==13.0.88
    nvidia-nvvm==13.0.88
    nvidia-cuda-crt==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85
    nvidia-cuda-nvrtc==13.0.88
    nvidia-cublas==13.1.0.3
    nvidia-curand==10.4.0.35
)
# Libraries linked by their unversioned name, which the wheels do not contain.
readonly LINKED=(libcudart libcublas libcublasLt libcurand libnvrtc)
# Incremented when the layout below changes, so that older installs are redone.
readonly LAYOUT=1
# Space for the wheels (0.7 GB) and their unpacked content (1.2 GB) together.
readonly NEEDED_KIB=$((2600 * 1024))

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
readonly repo
readonly store=$repo/.toolkit
readonly root=$store/nvidia/cu13
readonly stamp=$store/installed
readonly partial=$store/partial
readonly stub=$root/lib/stubs/libcuda.so
command='install'

usage() {
    cat <<'TEXT'
Install the CUDA compiler into .toolkit/, or print how to use it.

Usage: scripts/cuda-toolkit.sh [install | env]

  install  Install the pinned toolkit into .toolkit/ (default). Does nothing if
           the same versions are installed; completes or repeats an interrupted
           install.
  env      Print the `export` lines for a build:
               eval "$(scripts/cuda-toolkit.sh env)"
           Prefers a toolkit of the system: $CUDA_HOME, then nvcc on PATH, then
           /usr/local/cuda. Without one, installs first.

Needs python3 with pip, cargo and a C++ compiler; about 0.7 GB are downloaded
and 1.2 GB kept. Remove .toolkit/ to uninstall.

The toolkit compiles and links. Running the result also needs the NVIDIA driver:
.toolkit/ contains only a stub of it, under lib/stubs.

Exit status: 0 success, 2 usage error, 3 missing prerequisite.
TEXT
}

note() { printf '%s\n' "$*" >&2; }

# fail MESSAGE HINT
fail() {
    note "error: $1"
    note "hint: $2"
    # `eval "$(… env)"` sees the output but not the exit status, so the output has
    # to carry the failure as well.
    if [[ $command == env ]]; then
        echo '(exit 3)'
    fi
    exit 3
}

wanted_stamp() {
    printf 'layout %s\n' "$LAYOUT"
    printf '%s\n' "${WHEELS[@]}"
}

# The version in Cargo.lock: the stub has to define the functions that it binds.
cudarc_version() {
    awk '$0 == "name = \"cudarc\"" { getline; gsub(/[^0-9.]/, ""); print; exit }' "$repo/Cargo.lock"
}

wheels_are_in() {
    [[ -f $stamp && -x $root/bin/nvcc && $(<"$stamp") == "$(wanted_stamp)" ]]
}

stub_is_in() {
    [[ -f $stub && -f $stub.cudarc && $(<"$stub.cudarc") == "$(cudarc_version)" ]]
}

check_prerequisites() {
    [[ $(uname -s) == Linux ]] ||
        fail "the CUDA wheels are for Linux, but this is $(uname -s)" \
            "build without \`--features cuda\`"
    command -v python3 >/dev/null ||
        fail "failed to install the CUDA toolkit: python3 is not on PATH" \
            "install Python 3 with pip, or your own CUDA toolkit (nvcc on PATH)"
    python3 -m pip --version >/dev/null 2>&1 ||
        fail "failed to install the CUDA toolkit: python3 has no pip" \
            "install it (python3 -m ensurepip, or your system's python3-pip package)"
    command -v cargo >/dev/null ||
        fail "failed to install the CUDA toolkit: cargo is not on PATH" \
            "install Rust, or load its environment (. ~/.cargo/env)"
    local tool
    for tool in cc c++; do
        command -v "$tool" >/dev/null ||
            fail "failed to install the CUDA toolkit: $tool is missing, and nvcc needs a host compiler" \
                "install g++"
    done
}

check_disk() {
    local free_kib
    free_kib=$(df -Pk "$store" | awk 'NR == 2 { print $4 }')
    ((free_kib >= NEEDED_KIB)) ||
        fail "failed to install the CUDA toolkit: $((free_kib / 1024)) MiB free in $store, $((NEEDED_KIB / 1024)) MiB needed" \
            "free some disk space, or make .toolkit a link to a folder on another disk"
}

# explain_pip LOG: reports why pip failed.
explain_pip() {
    if grep -q 'No space left on device' "$1"; then
        fail "failed to install the CUDA toolkit: the disk is full" \
            "free some disk space and try again"
    elif grep -qiE 'NewConnectionError|name resolution|ConnectTimeout|ReadTimeout|ProxyError|SSLError|Connection(Reset|Refused|Error)|Network is unreachable|timed out' "$1"; then
        fail "failed to download the CUDA toolkit: the package registry is unreachable" \
            "check the network and try again; pip's output is in ${1#"$repo"/}"
    elif grep -q 'No matching distribution found' "$1"; then
        fail "failed to download the CUDA toolkit: the registry has no $(sed -n 's/.*No matching distribution found for //p' "$1" | head -n 1) for this machine ($(uname -m))" \
            "check the network and pip's index; pip's output is in ${1#"$repo"/}"
    fi
    fail "failed to install the CUDA toolkit: pip gave up" "its output is in ${1#"$repo"/}"
}

install_wheels() {
    local fresh=$partial/wheels/nvidia/cu13
    # Remains of a killed install; a failed one cleans up itself.
    rm -rf "$partial" "$stamp"
    trap 'rm -rf "$partial"' EXIT
    # pip exits cleanly when interrupted; that is not a failure to explain.
    trap 'exit 130' INT
    trap 'exit 143' TERM
    check_disk
    mkdir -p "$partial/tmp"
    note "installing the CUDA toolkit ${WHEELS[0]#*==} into ${store#"$repo"/}/ (0.7 GB to download)"
    # --no-deps: the list above is complete, and pins what the wheels leave open.
    # TMPDIR: /tmp is often small, and the free space was checked on this disk.
    # PIP_…: user settings that pip rejects together with --target or outside a
    # virtual environment.
    TMPDIR=$partial/tmp PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 python3 -m pip install \
        --disable-pip-version-check --no-input --no-deps --only-binary=:all: \
        --retries 3 --timeout 30 --target "$partial/wheels" "${WHEELS[@]}" \
        >"$store/pip.log" 2>&1 || explain_pip "$store/pip.log"
    lay_out "$fresh"
    try_nvcc "$fresh"
    rm -rf "$store/nvidia"
    mv "$partial/wheels/nvidia" "$store/nvidia"
    wanted_stamp >"$partial/stamp"
    mv "$partial/stamp" "$stamp"
    rm -rf "$partial"
    trap - EXIT INT TERM
}

# lay_out ROOT: creates the layout of an ordinary toolkit for the build scripts.
lay_out() {
    local name versioned
    ln -sfn lib "$1/lib64"
    for name in "${LINKED[@]}"; do
        versioned=("$1/lib/$name".so.*)
        [[ -f ${versioned[0]} ]] ||
            fail "failed to install the CUDA toolkit: its wheels have no $name" \
                "report it: the pinned versions in scripts/cuda-toolkit.sh do not match"
        ln -sfn "${versioned[0]##*/}" "$1/lib/$name.so"
    done
    mkdir -p "$1/lib/stubs"
}

# try_nvcc ROOT: compiles a small kernel, to detect a host compiler that nvcc
# rejects now rather than minutes into a build.
try_nvcc() {
    printf '#include <cuda_fp16.h>\n__global__ void twice(__half *x) { x[threadIdx.x] += x[threadIdx.x]; }\n' \
        >"$partial/try.cu"
    PATH=$1/bin:$PATH "$1/bin/nvcc" -arch=sm_80 -c -o "$partial/try.o" "$partial/try.cu" \
        >"$store/nvcc.log" 2>&1 ||
        fail "failed to install the CUDA toolkit: nvcc cannot compile here" \
            "see ${store#"$repo"/}/nvcc.log; set NVCC_CCBIN to use another host compiler"
}

# Prints the folder of the cudarc sources that Cargo.lock pins.
cudarc_source() {
    local metadata
    metadata=$(cd "$repo" && cargo metadata --locked --format-version 1 \
        --filter-platform "$(rustc -vV | sed -n 's/^host: //p')" --features cuda 2>"$store/cargo.log") ||
        return 1
    python3 -c '
import json, os, sys
packages = json.load(sys.stdin)["packages"]
print(next(os.path.dirname(p["manifest_path"]) for p in packages if p["name"] == "cudarc"))
' <<<"$metadata"
}

# Builds a libcuda.so to link against without a driver. Every function returns
# CUDA_ERROR_STUB_LIBRARY (34), as in the stub of NVIDIA's toolkit. Its soname is
# that of the driver, so that binaries load the real library.
build_stub() {
    local source bindings
    source=$(cudarc_source) ||
        fail "failed to make the stub of libcuda: cargo cannot find the source of cudarc" \
            "check the network; cargo's output is in ${store#"$repo"/}/cargo.log"
    bindings=$source/src/driver/sys/mod.rs
    mkdir -p "$root/lib/stubs"
    sed -nE 's/^ +fn (cu[A-Z][A-Za-z0-9_]*)\(.*/int \1(void) { return 34; }/p' "$bindings" |
        LC_ALL=C sort -u >"$root/lib/stubs/libcuda.c"
    [[ -s $root/lib/stubs/libcuda.c ]] ||
        fail "failed to make the stub of libcuda: cudarc $(cudarc_version) declares its functions differently" \
            "adapt build_stub in scripts/cuda-toolkit.sh"
    cc -shared -fPIC -O1 -Wl,-soname,libcuda.so.1 -o "$stub.tmp" "$root/lib/stubs/libcuda.c" ||
        fail "failed to make the stub of libcuda: cc cannot link a shared library" "install gcc and binutils"
    mv "$stub.tmp" "$stub"
    cudarc_version >"$stub.cudarc"
}

install() {
    if wheels_are_in && stub_is_in; then
        return
    fi
    check_prerequisites
    { mkdir -p "$store" && [[ -w $store ]]; } 2>/dev/null ||
        fail "failed to install the CUDA toolkit: $store is not writable" \
            "run it from your own checkout"
    # Two builds may run this at the same time; the second waits and finds it done.
    # The lock belongs to the process, so a killed one does not leave it behind.
    exec 9>"$store/lock"
    if command -v flock >/dev/null && ! flock --nonblock 9; then
        note "waiting for another install of the CUDA toolkit"
        flock 9
    fi
    wheels_are_in || install_wheels
    stub_is_in || build_stub
    exec 9>&-
    note "the CUDA toolkit is in ${store#"$repo"/}/"
}

# Prints the root of the system's toolkit, if it has one.
system_toolkit() {
    local nvcc found
    if [[ -n ${CUDA_HOME:-} && ! -x $CUDA_HOME/bin/nvcc ]]; then
        note "CUDA_HOME=$CUDA_HOME has no bin/nvcc: ignored"
    fi
    for nvcc in "${CUDA_HOME:-}/bin/nvcc" "$(command -v nvcc || true)" /usr/local/cuda/bin/nvcc; do
        # If CUDA_HOME is unset, the first one is /bin/nvcc; a toolkit there is on
        # PATH anyway.
        [[ -n $nvcc && -x $nvcc ]] || continue
        found=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
        # Our own, from an earlier `eval`: `install` checks it again.
        [[ $found != "$(readlink -f "$store")"/* ]] || continue
        printf '%s\n' "$found"
        return
    done
}

# print_env ROOT
print_env() {
    local libraries=$1/lib64
    printf 'export CUDA_HOME=%q\n' "$1"
    printf 'export CUDA_PATH=%q\n' "$1"
    printf 'export NVCC=%q\n' "$1/bin/nvcc"
    # cudarc calls `nvcc` by name to get its version.
    [[ :$PATH: == *":$1/bin:"* ]] ||
        printf "export PATH=%q:\"\$PATH\"\n" "$1/bin"
    # To run the build: a binary refers to its libraries by name, without a folder.
    [[ $1 == /usr || ! -d $libraries || :${LD_LIBRARY_PATH:-}: == *":$libraries:"* ]] ||
        printf "export LD_LIBRARY_PATH=%q\"\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}\"\n" "$libraries"
}

main() {
    local system
    if (($# > 1)); then
        note "error: expected at most one command, got: $*"
        note "hint: scripts/cuda-toolkit.sh --help"
        exit 2
    fi
    case ${1:-install} in
    -h | --help) usage ;;
    install) install ;;
    env)
        command='env'
        system=$(system_toolkit)
        if [[ -n $system ]]; then
            print_env "$system"
        else
            install
            print_env "$root"
        fi
        ;;
    *)
        note "error: unknown command '$1': expected install or env"
        note "hint: scripts/cuda-toolkit.sh --help"
        exit 2
        ;;
    esac
}

main "$@"
