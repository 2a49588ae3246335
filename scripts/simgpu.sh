#!/usr/bin/env bash
# Builds the simulated GPU (tests/simgpu) and prints the folder of its libraries, and nothing else, on stdout:
#
#   LD_LIBRARY_PATH=$(bash scripts/simgpu.sh) DEVICE=cuda flowbench run …
#
# With SIMGPU_CHECKS=1 in the environment, the kernels are instrumented: slower, and races, uninitialised reads and
# misaligned accesses fail the launch. tests/simgpu/README.md has the settings of both builds.
#
#   scripts/simgpu.sh --omit SYMBOL   the same libraries, without one function of the driver
#   scripts/simgpu.sh --selftest      builds and runs the tests of the simulator itself
#
# The compiler is the one of scripts/compiler.sh.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
sources=tests/simgpu

mode=build
symbol=
case ${1:-} in
  '') ;;
  --selftest) mode=selftest ;;
  --omit) mode=omit symbol=${2:?"usage: scripts/simgpu.sh --omit SYMBOL"} ;;
  *)
    echo "error: unknown argument $1" >&2
    exit 2
    ;;
esac

target=$(bash scripts/target-dir.sh)
mkdir -p "$target"
target=$(cd "$target" && pwd)

# One build at a time: tests may start several.
if command -v flock >/dev/null; then
  exec 9>"$target/simgpu.lock"
  flock 9
fi

# shellcheck source=scripts/compiler.sh
source scripts/compiler.sh
find_compiler "$target"

# What this processor has, so that a fused multiply-add is an instruction. The results do not depend on it.
machine=()
if [[ $(uname -m) == x86_64 ]] && grep -qw avx2 /proc/cpuinfo && grep -qw fma /proc/cpuinfo && grep -qw bmi2 /proc/cpuinfo; then
  # Zig spells it with underscores. An old compiler may know neither.
  for option in -march=x86-64-v3 -march=x86_64_v3; do
    if "${compiler[@]}" "$option" -fsyntax-only -x c++ /dev/null 2>/dev/null; then
      machine=("$option")
      break
    fi
  done
fi
common=(-std=c++17 -fPIC -fvisibility=hidden -ftls-model=initial-exec -fno-fast-math -ffp-contract=off -Wall -Wextra
  "${machine[@]}" "-I$sources")
runtime=("${common[@]}" -O3)
kernel=("${common[@]}" -O2 -fno-exceptions -Wno-unknown-pragmas -x c++)
instrumented=(-DSIMGPU_CHECKS)
# Each access of the source is to stay one access, with the hooks that checks.cpp defines. Of Clang, its first stage
# alone is told of them: Zig would add its own.
instrumented_kernel=(-g1 -fno-vectorize -fno-slp-vectorize -Xclang -fsanitize=thread)
if ! "${compiler[@]}" -dM -E -x c++ /dev/null | grep -q __clang__; then
  instrumented_kernel=(-g1 -fno-tree-vectorize -fno-tree-slp-vectorize -fno-store-merging -fsanitize=thread)
fi

