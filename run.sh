#!/usr/bin/env bash
# Builds flowbench and runs it:
#
#   NUM_FLOWS=25 MODE=standalone bash run.sh     run the default job
#   bash run.sh test                             run every test
#   bash run.sh doctor                           check what this machine lacks
#   bash run.sh init|expand|model|diagnose|report|... any other subcommand, with its flags
#
# Paths are relative to the caller's folder. That folder is also the root if it has templates/; otherwise the
# checkout is. The exit code is that of the program. docs/reference.md lists the variables.
set -euo pipefail

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() { # message, hint
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 3
}

command -v cargo >/dev/null 2>&1 ||
    fail 'cargo is not on PATH' 'install Rust 1.89 or later; rustup puts it into ~/.cargo/bin'

if [[ ${1-} == test ]]; then
    shift
    exec bash "$checkout/scripts/test.sh" "$@"
fi

if [[ -z ${FLOWBENCH_ROOT+set} && ! -d templates ]]; then
    export FLOWBENCH_ROOT=$checkout
fi

# Cargo reports the path of the program in JSON messages on stdout, and prints "Compiling" on stderr only if
# there is something to build. It runs in the checkout, whose settings it reads.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
compile() {
    (cd "$checkout" && cargo build --release --locked --bin flowbench \
        --message-format json-render-diagnostics) >"$work/messages"
}
announce() {
    local line told=0
    while IFS= read -r line; do
        printf '%s\n' "$line"
        if [[ $told == 0 && $line == *Compiling* ]]; then
            told=1
            [[ ${QUIET-0} == 1 ]] || printf '[PROGRESS] Building; the first build takes a few minutes\n' >&2
        fi
    done
}
# Show the compiler's progress on a terminal, but only its errors in a log.
if [[ -t 2 && ${QUIET-0} != 1 ]]; then
    compile || fail 'the build failed' 'see the errors above; the build needs Rust 1.89 or later, and a C compiler for linking'
else
    compile 2> >(announce >"$work/log") || {
        wait
        cat "$work/log" >&2
        fail 'the build failed' 'see the errors above; the build needs Rust 1.89 or later, and without a network, the crates (cargo fetch)'
    }
fi
binary=$(bash "$checkout/scripts/executable.sh" <"$work/messages") ||
    fail 'cargo did not report the path of the program' 'it may be too old: Rust 1.89 or later is needed'
rm -rf "$work"
trap - EXIT

# If the first argument is a flag, the subcommand is `run`.
case ${1-} in
--help | -h | --version | -V | [!-]*) exec "$binary" "$@" ;;
*) exec "$binary" run "$@" ;;
esac
