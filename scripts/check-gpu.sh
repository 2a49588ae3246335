#!/usr/bin/env bash
# Checks the GPU engine on this machine's card. Everything goes into one file that can be attached to a report.
# shellcheck disable=SC2329 # `step` calls functions by name
set -uo pipefail

usage() {
    cat <<'TEXT'
Check the GPU engine on this machine's card, and write everything to one file.

Usage: bash scripts/check-gpu.sh [OPTIONS] [RESULT]

  RESULT             the file to write [default: gpu-check.txt]
  --part 1|2         1: card, limits, kernels; 2: jobs and figures, appended to RESULT.
                     Both without the option
  --flowbench FILE   the program, instead of building it
  --tests FILE       the test program of the library (`cargo test --lib --no-run`),
                     instead of building it
  --model MODEL      a quantised model: its text must be the CPU's [default: the default
                     model, downloaded once]
  --bench MODEL      a further model for the figures; may be given several times
  --dry-run          everything tiny, on the simulated GPU. No time in it means anything

A step that needs a program that is not installed (nvidia-smi, compute-sanitizer, ncu,
PyTorch, llama-bench) is skipped. It takes about 12 minutes, without the build.
Exit code: 0, or 1 if a step failed.
TEXT
}

die() { # message, hint
    printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
    exit 2
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
result=gpu-check.txt parts='1 2' program='' tests='' model='' dry=0 more=()
while (($#)); do
    case $1 in
    -h | --help)
        usage
        exit
        ;;
    --dry-run) dry=1 ;;
    --part | --flowbench | --tests | --model | --bench)
        (($# > 1)) || die "$1 needs a value" 'bash scripts/check-gpu.sh --help'
        case $1 in
        --part) parts=$2 ;;
        --flowbench) program=$(realpath "$2") ;;
        --tests) tests=$(realpath "$2") ;;
        --model) model=$2 ;;
        --bench) more+=("$2") ;;
        esac
        shift
        ;;
    -*) die "unknown option $1" 'bash scripts/check-gpu.sh --help' ;;
    *) result=$1 ;;
    esac
    shift
done
[[ $parts == '1 2' || $parts == 1 || $parts == 2 ]] || die "unknown part $parts" 'there are parts 1 and 2'
result=$(realpath "$result")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$root" || exit

# Nothing of the caller's settings changes what is checked.
unset NUM_FLOWS TEMPLATE MODE BACKEND CONCURRENCY ROUNDS SPECULATE CONTEXT SEED MAX_TOKENS PROFILE OUT FLOWBENCH_ROOT
export QUIET=1 CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0}
# The driver's cache of compiled kernels: empty, so that the first start is one.
export CUDA_CACHE_PATH=$work/jit
export KV_CACHE_MB=4096
if ((dry)); then
    LD_LIBRARY_PATH=$(bash scripts/simgpu.sh) || die 'the simulated GPU cannot be built' 'it needs a C++ compiler'
    export LD_LIBRARY_PATH KV_CACHE_MB=64
fi

failed=() skipped=() kernels_fail=0
if [[ $parts != 2 ]]; then
    : >"$result"
elif grep -q '^kernels:.*FAILED' "$result" 2>/dev/null; then
    kernels_fail=1
fi

say() { printf '%s\n' "$*" | tee -a "$result"; }

# step NAME SECONDS COMMAND…: its output goes to the result at once. `want` is the exit code that it must have; with
# 77 it says that it cannot run.
want=0
step() {
    local name=$1 limit=$2 from=$SECONDS code
    shift 2
    printf '\n##### %s (at %d s, limit %d s)\n' "$name" "$SECONDS" "$limit" >>"$result"
    # shellcheck disable=SC2016 # for the shell that runs an exported function
    if declare -F "$1" >/dev/null; then
        set -- bash -c '"$@"' bash "$@"
    fi
    timeout --kill-after=5 "$limit" "$@" >>"$result" 2>&1 </dev/null
    code=$?
    if ((code == want)); then
        say "$(printf '%-44s ok       %4d s' "$name" $((SECONDS - from)))"
        return 0
    elif ((code == 77)); then
        skip "$name" 'see above'
        return 0
    elif ((code == 124 || code == 137)); then
        say "$(printf '%-44s FAILED   %4d s, the limit' "$name" $((SECONDS - from)))"
    else
        say "$(printf '%-44s FAILED   %4d s, exit code %d instead of %d' "$name" $((SECONDS - from)) "$code" "$want")"
    fi
    failed+=("$name")
    return 1
}

skip() { # NAME REASON
    say "$(printf '%-44s skipped: %s' "$1" "$2")"
    skipped+=("$1")
}

# usable PROGRAM: whether it is there. A dry run has no use for those that watch a real card.
usable() { ((!dry)) && command -v "$1" >/dev/null 2>&1; }
absent() { # PROGRAM
    if ((dry)); then
        echo 'a dry run'
    else
        echo "$1 is not installed"
    fi
}

