"""What the peers' processes share."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from workload import Plan, Tokens


def made_up(count: int, vocabulary: int) -> list[int]:
    """Token ids without meaning, the same in every run; a quarter of the vocabulary is left out
    at its low end, where special tokens stand."""
    state, tokens = 1, []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        tokens.append(vocabulary // 4 + (state >> 33) % (vocabulary - vocabulary // 4))
    return tokens


def busy_seconds() -> float:
    """Processor time that all processes together have used, and what the host took away."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, fields)
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Watch:
    """A clock for what is measured, which also tells what other processes did meanwhile."""

    # Of all watches of this process: seconds, and the others' processor seconds.
    measured = others = 0.0

    def __init__(self) -> None:
        self.busy, self.own = busy_seconds(), time.process_time()
        self.begin = time.perf_counter()

    def stop(self, counts: bool = True) -> float:
        """Seconds since it was started. What does not count says nothing of the others."""
        seconds = time.perf_counter() - self.begin
        if not counts:
            return seconds
        Watch.measured += seconds
        Watch.others += busy_seconds() - self.busy - (time.process_time() - self.own)
        return seconds

    @staticmethod
    def others_cpu() -> dict:
        """The others' share of the processors while something was measured."""
        if Watch.measured == 0:
            return {}
        share = Watch.others / Watch.measured / (os.cpu_count() or 1)
        return {"others_cpu": round(max(0.0, share), 3)}


class Run:
    """Counts and times a workload; the clock runs from when it is made."""

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
    """Does the one of the tasks that stdin names, and prints what came of it: the last line of stdout."""
    task = json.load(sys.stdin)
    by_name = {known.__name__: known for known in tasks}
    # Whatever a library writes to stdout goes to stderr.
    out = os.dup(1)
    os.dup2(2, 1)
    result = {**by_name[task["task"]](task), **Watch.others_cpu()}
    with os.fdopen(out, "w") as stdout:
        stdout.write(json.dumps(result) + "\n")
    # Without the libraries' own tear-down, which takes time and measures nothing.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
