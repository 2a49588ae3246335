# shellcheck shell=bash
# To be sourced: sets the array `compiler` to a C++ compiler, which compiles C as well (-x c).
#
# It is $CXX, c++, g++ or clang++; if there is none, that of the ziglang wheel, which is kept in the folder $1.
find_compiler() {
  if [[ -n ${CXX:-} ]]; then
    read -ra compiler <<<"$CXX"
    return
  fi
  local name
  for name in c++ g++ clang++; do
    if command -v "$name" >/dev/null; then
      compiler=("$name")
      return
    fi
  done
  local wheel=$1/simgpu-zig
  if [[ ! -d $wheel/ziglang ]]; then
    echo "no C++ compiler: installing the ziglang wheel" >&2
    python3 -m pip install --quiet --target "$wheel" ziglang==0.13.0 >&2
  fi
  # shellcheck disable=SC2034  # whoever sources this reads it
  compiler=(env "PYTHONPATH=$wheel" python3 -m ziglang c++)
}
