#!/usr/bin/env bash
# Runs the same flows on the in-process engine and on llama-cpp-python's server, with the default model, in
# interleaved rounds: measures the overhead of a server, HTTP and streaming.
#
#   FLOWBENCH_LLAMA_PYTHON=/path/to/python bash benches/remote/run.sh
#
# That Python must have llama-cpp-python[server]; otherwise the script says so and measures nothing.
# Variables (defaults): NUM_FLOWS (3), ROUNDS (3), CONCURRENCY of the server's runs (1), PORT (8397).
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=${FLOWBENCH_LLAMA_PYTHON:-}
if [[ -z $python ]] || ! "$python" -c 'import llama_cpp.server.app' 2>/dev/null; then
    printf 'skipped: FLOWBENCH_LLAMA_PYTHON is not a Python with llama-cpp-python[server]\n' >&2
    exit 0
fi
flowbench=${FLOWBENCH:-$(bash scripts/target-dir.sh)/release/flowbench}
if [[ ! -x $flowbench ]]; then
    printf '%s does not exist\nhint: cargo build --release --locked\n' "$flowbench" >&2
    exit 3
fi
model=$("$flowbench" model fetch 2>/dev/null)
flows=${NUM_FLOWS:-3}
rounds=${ROUNDS:-3}
port=${PORT:-8397}
out=$(mktemp -d)

"$python" -m llama_cpp.server --model "$model" --model_alias smol --n_ctx 2048 --port "$port" \
    --n_threads "$(nproc)" --n_threads_batch "$(nproc)" --interrupt_requests false >"$out/server.log" 2>&1 &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null; rm -rf "$out"' EXIT
until (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
    kill -0 "$server" 2>/dev/null || {
        tail -n 5 "$out/server.log" >&2
        exit 3
    }
    sleep 0.2
done

measure() {
    local name=$1
    shift
    env NUM_FLOWS="$flows" QUIET=1 OUT="$out/$name" "$@" "$flowbench" run >"$out/$name.log"
}
local_run() { measure "local-$1" MODE=standalone MODEL="$model"; }
remote_run() {
    measure "remote-$1" MODE=remote ENDPOINT="http://127.0.0.1:$port/v1" MODEL=smol \
        ENDPOINT_EXTRA='{"repeat_penalty": 1.0}' TOKENIZER="$model" CONCURRENCY="${CONCURRENCY:-1}"
}

# One-time work (connection, first pass) happens before the measurements.
(flows=1 && remote_run warm-up 2>/dev/null)
for ((round = 1; round <= rounds; round++)); do
    if ((round % 2)); then
        local_run "$round"
        remote_run "$round"
    else
        remote_run "$round"
        local_run "$round"
    fi
done

"$python" - "$out" "$rounds" <<'PYTHON'
import json, pathlib, statistics, sys

out, rounds = pathlib.Path(sys.argv[1]), int(sys.argv[2])


def steps(engine, number):
    (folder,) = (out / f"{engine}-{number}").iterdir()
    lines = (folder / "steps.jsonl").read_text().splitlines()
    run = json.loads((folder / "run.json").read_text())
    return run, sorted(map(json.loads, lines), key=lambda step: step["flow"])


def median(values):
    values = [value for value in values if value is not None]
    return statistics.median(values) if values else float("nan")


print("| engine | round | TTFT ms | TPOT ms | workflow ms | prompt tokens | generated | attempts |")
print("|---|---|---|---|---|---|---|---|")
texts = {}
for number in range(1, rounds + 1):
    for engine in ("local", "remote"):
        run, all_steps = steps(engine, number)
        texts.setdefault(engine, {(s["flow"], s["step"]): s["output"] for s in all_steps})
        print(
            f"| {engine} | {number} | {median([s['ttft_ms'] for s in all_steps]):.1f} "
            f"| {median([s['tpot_ms'] for s in all_steps]):.2f} "
            f"| {run['totals']['avg_workflow_ms']:.0f} "
            f"| {sum(s['prompt_tokens'] for s in all_steps)} "
            f"| {sum(s['decode_tokens'] for s in all_steps)} "
            f"| {sum(s.get('attempts', 1) for s in all_steps)} |"
        )
same = sum(texts["local"][key] == text for key, text in texts["remote"].items())
print(f"\n{same} of {len(texts['remote'])} steps with the same text in both engines")
PYTHON
