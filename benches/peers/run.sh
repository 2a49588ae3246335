#!/usr/bin/env bash
# Compares flowbench with llama.cpp and OpenVINO GenAI on the same model and the same work.
# `bash benches/peers/run.sh --help` lists the options; README.md describes what is measured.
# A peer that cannot be installed is skipped, with a message.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=${FLOWBENCH_PEERS_VENV:-$here/.venv}
python=$venv/bin/python3

if ! command -v python3 >/dev/null 2>&1 ||
    ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    printf 'the comparison needs Python 3.11 or later\nhint: install it with its venv module\n' >&2
    exit 3
fi

if [[ ! -x $python ]]; then
    printf 'Creating %s\n' "$venv" >&2
    python3 -m venv "$venv"
fi

# Native build with every vector extension of this processor, as users build it. Image support and tools are
# omitted.
export CMAKE_ARGS=${CMAKE_ARGS:--DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF}
while read -r requirement; do
    name=${requirement%%==*}
    version=${requirement##*==}
    installed=$("$python" -c 'import importlib.metadata as m, sys
try: print(m.version(sys.argv[1]))
except m.PackageNotFoundError: pass' "$name")
    if [[ $installed != "$version" ]]; then
        printf 'Installing %s\n' "$requirement" >&2
        "$python" -m pip install --quiet --disable-pip-version-check "$requirement" >&2 ||
            printf 'failed to install %s: skipped\n' "$requirement" >&2
    fi
done < <(grep -v '^#' "$here/requirements.txt")

cd "$root"
export PYTHONDONTWRITEBYTECODE=1
exec "$python" "$here/compare.py" "$@"
