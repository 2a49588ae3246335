#!/usr/bin/env bash
# A nightly job: runs the template on this folder, keeps what it printed and its results, and fails if the run
# fails. Settings are environment variables, so that a job can set its own: MODE=both bash nightly.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# The program: flowbench on PATH, or FLOWBENCH="bash /path/to/checkout/run.sh".
read -ra flowbench <<<"${FLOWBENCH:-flowbench}"

export TEMPLATE=${TEMPLATE:-review}
export FLOWBENCH_ROOT=.
OUT=results/$(date -u +%F)
export OUT
mkdir -p "$OUT"

# A cold start: expand the flows anew.
rm -f flows/.expanded_cache.json flows/_expanded_*.json

QUIET=1 "${flowbench[@]}" run | tee "$OUT/nightly.log"
grep '^\[TIMING\] benchmark_total_ms=' "$OUT/nightly.log"
"${flowbench[@]}" diagnose >"$OUT/diagnosis.md"