# build FOLDER CHECKS KERNELS…: libcuda.so.1 and libnvidia-ml.so.1, unless the folder has them from these sources.
build() {
  local folder=$1 checks=$2
  shift 2
  local flags=("${runtime[@]}") kernel_flags=("${kernel[@]}")
  if [[ $checks == 1 ]]; then
    flags+=("${instrumented[@]}")
    kernel_flags+=("${instrumented[@]}" "${instrumented_kernel[@]}")
  fi
  local digest
  digest=$({
    printf '%s\n' "${flags[@]}" "${kernel_flags[@]}" "$@"
    "${compiler[@]}" --version
    cat scripts/simgpu.sh "$sources"/*.h "$sources"/*.cpp "$@"
    # The kernels' own headers.
    find src/engine/cuda/kernels -name '*.h' -exec cat {} + 2>/dev/null || true
  } | sha256sum)
  if [[ -f $folder/digest && $(<"$folder/digest") == "$digest" ]]; then
    return
  fi
  echo "building the simulated GPU in $folder" >&2
  rm -rf "$folder.new"
  mkdir -p "$folder.new/objects"
  local file name objects=() jobs=()
  # Four compilers at once.
  run() {
    "${compiler[@]}" "$@" 9>&- &
    jobs+=($!)
    if ((${#jobs[@]} >= 4)); then
      wait "${jobs[0]}"
      jobs=("${jobs[@]:1}")
    fi
  }
  for file in "$sources"/*.cpp; do
    name=$(basename "$file" .cpp)
    case $name in
      selftest* | nvml) continue ;;
      checks | accesses) [[ $checks == 1 ]] || continue ;;
    esac
    objects+=("$folder.new/objects/$name.o")
    run "${flags[@]}" -c "$file" -o "$folder.new/objects/$name.o"
  done
  for file in "$@"; do
    name=kernel-$(basename "$file" .cu)
    objects+=("$folder.new/objects/$name.o")
    run "${kernel_flags[@]}" -c "$file" -o "$folder.new/objects/$name.o"
  done
  local job
  for job in "${jobs[@]}"; do
    wait "$job"
  done
  "${compiler[@]}" -shared -Wl,-soname,libcuda.so.1 -Wl,-Bsymbolic -o "$folder.new/libcuda.so.1" "${objects[@]}" -pthread -ldl
  "${compiler[@]}" "${flags[@]}" -shared -Wl,-soname,libnvidia-ml.so.1 -o "$folder.new/libnvidia-ml.so.1" "$sources/nvml.cpp"
  # The names that loaders try first.
  ln -s libcuda.so.1 "$folder.new/libcuda.so"
  ln -s libnvidia-ml.so.1 "$folder.new/libnvidia-ml.so"
  rm -rf "$folder.new/objects"
  printf '%s\n' "$digest" >"$folder.new/digest"
  rm -rf "$folder"
  mv "$folder.new" "$folder"
}

selftest() {
  local checks=$1 folder=$target/simgpu-selftest
  local flags=("${common[@]}" -O1)
  if [[ $checks == 1 ]]; then
    folder+=-checks
    flags+=("${instrumented[@]}")
  fi
  build "$folder" "$checks" "$sources/selftest.cu"
  "${compiler[@]}" "${flags[@]}" "$sources"/selftest*.cpp -o "$folder/selftest" -L"$folder" -l:libcuda.so.1 -l:libnvidia-ml.so.1 -pthread
  LD_LIBRARY_PATH=$folder "$folder/selftest" >&2
}

# The copy lacks one function and has the others.
selftest_omit() {
  local copy=$target/simgpu-selftest/omitted.so
  cp "$target/simgpu-selftest/libcuda.so.1" "$copy"
  python3 "$sources/omit.py" "$copy" cuMemAlloc_v2
  python3 - "$copy" >&2 <<'END'
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
assert hasattr(library, "cuInit") and hasattr(library, "cuMemAllocAsync")
assert not hasattr(library, "cuMemAlloc_v2"), "omit.py left cuMemAlloc_v2"
END
}

if [[ $mode == selftest ]]; then
  selftest 0
  selftest 1
  selftest_omit
  exit
fi

shopt -s nullglob
kernels=(src/engine/cuda/kernels/*.cu)
checks=${SIMGPU_CHECKS:-0}
folder=$target/simgpu
if [[ $checks == 1 ]]; then
  folder+=-checks
fi
build "$folder" "$checks" "${kernels[@]}"
if [[ $mode == omit ]]; then
  omitted=$folder-omit-$symbol
  if ! cmp -s "$folder/digest" "$omitted/digest"; then
    rm -rf "$omitted" "$omitted.new"
    cp -r "$folder" "$omitted.new"
    python3 "$sources/omit.py" "$omitted.new/libcuda.so.1" "$symbol" >&2
    mv "$omitted.new" "$omitted"
  fi
  folder=$omitted
fi
printf '%s\n' "$folder"
