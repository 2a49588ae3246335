"""What scripts/check-gpu.sh computes.

    check_gpu.py compare REFERENCE RUN...   whether runs generated the reference's tokens; folders of `--out`
    check_gpu.py ceilings                   what the card can do at most, by PyTorch; exit code 77 without it
    check_gpu.py kernel-times CSV           device time by kernel, from the log of `ncu --csv`
"""

import collections
import csv
import json
import pathlib
import sys
import time


def steps(folder):
    """(flow, step, sample) → the set of (hash, text) that a run generated; several in MODE=both."""
    found = collections.defaultdict(set)
    for path in sorted(pathlib.Path(folder).glob("**/steps.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            step = json.loads(line)
            key = (step["flow"], step["step"], step.get("sample"))
            found[key].add((step["out_hash"], step["output"]))
    return found


def compare(reference, *runs):
    expected = steps(reference)
    differs = not expected
    print(f"{len(expected)} steps in the reference")
    for run in runs:
        got = steps(run)
        wrong = 0
        for key, texts in sorted(got.items(), key=str):
            wanted = expected.get(key)
            if wanted is None:
                print(f"{run}: no reference for {key}")
                wrong += 1
                continue
            ((hash_, text),) = wanted
            for other_hash, other in texts:
                if other_hash != hash_:
                    wrong += 1
                    at = next((i for i, (a, b) in enumerate(zip(text, other)) if a != b), min(len(text), len(other)))
                    print(f"{key}: {other_hash} instead of {hash_}, from character {at} on: {other[at:at + 40]!r}")
        print(f"{pathlib.Path(run).name}: {len(got)} steps, {wrong} with other tokens")
        differs |= wrong > 0 or not got
    return int(differs)


def ceilings():
    try:
        import torch
    except ImportError:
        print("skipped: PyTorch is not installed")
        return 77
    if not torch.cuda.is_available():
        print("skipped: this PyTorch has no CUDA, or finds no card")
        return 77

    def median(work, runs=10):
        """Seconds."""
        work()
        torch.cuda.synchronize()
        times = []
        for _ in range(runs):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
            start.record()
            work()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        return sorted(times)[runs // 2]

    free = torch.cuda.mem_get_info()[0]
    x = torch.zeros(min(1 << 32, free // 4) // 4, dtype=torch.int32, device="cuda")
    y = torch.empty_like(x)
    print(f"copy: {8 * x.numel() / median(lambda: y.copy_(x)) / 1e9:.0f} GB/s, read and written")
    for size in (4096, 8192):
        a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in "ab")
        print(f"bf16 product of {size}: {2 * size**3 / median(lambda: a @ b) / 1e12:.0f} TFLOP/s")
    small = torch.zeros(64, device="cuda")

    def launches(count):
        for _ in range(count):
            small.add_(1)

    launches(3)
    torch.cuda.synchronize()
    start = time.perf_counter()
    launches(2000)
    torch.cuda.synchronize()
    print(f"a launch by PyTorch: {(time.perf_counter() - start) / 2000 * 1e6:.2f} µs")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launches(500)
    print(f"a small kernel in a graph: {median(graph.replay) / 500 * 1e6:.2f} µs")
    return 0


def kernel_times(path):
    rows = []
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        rows = [row for row in csv.reader(file) if len(row) > 10]
    if not rows:
        print("the log has no kernels")
        return 1
    name, value = rows[0].index("Kernel Name"), rows[0].index("Metric Value")
    unit = rows[0].index("Metric Unit")
    micros = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3}
    total, count = collections.Counter(), collections.Counter()
    for row in rows[1:]:
        if len(row) == len(rows[0]) and row[unit] in micros:
            kernel = row[name].split("(")[0]
            total[kernel] += float(row[value].replace(",", "")) * micros[row[unit]]
            count[kernel] += 1
    for kernel, time_ in total.most_common():
        print(f"{time_:10.1f} µs {count[kernel]:6} launches, {time_ / count[kernel]:7.2f} µs each  {kernel}")
    print(f"{sum(total.values()):10.1f} µs {sum(count.values()):6} launches")
    return int(not total)


def main():
    tasks = {"compare": compare, "ceilings": ceilings, "kernel-times": kernel_times}
    if len(sys.argv) < 2 or sys.argv[1] not in tasks:
        sys.exit(__doc__)
    sys.exit(tasks[sys.argv[1]](*sys.argv[2:]))


main()
