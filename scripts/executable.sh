#!/usr/bin/env bash
# Reads the output of `cargo build --message-format json-render-diagnostics` on stdin and prints the path
# of the built program, which depends on CARGO_TARGET_DIR, build.target-dir and build.target.
set -euo pipefail

path=$(sed -n 's/^{"reason":"compiler-artifact",.*"executable":"\(.*\)","fresh":.*/\1/p' | tail -n 1)
[[ -n $path ]] || exit 1
# Decode the JSON escapes that are likely in a path.
path=${path//\\\"/\"}
printf '%s\n' "${path//\\\\/\\}"
