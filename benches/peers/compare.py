"""Runs the same model and the same work through flowbench and its peers, in interleaved rounds."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

import report
from flowbench_peer import Flowbench, with_counts
from peer import busy_seconds
from workload import Plan, Unequal

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SCRIPTS = {"llama.cpp": "llama_cpp_peer.py", "OpenVINO": "openvino_peer.py"}
TASKS = ["prefill", "decode", "reuse", "standalone", "load"]
SCHEMA = 1


class Failed(Exception):
    """A process failed."""


def built_program() -> Path:
    """Path of the program after `cargo build --release`."""
    script = ["bash", str(ROOT / "scripts/target-dir.sh")]
    target = subprocess.run(script, check=True, capture_output=True, text=True).stdout.strip()
    return Path(target) / "release/flowbench"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benches/peers/run.sh", description=__doc__)
    parser.add_argument("--only", default=",".join(TASKS), help="tasks, out of " + ",".join(TASKS))
    parser.add_argument("--peers", default=",".join(SCRIPTS), help="peers, out of " + ",".join(SCRIPTS))
    parser.add_argument(
        "--rounds", type=int, default=3, help="rounds per task that the results should contain"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=float("inf"),
        help="start no new measurement after this many seconds; another call with the same --results continues",
    )
    parser.add_argument("--quick", action="store_true", help="one round of a tenth of the work")
    parser.add_argument("--flows", type=int, default=25, help="flows of `reuse`")
    parser.add_argument(
        "--standalone-flows",
        type=int,
        default=25,
        help="flows of `standalone`, which run one after another: using fewer does not change the ratios",
    )
    parser.add_argument("--all-settings", action="store_true", help="try more settings of the peers")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--model", type=Path, help="a .gguf file [default: the default model]")
    parser.add_argument(
        "--flowbench", type=Path, default=built_program(), help="path of the program"
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="a JSON file to continue or create "
        "[default: a new one in results/]",
    )
    parser.add_argument("--report", type=Path, help="only print the tables of a results file")
    options = parser.parse_args()
    for name, known in (("only", TASKS), ("peers", list(SCRIPTS))):
        given = [part for part in getattr(options, name).split(",") if part]
        unknown = [part for part in given if part not in known]
        if unknown:
            parser.error(f"--{name}: {unknown[0]} is not one of {', '.join(known)}")
        setattr(options, name, given)
    if options.rounds < 1:
        parser.error("--rounds: expected at least 1")
    if options.quick:
        options.rounds = 1
        options.flows = min(options.flows, 3)
        options.standalone_flows = 1
    return options


def call(command: list, stdin: str = "") -> tuple[str, dict]:
    """Runs a process. Returns its stdout and its resource usage: peak resident bytes, and the share of the
    processors used by other processes meanwhile."""
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as said, (
        tempfile.TemporaryFile("w+")
    ) as complained:
        given.write(stdin)
        given.seek(0)
        busy, begin = busy_seconds(), time.monotonic()
        process = subprocess.Popen(
            list(map(str, command)), stdin=given, stdout=said, stderr=complained
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            # Interrupted: a leftover measurement would disturb the next one.
            process.kill()
            process.wait()
            raise
        wall, busy = time.monotonic() - begin, busy_seconds() - busy
        # Covers the whole process, its start included; a peer reports its own share for the measurement.
        others = max(0.0, busy - usage.ru_utime - usage.ru_stime) / wall / (os.cpu_count() or 1)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        complained.seek(0)
        if process.returncode != 0:
            last = complained.read().strip().splitlines()[-3:] or ["no message"]
            raise Failed(f"{Path(command[0]).name} exits {process.returncode}: {' / '.join(last)}")
        used = {"peak_bytes": usage.ru_maxrss * 1024, "others_cpu": round(others, 3)}
        return said.read(), used


def peer(name: str, task: dict) -> dict:
    """Runs a peer's task in a separate process."""
    said, used = call([sys.executable, HERE / SCRIPTS[name]], json.dumps(task))
    return {**used, **json.loads(said.splitlines()[-1])}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