build() { # the file with the path, arguments of cargo
    local to=$1
    shift
    cargo "$@" --release --locked --message-format json-render-diagnostics | bash scripts/executable.sh >"$to"
}
export -f build

# Durations: the simulated GPU computes the real model a thousand times slower.
limit() { echo $((dry ? 300 : $1)); }

say "GPU check of flowbench $(git describe --always --dirty 2>/dev/null || echo 'of an unknown commit'), $(date -u +%FT%TZ)"
((dry)) && say 'A dry run on the simulated GPU: no time below is that of a GPU.'

if [[ -z $program ]]; then
    step build 1800 build "$work/program" build --bin flowbench || exit 1
    program=$(<"$work/program")
fi
export PROGRAM=$program

# The job: the default one, or one prompt of 20 tokens.
flows=25 few=8 root_of_job=$root template=three_step
bench=(-p '512,2048' -n 128 -b '1,8,25,64' -r 5) quick=(-p 0 -n 64 -b '1,25' -r 5)
if ((dry)); then
    flows=2 few=1 root_of_job=$work template=$work/tiny.toml
    bench=(-p 8 -n 2 -c 4 -b '1,2' -r 1) quick=(-p 0 -n 2 -c 4 -b 1 -r 1)
    printf '%s\n' 'schema = 1' 'name = "tiny"' 'description = "One short prompt"' 'suite = "tiny.suite.jsonl"' \
        'system = "Be brief."' '[[step]]' 'id = "one"' 'prompt = "{{ row.task }}"' 'max_tokens = 3' >"$template"
    printf '%s\n' '{"id": "a", "task": "Name a color."}' '{"id": "b", "task": "Name a city."}' >"$work/tiny.suite.jsonl"
fi
export ROOT_OF_JOB=$root_of_job TEMPLATE_OF_JOB=$template WORK=$work

# job NAME [VARIABLE=VALUE…]: a run whose results are in $WORK/NAME.
job() {
    local name=$1
    shift
    env "$@" "$PROGRAM" run --root "$ROOT_OF_JOB" --template "$TEMPLATE_OF_JOB" --out "$WORK/$name"
}
two_processes() {
    local first second
    job two-a "$@" &
    first=$!
    job two-b "$@"
    second=$?
    wait "$first" && return "$second"
}
machine() {
    uname -srm
    nproc
    grep -m 1 'model name' /proc/cpuinfo
    free -m
    "$PROGRAM" --version
    env | grep -E '^(CUDA|NVIDIA)_'
    true
}
doctor() {
    "$PROGRAM" doctor --device cuda | tee "$WORK/doctor"
    grep -q '^ok    gpu' "$WORK/doctor"
}
fetch() {
    "$PROGRAM" model fetch | tee "$WORK/model"
    [[ -s $WORK/model ]]
}
export -f job two_processes machine doctor fetch

# checked NAME SECONDS VARIABLE=VALUE…: a run on the GPU whose tokens must be the CPU's.
checked() {
    local name=$1 seconds=$2
    shift 2
    step "$name" "$(limit "$seconds")" job "$name" DEVICE=cuda "$@" || return
    step "$name: the CPU's tokens" 20 python3 scripts/check_gpu.py compare "$work/cpu" "$work/$name"
}

card() { # NAME: what the card is doing
    if usable nvidia-smi; then
        step "$1" 10 nvidia-smi -q -d MEMORY,CLOCK,POWER,PERFORMANCE,TEMPERATURE
    else
        skip "$1" "$(absent nvidia-smi)"
    fi
}

