#!/usr/bin/env bash
# A nightly job: runs the template on this folder, keeps what it printed and its results, and fails if the run
# fails. Settings are environment variables, so that a job can set its own: MODE=both bash nightly.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# The program: flowbench on PATH, or FLOWBENCH="bash /path/to/checkout/run.sh".
read -ra flowbench <<<"${FLOWBENCH:-flowbench}"

export TEMPLATE=${TEMPLATE:-review}
export FLOWBENCH_ROOT=.
log=logs/$(date -u +%F)
mkdir -p "$log"

# A cold start: expand the flows anew.
rm -f flows/.expanded_cache.json flows/_expanded_*.json

# 98: the run must not be judged by. Its line is in results/history.jsonl, with what `flowbench history` shows.
QUIET=1 "${flowbench[@]}" run --gate | tee "$log/nightly.log"
grep '^\[TIMING\] benchmark_total_ms=' "$log/nightly.log"
"${flowbench[@]}" diagnose >"$log/diagnosis.md"

# 99: slower than the last five nights, by more than 3 % and more than noise explains.
if [ "$(wc -l <results/history.jsonl)" -gt 1 ]; then
    "${flowbench[@]}" compare history:5
fi
