"""Shared by the peer processes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from workload import Plan, Tokens


def made_up(count: int, vocabulary: int) -> list[int]:
    """Arbitrary token IDs, the same in every run. Skips the lowest quarter of the vocabulary, where special
    tokens are."""
    state, tokens = 1, []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        tokens.append(vocabulary // 4 + (state >> 33) % (vocabulary - vocabulary // 4))
    return tokens


def busy_seconds() -> float:
    """CPU time used by all processes together, plus time stolen by the host."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Watch:
    """Measures a duration, and the CPU time that other processes used meanwhile."""

    # Totals over all watches of this process: seconds, and CPU seconds of other processes.
    measured = others = 0.0

    def __init__(self) -> None:
        self.busy, self.own = busy_seconds(), time.process_time()
        self.begin = time.perf_counter()

    def stop(self, counts: bool = True) -> float:
        """Seconds since the start. With `counts=False`, the totals are not updated."""
        seconds = time.perf_counter() - self.begin
        if not counts:
            return seconds
        Watch.measured += seconds
        Watch.others += busy_seconds() - self.busy - (time.process_time() - self.own)
        return seconds

    @staticmethod
    def others_cpu() -> dict:
        """Share of the processors used by other processes during the measurements."""
        if Watch.measured == 0:
            return {}
        share = Watch.others / Watch.measured / (os.cpu_count() or 1)
        return {"others_cpu": round(max(0.0, share), 3)}


class Run:
    """Counts and times a workload; the clock starts at construction."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.prompt = self.prefill = self.generate = 0
        self.watch = Watch()

    def step(self, prompt: int, prefilled: int, generated: int) -> None:
        self.prompt += prompt
        self.prefill += prefilled
        self.generate += generated

    def prefilled(self, count: int) -> None:
        self.prefill += count

    def generated(self, count: int) -> None:
        self.generate += count

    def result(self, tokens: Tokens) -> dict:
        return {
            "seconds": self.watch.stop(),
            "prompt_tokens": self.prompt,
            "prefill_tokens": self.prefill,
            "generated_tokens": self.generate,
            "ids": tokens.digest(),
        }


def serve(*tasks: Callable[[dict], dict]) -> None:
    """Runs the task that stdin names, and prints its result as the last line of stdout."""
    task = json.load(sys.stdin)
    by_name = {known.__name__: known for known in tasks}
    # Redirect anything a library writes to stdout to stderr.
    out = os.dup(1)
    os.dup2(2, 1)
    result = {**by_name[task["task"]](task), **Watch.others_cpu()}
    with os.fdopen(out, "w") as stdout:
        stdout.write(json.dumps(result) + "\n")
    # Skip the teardown of the libraries, which takes time and is not measured.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