part_1() {
    step machine 10 machine
    if usable nvidia-smi; then
        step nvidia-smi 20 nvidia-smi -q -d MEMORY,CLOCK,POWER,PERFORMANCE,ECC,TEMPERATURE,COMPUTE
    else
        skip nvidia-smi "$(absent nvidia-smi)"
    fi
    step doctor 60 doctor || {
        say 'There is no usable GPU: the rest is left out.'
        finish
    }
    step ceilings 60 python3 scripts/check_gpu.py ceilings

    if [[ -z $tests ]]; then
        step build-tests 1800 build "$work/tests" test --package flowbench --lib --no-run || finish
        tests=$(<"$work/tests")
    fi
    export TESTS=$tests FLOWBENCH_TEST_GPU=1
    step kernels:driver "$(limit 60)" "$tests" --test-threads=1 cuda::driver || kernels_fail=1
    # A process each: after an invalid access a card is lost to its process.
    local name names broken=()
    mapfile -t names < <("$tests" --list on_a_gpu:: 2>/dev/null | sed -n 's/: test$//p')
    ((${#names[@]})) || names=(on_a_gpu::)
    for name in "${names[@]}"; do
        step "kernels:${name##*::}" "$(limit 60)" "$tests" --nocapture --exact "$name" || {
            kernels_fail=1
            broken+=("$name")
        }
    done
    if usable compute-sanitizer; then
        # The failing ones, or if all is well, one that covers most kernels.
        ((${#broken[@]})) || broken=(engine::model::cuda::tests::on_a_gpu::sampled_tokens_are_the_cpus)
        for name in "${broken[@]}"; do
            step "memcheck:${name##*::}" 60 compute-sanitizer --tool memcheck --error-exitcode 9 "$tests" --exact "$name"
            step "racecheck:${name##*::}" 60 compute-sanitizer --tool racecheck --error-exitcode 9 "$tests" --exact "$name"
        done
    else
        skip compute-sanitizer "$(absent compute-sanitizer)"
    fi
}

part_2() {
    if [[ -z $model ]]; then
        step model 600 fetch || return
        model=$(<"$work/model")
    fi
    export MODEL=$model
    [[ -f $model ]] && step model-sha256 20 sha256sum "$model"

    step cpu 180 job cpu DEVICE=cpu MODE=reuse NUM_FLOWS="$flows"
    checked first-start 120 MODE=reuse NUM_FLOWS="$few"
    checked second-start 60 MODE=reuse NUM_FLOWS="$few"
    checked standalone 90 MODE=standalone NUM_FLOWS="$flows"
    checked reuse 60 MODE=reuse NUM_FLOWS="$flows"
    checked both 120 MODE=both ROUNDS=1 NUM_FLOWS="$flows"
    # Other company in each pass.
    checked reuse-3-at-a-time 60 MODE=reuse CONCURRENCY=3 NUM_FLOWS="$flows"
    checked no-graphs 60 MODE=reuse CUDA_GRAPHS=0 NUM_FLOWS="$flows"
    checked profiled 60 MODE=reuse PROFILE=1 NUM_FLOWS="$few" &&
        step 'profiled: device times' 10 grep -A 40 'device seconds' "$work"/profiled/*/profile.log

    step two-processes "$(limit 90)" two_processes DEVICE=cuda MODE=reuse NUM_FLOWS="$few" &&
        step "two-processes: the CPU's tokens" 20 python3 scripts/check_gpu.py compare "$work/cpu" "$work/two-a" "$work/two-b"
    want=3
    step no-memory-for-the-cache 60 job oom DEVICE=cuda MODE=reuse KV_CACHE_MB=4000000 NUM_FLOWS=1
    step no-visible-card 20 job none DEVICE=cuda MODE=reuse CUDA_VISIBLE_DEVICES= NUM_FLOWS=1
    want=0

    if ((kernels_fail)); then
        skip figures 'a test of the kernels failed, and wrong results have no speed'
        return
    fi
    card card-before-figures
    step figures "$(limit 120)" "$program" bench-engine --device cuda "${bench[@]}" -o json
    step figures-graphs "$(limit 40)" env CUDA_GRAPHS=1 "$program" bench-engine --device cuda "${quick[@]}"
    step figures-no-graphs "$(limit 40)" env CUDA_GRAPHS=0 "$program" bench-engine --device cuda "${quick[@]}"
    local other batch
    for other in ${more[@]+"${more[@]}"}; do
        step "figures:$(basename "$other")" "$(limit 180)" "$program" bench-engine --device cuda --model "$other" "${bench[@]}" -o json
    done
    card card-after-figures
    for batch in 1 25; do
        if usable ncu; then
            step "kernel-times-batch-$batch" 60 env CUDA_GRAPHS=0 ncu --clock-control none --metrics gpu__time_duration.sum --csv \
                --log-file "$work/ncu.csv" "$program" bench-engine --device cuda -p 0 -n 2 -c 400 -b "$batch" -r 1 &&
                step "kernel-times-batch-$batch: sums" 10 python3 scripts/check_gpu.py kernel-times "$work/ncu.csv"
        else
            skip "kernel-times-batch-$batch" "$(absent ncu)"
        fi
    done
    if usable llama-bench && [[ -f $model ]]; then
        step llama-bench 120 llama-bench -m "$model" -ngl 99 -p 512,2048 -n 128
    else
        skip llama-bench "$(absent llama-bench)"
    fi
}

finish() {
    printf '\n' >>"$result"
    say "${#failed[@]} steps failed${failed[*]+: $(IFS=,; echo "${failed[*]}")}; ${#skipped[@]} were skipped; $SECONDS s"
    printf 'The result is in %s. It names this machine'\''s card, driver and folders: read it before you attach it.\n' "$result"
    exit $((${#failed[@]} > 0))
}

if [[ $parts != 2 ]]; then
    say ''
    say 'Part 1: the card and the kernels'
    part_1
fi
if [[ $parts != 1 ]]; then
    say ''
    say 'Part 2: jobs and figures'
    part_2
fi
finish