class Comparison:
    """The rounds and their results file."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        model = options.model or Path(
            call([options.flowbench, "model", "fetch", "--quiet"])[0].strip()
        )
        self.model = model.resolve()
        self.flowbench = Flowbench(options.flowbench.resolve(), self.model, call)
        self.path = options.results or ROOT / "results" / (
            f"peers-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}.json"
        )
        self.results = {
            "schema": SCHEMA,
            "programs": {},
            "missing": {},
            "environment": {
                "model": f"{model.name}, {model.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256(model)[:16]}",
                "flowbench's SHA-256": sha256(options.flowbench)[:16],
                "processor": f"{processor()}, {options.threads} threads for each program",
            },
            # [flow][step], as counted by flowbench.
            "prompt_tokens": [],
            "measurements": [],
        }
        self.deadline = time.monotonic() + options.budget
        if self.path.exists():
            self.go_on()
        self.find_peers()

    def go_on(self) -> None:
        """Continues the rounds of a file; rejects those of another binary or model."""
        known = json.loads(self.path.read_text())
        if known["schema"] != SCHEMA or known["environment"] != self.results["environment"]:
            sys.exit(
                f"{self.path} contains rounds of another program, model or machine\n"
                "hint: give another file with --results"
            )
        for key in ("measurements", "prompt_tokens"):
            self.results[key] = known[key]

    def find_peers(self) -> None:
        about = self.flowbench.version()
        self.results["programs"][report.OURS] = f"{about['program']}, {about['build']}"
        for name in self.options.peers:
            try:
                about = peer(name, {"task": "versions"})
                self.results["programs"][name] = f"{about['program']}; {about['build']}"
            except Failed as why:
                self.results["missing"][name] = str(why)
                print(f"[PEERS] skipped: {name}: {why}", file=sys.stderr)

    def run(self) -> None:
        for number in range(1, self.options.rounds + 1):
            for task in self.options.only:
                self.round(task, number)

    def round(self, task: str, number: int) -> None:
        """One round of a task: every program and setting once, in reverse order in even rounds."""
        if task == "decode":
            for batch in (1, 8, 25):
                self.turns(number, f"decode-{batch}", self.decode_turns(batch))
        elif task == "prefill":
            self.turns(number, task, self.prefill_turns())
        elif task == "load":
            self.turns(number, task, self.load_turns())
        else:
            self.turns(number, task, self.workload_turns(task))

    def turns(self, number: int, task: str, turns: list[tuple]) -> None:
        """Runs the missing measurements of a round of a task."""
        measured = report.rounds_of(self.results["measurements"], task)
        present = [
            turn
            for turn in turns
            if turn[0] in self.results["programs"]
            and number not in measured.get((turn[0], turn[1]), {})
        ]
        for program, setting, run in present if number % 2 else reversed(present):
            if time.monotonic() > self.deadline:
                return
            begin = time.monotonic()
            try:
                found = run()
            except Failed as why:
                self.results["missing"][f"{program}, {setting}, in {task}"] = str(why)
                print(f"[PEERS] skipped: {program}, {setting}: {why}", file=sys.stderr)
                continue
            found.pop("counts", None)
            if task == "load":
                # For flowbench, the load time comes from another benchmark, whose samples are included.
                value = found["load_s"]
            elif "samples_s" in found:
                # The fastest repetition: least disturbed on a shared machine.
                counts = found.pop("tokens_of_samples", None) or [found["tokens"]] * len(
                    found["samples_s"]
                )
                value = max(
                    count / seconds for count, seconds in zip(counts, found["samples_s"])
                )
            else:
                value = found["seconds"]
            self.results["measurements"].append(
                {
                    "task": task,
                    "program": program,
                    "setting": setting,
                    "round": number,
                    "value": value,
                    **found,
                }
            )
            self.save()
            unit = report.TASKS[task][1]
            print(
                f"[PEERS] round={number} task={task} program={program} setting={setting!r} "
                f"value={report.number(value)} {unit} others_cpu={found['others_cpu']:.0%} (process {time.monotonic() - begin:.1f} s)",
                file=sys.stderr,
                flush=True,
            )

    def task(self, kind: str, **more) -> dict:
        return {
            "task": kind,
            "model": str(self.model),
            "threads": self.options.threads,
            **more,
        }

    def prefill_turns(self) -> list[tuple]:
        task = self.task("prefill", tokens=512, repetitions=1 if self.options.quick else 3)
        return [
            (report.OURS, "native", lambda: self.flowbench.bench({**task, "repetitions": 5})),
            *self.flash_turns(task),
            ("OpenVINO", "continuous batching", lambda: peer("OpenVINO", task)),
        ]

    def decode_turns(self, batch: int) -> list[tuple]:
        task = self.task(
            "decode",
            batch=batch,
            context=400,
            tokens=16 if self.options.quick else 48,
            repetitions=1 if self.options.quick or batch > 1 else 3,
        )
        return [
            (report.OURS, "native", lambda: self.flowbench.bench({**task, "repetitions": 5})),
            *self.flash_turns(task),
            ("OpenVINO", "continuous batching", lambda: peer("OpenVINO", task)),
        ]

    def load_turns(self) -> list[tuple]:
        task = self.task("load")
        return [
            (report.OURS, "native, with its warm-up pass", lambda: self.flowbench.bench(
                {**task, "task": "prefill", "tokens": 1, "repetitions": 1}
            )),
            ("llama.cpp", "model and context, no warm-up", lambda: peer(
                "llama.cpp", {**task, "flash": True}
            )),
            ("OpenVINO", "from the GGUF, no warm-up", lambda: peer("OpenVINO", task)),
        ]

    def flash_turns(self, task: dict) -> list[tuple]:
        return [
            (
                "llama.cpp",
                f"flash attention {'on' if flash else 'off'}",
                lambda flash=flash: peer("llama.cpp", {**task, "flash": flash}),
            )
            for flash in (True, False)
        ]

    def workload_turns(self, mode: str) -> list[tuple]:
        reuse = mode == "reuse"
        flows = self.options.flows if reuse else self.options.standalone_flows
        plan = self.counted(flows)

        def ours() -> dict:
            found = self.flowbench.workload(flows, mode)
            if found["counts"] != plan.prompt_tokens:
                raise Unequal(f"flowbench's prompts in {mode} differ from those of its first run")
            return self.checked(plan, report.OURS, found)

        def theirs(name: str, **more):
            task = self.task("workload", plan=plan.to_json(), **more)
            return lambda: self.checked(plan, name, peer(name, task))

        if not reuse:
            alone = {"concurrency": 1, "cache": False}
            return [
                (report.OURS, f"{flows} flows", ours),
                *(
                    (
                        "llama.cpp",
                        f"no prompt cache, flash attention {'on' if flash else 'off'}",
                        theirs("llama.cpp", flash=flash, **alone),
                    )
                    for flash in ((True, False) if self.options.all_settings else (True,))
                ),
                ("OpenVINO", "one at a time, no prefix cache", theirs("OpenVINO", **alone)),
            ]
        turns = [
            (report.OURS, f"{flows} flows at once", ours),
            (
                "llama.cpp",
                "one at a time, prompt cache, flash attention on",
                theirs("llama.cpp", flash=True, concurrency=1, cache=True),
            ),
            (
                "llama.cpp",
                f"{flows} at once, system copied, flash attention on",
                theirs("llama.cpp", flash=True, concurrency=flows, unified=False),
            ),
            (
                "OpenVINO",
                f"{flows} at once, prefix cache",
                theirs("OpenVINO", concurrency=flows, cache=True),
            ),
        ]
        if self.options.all_settings:
            for flash in (True, False):
                word = "on" if flash else "off"
                turns.append((
                    "llama.cpp",
                    f"{flows} at once, one memory for all, flash attention {word}",
                    theirs("llama.cpp", flash=flash, concurrency=flows, unified=True),
                ))
            turns.append((
                "llama.cpp",
                f"{flows} at once, system copied, flash attention off",
                theirs("llama.cpp", flash=False, concurrency=flows, unified=False),
            ))
            turns.append((
                "llama.cpp",
                "one at a time, prompt cache, flash attention off",
                theirs("llama.cpp", flash=False, concurrency=1, cache=True),
            ))
        return turns

    def counted(self, flows: int) -> Plan:
        """The first flows of the workload, with the token counts of flowbench's prompts."""
        if len(self.results["prompt_tokens"]) < flows:
            self.results["prompt_tokens"] = self.flowbench.workload(flows, "reuse")["counts"]
        return with_counts(Plan.load().take(flows), self.results["prompt_tokens"][:flows])

    def checked(self, plan: Plan, program: str, found: dict) -> dict:
        """Rejects a run that did other work than planned, or tokenized it differently."""
        wanted = {
            "prompt_tokens": sum(map(sum, plan.prompt_tokens)),
            "generated_tokens": plan.generate * sum(map(len, plan.fresh)),
        }
        for key, value in wanted.items():
            if found[key] != value:
                raise Unequal(f"{program}: {key} is {found[key]}, but {value} elsewhere")
        for other in self.results["measurements"]:
            same = other.get("prompt_tokens") == found["prompt_tokens"]
            if same and found.get("ids") and other.get("ids") not in (None, found["ids"]):
                raise Unequal(f"{program} and {other['program']} tokenize the prompts differently")
        return found

    def save(self) -> None:
        """Writes through a temporary file: an interrupted run loses at most one measurement."""
        self.results["comparisons"] = report.comparisons(self.results["measurements"])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.results, indent=1) + "\n")
        temporary.replace(self.path)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped: measurements so far are saved"))
    options = arguments()
    if options.report:
        print(report.markdown(json.loads(options.report.read_text())), end="")
        return
    if not options.flowbench.is_file():
        sys.exit(f"{options.flowbench} does not exist\nhint: cargo build --release --locked")
    try:
        comparison = Comparison(options)
        comparison.run()
    except (Failed, Unequal, ValueError) as why:
        sys.exit(f"the comparison cannot continue: {why}")
    print(report.markdown(comparison.results), end="")
    print(f"[PEERS] Results in {comparison.path}", file=sys.stderr)


if __name__ == "__main__":
    main()
