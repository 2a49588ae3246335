#!/usr/bin/env bash
# Prints cargo's target folder: `target`, unless CARGO_TARGET_DIR or build.target-dir overrides it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
path=$(cargo metadata --format-version 1 --no-deps --offline --locked | sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')
printf '%s\n' "${path:-target}"
