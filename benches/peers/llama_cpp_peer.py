"""llama.cpp, through the low-level bindings of llama-cpp-python: reads a task (JSON) from stdin and writes
the result to stdout. compare.py starts one process per task."""

from __future__ import annotations

import ctypes
import sys

import numpy as np

from peer import Run, Watch, made_up, serve
from workload import Plan, Tokens

try:
    import llama_cpp as lib
except (ImportError, OSError, RuntimeError) as error:
    sys.exit(f"llama-cpp-python cannot be loaded: {error}")


class Engine:
    """A model and a context."""

    def __init__(
        self,
        model: str,
        threads: int,
        flash: bool,
        sequences: int = 1,
        context: int = 1024,
        unified: bool = False,
        batch: int = 2048,
        micro_batch: int = 512,
    ) -> None:
        # Keep a reference: the library holds the pointer.
        self._silence = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(self._silence, ctypes.c_void_p(0))
        lib.llama_backend_init()
        watch = Watch()
        self.model = lib.llama_model_load_from_file(
            model.encode(), lib.llama_model_default_params()
        )
        if not self.model:
            sys.exit(f"llama.cpp cannot load {model}")
        params = lib.llama_context_default_params()
        params.n_ctx = context * sequences
        params.n_batch = batch
        params.n_ubatch = micro_batch
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = (
            lib.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.kv_unified = unified
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit("llama.cpp cannot create a context")
        self.load_seconds = watch.stop(counts=False)
        self.vocabulary = lib.llama_model_get_vocab(self.model)
        self.size = lib.llama_vocab_n_tokens(self.vocabulary)
        self.memory = lib.llama_get_memory(self.context)
        self.batch = lib.llama_batch_init(batch, 0, 1)
        self.limit = batch

    def encode(self, text: str) -> list[int]:
        data = text.encode()
        ids = (lib.llama_token * (len(data) + 8))()
        count = lib.llama_tokenize(
            self.vocabulary, data, len(data), ids, len(ids), False, True
        )
        if count < 0:
            sys.exit(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
        return ids[:count]

    def decode(self, entries: list[tuple[int, int, int, bool]]) -> None:
        """One call; entries are (token, position, sequence, whether to compute logits)."""
        batch = self.batch
        for index, (token, position, sequence, logits) in enumerate(entries):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = logits
        batch.n_tokens = len(entries)
        status = lib.llama_decode(self.context, batch)
        if status != 0:
            sys.exit(f"llama_decode: {status}, with {len(entries)} tokens")

    def prefill(self, tokens: list[int], start: int, sequence: int, logits: bool = True) -> None:
        """Computes tokens of one sequence, with logits for the last one."""
        for first in range(0, len(tokens), self.limit):
            part = tokens[first : first + self.limit]
            last = first + len(part) == len(tokens)
            self.decode(
                [
                    (token, start + first + index, sequence, logits and last and index == len(part) - 1)
                    for index, token in enumerate(part)
                ]
            )

    def best(self, index: int) -> int:
        """Token with the highest logit for the entry at `index` of the last call."""
        pointer = lib.llama_get_logits_ith(self.context, index)
        return int(np.argmax(np.ctypeslib.as_array(pointer, shape=(self.size,))))

    def clear(self) -> None:
        lib.llama_memory_clear(self.memory, False)


def prefill(task: dict) -> dict:
    count = task["tokens"]
    engine = Engine(task["model"], task["threads"], task["flash"], micro_batch=count)
    tokens = made_up(count, engine.size)
    samples = []
    for _ in range(task["repetitions"] + 1):
        engine.clear()
        watch = Watch()
        engine.prefill(tokens, 0, 0)
        lib.llama_synchronize(engine.context)
        samples.append(watch.stop())
    return {"samples_s": samples[1:], "tokens": count}


def decode(task: dict) -> dict:
    batch, start, count = task["batch"], task["context"], task["tokens"]
    room = -(-(start + count) // 256) * 256
    # One stream per sequence: separate contexts, as in flowbench's test.
    engine = Engine(task["model"], task["threads"], task["flash"], batch, room)
    tokens = made_up(start + count, engine.size)
    engine.prefill(tokens[:start], 0, 0, logits=False)
    for sequence in range(1, batch):
        lib.llama_memory_seq_cp(engine.memory, 0, sequence, -1, -1)

    def steps(number: int) -> float:
        watch = Watch()
        for position in range(start, start + number):
            token = tokens[position]
            engine.decode([(token, position, sequence, True) for sequence in range(batch)])
        lib.llama_synchronize(engine.context)
        seconds = watch.stop()
        for sequence in range(batch):
            lib.llama_memory_seq_rm(engine.memory, sequence, start, -1)
        return seconds

    steps(min(4, count))
    samples = [steps(count) for _ in range(task["repetitions"])]
    return {"samples_s": samples, "tokens": batch * count}


def load(task: dict) -> dict:
    watch = Watch()
    engine = Engine(task["model"], task["threads"], task["flash"])
    watch.stop()
    watch = Watch()
    engine.prefill([engine.encode("a")[0]], 0, 0)
    warm_up = watch.stop()
    return {"load_s": engine.load_seconds, "warm_up_s": warm_up}


def workload(task: dict) -> dict:
    plan = Plan.from_json(task["plan"])
    if task["concurrency"] == 1:
        return one_after_another(task, plan)
    return at_once(task, plan)


def one_after_another(task: dict, plan: Plan) -> dict:
    """One sequence at a time. With `cache`, the common prefix with the next prompt is kept."""
    longest = max(map(max, plan.prompt_tokens)) + plan.generate
    engine = Engine(
        task["model"], task["threads"], task["flash"], context=-(-longest // 256) * 256
    )
    tokens = Tokens(plan, engine.encode)
    engine.prefill(tokens.system[:64], 0, 0)
    engine.clear()
    run = Run(plan)
    there: list[int] = []
    for flow, steps in enumerate(tokens.fresh):
        prompt: list[int] = []
        answer: list[int] = []
        for step in range(len(steps)):
            prompt = tokens.prompt(flow, step, prompt, answer)
            kept = common(there, prompt[:-1]) if task["cache"] else 0
            lib.llama_memory_seq_rm(engine.memory, 0, kept, -1)
            engine.prefill(prompt[kept:], kept, 0)
            answer = [engine.best(-1)]
            for position in range(len(prompt), len(prompt) + plan.generate - 1):
                engine.decode([(answer[-1], position, 0, True)])
                answer.append(engine.best(0))
            # The last token is sampled but not computed.
            there = prompt + answer[:-1]
            run.step(len(prompt), len(prompt) - kept, len(answer))
    return run.result(tokens)


def common(one: list[int], other: list[int]) -> int:
    """Length of the common prefix."""
    count = 0
    for left, right in zip(one, other):
        if left != right:
            break
        count += 1
    return count


def at_once(task: dict, plan: Plan) -> dict:
    """Flows in groups of `concurrency`, one sequence each; the system message is computed once and copied to
    all of them. All steps have the same length, so the flows advance in lockstep and every call is full."""
    group = task["concurrency"]
    longest = max(map(max, plan.prompt_tokens)) + plan.generate
    engine = Engine(
        task["model"],
        task["threads"],
        task["flash"],
        sequences=group + 1,
        context=-(-longest // 256) * 256,
        unified=task["unified"],
    )
    tokens = Tokens(plan, engine.encode)
    engine.prefill(tokens.system[:64], 0, 0)
    engine.clear()
    run = Run(plan)
    shared = len(tokens.system)
    engine.prefill(tokens.system, 0, 0, logits=False)
    run.prefilled(shared)
    for first in range(0, len(tokens.fresh), group):
        flows = range(first, min(first + group, len(tokens.fresh)))
        lane = {flow: flow - first + 1 for flow in flows}
        for flow in flows:
            lib.llama_memory_seq_rm(engine.memory, lane[flow], -1, -1)
            lib.llama_memory_seq_cp(engine.memory, 0, lane[flow], -1, -1)
        prompts: dict[int, list[int]] = {flow: [] for flow in flows}
        answers: dict[int, list[int]] = {flow: [] for flow in flows}
        there = {flow: shared for flow in flows}
        for step in range(len(tokens.fresh[0])):
            for flow in flows:
                before = len(prompts[flow])
                prompt = tokens.prompt(flow, step, prompts[flow], answers[flow])
                if step:
                    # The answer was cut: everything after it is computed again.
                    kept = before + common(answers[flow][:-1], prompt[before:])
                    there[flow] = min(there[flow], kept)
                    lib.llama_memory_seq_rm(engine.memory, lane[flow], there[flow], -1)
                prompts[flow] = prompt
            answers = prompts_at_once(engine, prompts, there, lane)
            for flow in flows:
                run.step(len(prompts[flow]), len(prompts[flow]) - there[flow], 0)
            for offset in range(plan.generate - 1):
                engine.decode(
                    [
                        (answers[flow][-1], len(prompts[flow]) + offset, lane[flow], True)
                        for flow in flows
                    ]
                )
                for index, flow in enumerate(flows):
                    answers[flow].append(engine.best(index))
            for flow in flows:
                run.generated(len(answers[flow]))
                there[flow] = len(prompts[flow]) + plan.generate - 1
    return run.result(tokens)


def prompts_at_once(engine: Engine, prompts: dict, there: dict, lane: dict) -> dict:
    """Computes the missing parts of the prompts, with whole prompts per call. Returns the first token of
    each answer."""
    answers: dict[int, list[int]] = {}
    waiting = list(prompts)
    while waiting:
        entries: list[tuple[int, int, int, bool]] = []
        ends: dict[int, int] = {}
        while waiting:
            flow = waiting[0]
            prompt = prompts[flow]
            new = range(there[flow], len(prompt))
            if entries and len(entries) + len(new) > engine.limit:
                break
            entries += [
                (prompt[position], position, lane[flow], position == len(prompt) - 1)
                for position in new
            ]
            ends[waiting.pop(0)] = len(entries) - 1
        engine.decode(entries)
        for flow, index in ends.items():
            answers[flow] = [engine.best(index)]
    return answers


def versions(_: dict) -> dict:
    features = lib.llama_print_system_info().decode()
    return {
        "program": f"llama.cpp (llama-cpp-python {lib.__version__}, libllama {lib.llama_version().decode()})",
        "build": "native build; " + ", ".join(
            part.split("=")[0].strip() for part in features.replace("CPU :", "").split("|") if "= 1" in part
        ),
    }


if __name__ == "__main__":
    serve(versions, prefill, decode, load, workload)
