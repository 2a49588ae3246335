"""flowbench in the comparison: runs its command line and reads its records."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from workload import TEMPLATE, Plan, Unequal


class Flowbench:
    """The program and its model."""

    def __init__(self, program: Path, model: Path, call) -> None:
        self.program = program
        self.model = model
        # Runs a command: (arguments) -> (stdout, resource usage).
        self.call = call

    def version(self) -> dict:
        said = subprocess.run(
            [self.program, "--version"], capture_output=True, text=True, check=True
        )
        return {"program": said.stdout.strip(), "build": "release build, native backend"}

    def bench(self, task: dict) -> dict:
        """`prefill` or `decode` with `bench-engine`, which also uses a separate context per sequence."""
        is_prefill = task["task"] == "prefill"
        text, used = self.call(
            [
                self.program,
                "bench-engine",
                *("--model", self.model, "--quiet", "--output", "json"),
                *("--prompt-tokens", task["tokens"] if is_prefill else 0),
                *("--gen-tokens", 0 if is_prefill else task["tokens"]),
                *("--batch", 1 if is_prefill else task["batch"]),
                *("--context", 0 if is_prefill else task["context"]),
                *("--repetitions", task["repetitions"]),
            ]
        )
        record = json.loads(text)
        test = record["tests"][0]
        return {
            "samples_s": [sample / 1000 for sample in test["samples_ms"]],
            "tokens": test["tokens"] * test["batch"],
            "load_s": record["engine_init_ms"] / 1000,
            **used,
        }

    def workload(self, flows: int, mode: str, kv_cache_mb: int | None = None) -> dict:
        """Runs the workload; the result includes the token count of every prompt."""
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for name in ("templates", "fixtures", "flows"):
                (root / name).mkdir()
            memory = ["--kv-cache-mb", kv_cache_mb] if kv_cache_mb else []
            _, used = self.call(
                [
                    self.program,
                    "run",
                    *("--template", TEMPLATE, "--root", root, "--out", root / "results"),
                    *("--model", self.model, "--mode", mode, "--num-flows", flows),
                    *("--ignore-eos", "--quiet", *memory),
                ]
            )
            [record] = root.glob("results/*/run.json")
            run = json.loads(record.read_text())
            steps = [
                json.loads(line)
                for line in record.with_name("steps.jsonl").read_text().splitlines()
            ]
        totals = run["totals"]
        if run["status"] != "complete":
            raise Unequal(f"flowbench's run is {run['status']}: {run['error']}")
        return {
            "seconds": (totals["benchmark_total_ms"] - run["engine_init_ms"]) / 1000,
            "load_s": run["engine_init_ms"] / 1000,
            "prompt_tokens": totals["prompt_tokens"],
            "prefill_tokens": totals["prefill_tokens"],
            "generated_tokens": totals["decode_tokens"],
            "counts": prompt_counts(steps, flows),
            **used,
        }


def prompt_counts(steps: list[dict], flows: int) -> list[list[int]]:
    """[flow][step]: token count of each prompt, from the lines of `steps.jsonl`."""
    counts: list[list[int]] = [[] for _ in range(flows)]
    for step in sorted(steps, key=lambda step: (step["flow"], step["prompt_tokens"])):
        counts[step["flow"] - 1].append(step["prompt_tokens"])
    return counts


def with_counts(plan: Plan, counts: list[list[int]]) -> Plan:
    """The plan with the token counts of flowbench's run."""
    if [len(steps) for steps in counts] != [len(steps) for steps in plan.fresh]:
        raise Unequal("flowbench did not run the steps of the template")
    return Plan(plan.system, plan.fresh, plan.generate, counts)
