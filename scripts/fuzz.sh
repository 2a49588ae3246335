#!/usr/bin/env bash
# Fuzzes what the program reads (docs/reliability.md), one target after another.
#
#   scripts/fuzz.sh [--seconds N] [TARGET …]   N seconds for each target (default: 600), all targets by default
#
# Needs cargo-fuzz (cargo install cargo-fuzz --locked). SANITIZER=address finds more and takes a nightly toolchain.
# What fails is in fuzz/artifacts/TARGET/; the inputs that reached new code are in fuzz/corpus/TARGET/, from where
# the next run goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seconds=600
targets=()
while (($#)); do
  case $1 in
    --seconds)
      seconds=${2:?"usage: scripts/fuzz.sh [--seconds N] [TARGET …]"}
      shift 2
      ;;
    -*)
      echo "error: unknown argument $1" >&2
      exit 2
      ;;
    *)
      targets+=("$1")
      shift
      ;;
  esac
done
if ! cargo fuzz --version >/dev/null 2>&1; then
  echo "error: there is no cargo-fuzz" >&2
  echo "hint: cargo install cargo-fuzz --locked" >&2
  exit 3
fi
if ((${#targets[@]} == 0)); then
  mapfile -t targets < <(cargo fuzz list)
fi

options=(--sanitizer "${SANITIZER:-none}" --target-dir "$(bash scripts/target-dir.sh)/fuzz")
failed=()
for target in "${targets[@]}"; do
  mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
  limits=(-max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=512 -max_len=16384 -print_final_stats=1)
  dictionary=fuzz/dictionaries/$target.txt
  if [[ -e $dictionary ]]; then
    limits+=(-dict="$dictionary")
  fi
  printf '\n=== fuzz: %s, %s seconds\n' "$target" "$seconds" >&2
  if ! cargo fuzz run "${options[@]}" "$target" "fuzz/corpus/$target" "fuzz/kept/$target" -- "${limits[@]}"; then
    failed+=("$target")
  fi
done
if ((${#failed[@]})); then
  echo "error: a law did not hold: ${failed[*]}" >&2
  echo "hint: minimise the input (cargo fuzz tmin TARGET fuzz/artifacts/…), mend the code, and keep the input in fuzz/kept/" >&2
  exit 1
fi
