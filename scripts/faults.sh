#!/usr/bin/env bash
# Builds tests/faults/faults.c and prints the library's path, and nothing else, on stdout. Linux only.
#
#   LD_PRELOAD=$(bash scripts/faults.sh) FAULTS_ROOT=$PWD/ FAULTS_CALLS=,write, FAULTS_AT=3 … flowbench run …
#
# The compiler is the one of scripts/compiler.sh.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
target=$(bash scripts/target-dir.sh)
mkdir -p "$target"
target=$(cd "$target" && pwd)

# One build at a time: tests may start several.
if command -v flock >/dev/null; then
  exec 9>"$target/faults.lock"
  flock 9
fi
# shellcheck source=scripts/compiler.sh
source scripts/compiler.sh
find_compiler "$target"

library=$target/faults.so
if [[ ! $library -nt tests/faults/faults.c ]]; then
  "${compiler[@]}" -x c -std=gnu11 -shared -fPIC -O2 -Wall -Wextra -o "$library.new" tests/faults/faults.c >&2
  mv "$library.new" "$library"
fi
echo "$library"
