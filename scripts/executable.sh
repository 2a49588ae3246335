#!/usr/bin/env bash
# Reads the messages of `cargo build --message-format json-render-diagnostics` on stdin and prints the
# path of the program that it built: wherever CARGO_TARGET_DIR, build.target-dir or build.target put it.
set -euo pipefail

path=$(sed -n 's/^{"reason":"compiler-artifact",.*"executable":"\(.*\)","fresh":.*/\1/p' | tail -n 1)
[[ -n $path ]] || exit 1
# The escapes of a JSON string that a path is likely to hold.
path=${path//\\\"/\"}
printf '%s\n' "${path//\\\\/\\}"
