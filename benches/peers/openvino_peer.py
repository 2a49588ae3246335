"""OpenVINO GenAI's continuous batching, from the same GGUF: reads a task (JSON) from stdin and writes the
result to stdout. compare.py starts one process per task."""

from __future__ import annotations

import sys

import numpy as np

from peer import Run, Watch, made_up, serve
from workload import Plan, Tokens

try:
    import openvino
    import openvino_genai as genai
except (ImportError, OSError) as error:
    sys.exit(f"openvino-genai cannot be loaded: {error}")

VOCABULARY_AT_LEAST = 32_000


class Engine:
    """A pipeline with numbered requests."""

    def __init__(
        self, task: dict, cache: bool = False, sequences: int = 1, cache_gib: int = 1
    ) -> None:
        watch = Watch()
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = cache_gib
        scheduler.enable_prefix_caching = cache
        scheduler.max_num_seqs = sequences
        scheduler.max_num_batched_tokens = task.get("tokens_a_pass", 512)
        self.pipeline = genai.ContinuousBatchingPipeline(
            task["model"],
            scheduler,
            "CPU",
            {"INFERENCE_NUM_THREADS": task["threads"]},
        )
        self.load_seconds = watch.stop(counts=False)
        self.tokenizer = self.pipeline.get_tokenizer()
        self.number = 0

    def encode(self, text: str) -> list[int]:
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        return [int(token) for token in encoded.input_ids.data[0]]

    def submit(self, tokens: list[int], generate: int):
        config = genai.GenerationConfig()
        config.max_new_tokens = generate
        config.ignore_eos = True
        config.do_sample = False
        ids = openvino.Tensor(np.array([tokens], dtype=np.int64))
        self.number += 1
        return self.pipeline.add_request(self.number, ids, config)

    def finish(self, requests: list) -> list[list[int]]:
        """Runs until all requests have finished; returns their tokens."""
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        return [answer_of(request) for request in requests]


def answer_of(request) -> list[int]:
    return [int(token) for token in request.read_all()[0].generated_ids]


def ended(request) -> bool:
    return request.get_status() == genai.GenerationStatus.FINISHED


def prefill(task: dict) -> dict:
    count = task["tokens"]
    engine = Engine(task)
    tokens = made_up(count, VOCABULARY_AT_LEAST)
    samples = []
    for _ in range(task["repetitions"] + 1):
        watch = Watch()
        engine.finish([engine.submit(tokens, 1)])
        samples.append(watch.stop())
    return {"samples_s": samples[1:], "tokens": count}


def decode(task: dict) -> dict:
    batch, start, count = task["batch"], task["context"], task["tokens"]
    # All prompts fit into one pass, so that all of them start decoding together.
    engine = Engine({**task, "tokens_a_pass": batch * start}, sequences=batch)
    tokens = made_up(start, VOCABULARY_AT_LEAST)
    samples = []
    for _ in range(task["repetitions"]):
        # Distinct first tokens, so that no prefix is shared.
        requests = [
            engine.submit([tokens[0] + index, *tokens[1:]], count + 1) for index in range(batch)
        ]
        there = [0] * batch
        # Tokens generated before the last request is ready are neither timed nor counted.
        while min(there) < 1:
            engine.pipeline.step()
            read(requests, there)
        before = sum(there)
        watch = Watch()
        while not any(ended(request) for request in requests):
            engine.pipeline.step()
        seconds = watch.stop()
        read(requests, there)
        samples.append((seconds, sum(there) - before))
        engine.finish([])
    return {
        "samples_s": [seconds for seconds, _ in samples],
        "tokens": samples[0][1],
        "tokens_of_samples": [tokens for _, tokens in samples],
    }


def read(requests: list, there: list[int]) -> None:
    """Adds newly generated tokens to the counts in `there`."""
    for index, request in enumerate(requests):
        while request.can_read():
            for output in request.read().values():
                there[index] += len(output.generated_ids)


def load(task: dict) -> dict:
    watch = Watch()
    engine = Engine(task)
    watch.stop()
    watch = Watch()
    engine.finish([engine.submit(engine.encode("a"), 1)])
    return {"load_s": engine.load_seconds, "warm_up_s": watch.stop()}


def workload(task: dict) -> dict:
    plan = Plan.from_json(task["plan"])
    group = task["concurrency"]
    engine = Engine(task, cache=task["cache"], sequences=group)
    tokens = Tokens(plan, engine.encode)
    # Warm up with unrelated tokens: blocks of the workload must not be in the cache.
    engine.finish([engine.submit(made_up(64, VOCABULARY_AT_LEAST), 2)])
    run = Run(plan)
    if task["cache"] and group > 1:
        # All flows start with the system message at once: it has to be in the cache before.
        engine.finish([engine.submit(tokens.system, 1)])
    waiting = list(range(len(tokens.fresh)))
    active: dict[int, tuple] = {}

    def start(flow: int, step: int, before: list[int], answer: list[int]) -> None:
        prompt = tokens.prompt(flow, step, before, answer)
        active[flow] = (step, prompt, engine.submit(prompt, plan.generate))

    while waiting or active:
        while waiting and len(active) < group:
            start(waiting.pop(0), 0, [], [])
        engine.pipeline.step()
        for flow, (step, prompt, request) in list(active.items()):
            if not ended(request):
                continue
            answer = answer_of(request)
            run.step(len(prompt), 0, len(answer))
            del active[flow]
            if step + 1 < len(tokens.fresh[flow]):
                start(flow, step + 1, prompt, answer)
    result = run.result(tokens)
    # The cache does not report its hits.
    result["prefill_tokens"] = None if task["cache"] else result["prompt_tokens"]
    return result


def versions(_: dict) -> dict:
    return {
        "program": f"OpenVINO GenAI {genai.__version__}",
        "build": f"wheel, runtime {openvino.__version__}; it turns Q4_1's minima into integer zero points",
    }


if __name__ == "__main__":
    serve(versions, prefill, decode, load, workload)
