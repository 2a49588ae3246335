"""The workload of all programs: read from the flowbench template, split into pieces that each program
tokenizes itself, and joined as token IDs.

Different arithmetic makes the programs generate different text. For all of them to compute the same
number of tokens, an answer is inserted into the next prompt as token IDs, cut or padded to its length in
flowbench's own prompt (`prompt_tokens` in its record).
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

TEMPLATE = Path(__file__).with_name("workload.toml")

# ChatML, which the default model was trained on. flowbench uses the model's own chat template, so its
# token counts reveal a model for which this does not hold.
SYSTEM = "<|im_start|>system\n{}<|im_end|>\n"
FIRST = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
LATER = "<|im_end|>\n" + FIRST


class Unequal(Exception):
    """The programs do different work."""


@dataclass
class Plan:
    """The work: texts, and the number of tokens of every prompt."""

    system: str
    # [flow][step]: text that a step adds to the conversation.
    fresh: list[list[str]]
    # Tokens generated per step.
    generate: int
    # [flow][step]; empty before flowbench has run.
    prompt_tokens: list[list[int]] = field(default_factory=list)

    @staticmethod
    def load(template: Path = TEMPLATE) -> Plan:
        """Reads the template and its suite."""
        keys = tomllib.loads(template.read_text())
        rows = [
            json.loads(line)
            for line in template.with_name(keys["suite"]).read_text().splitlines()
            if line.strip()
        ]
        steps = keys["step"]
        generate = {step["max_tokens"] for step in steps}
        if len(generate) != 1:
            raise ValueError(f"{template}: the steps generate different numbers of tokens")

        def text(row: dict, index: int) -> str:
            prompt = re.sub(
                r"\{\{\s*row\.(\w+)\s*\}\}", lambda name: row[name[1]], steps[index]["prompt"]
            )
            return (LATER if index else FIRST).format(prompt)

        fresh = [[text(row, index) for index in range(len(steps))] for row in rows]
        return Plan(SYSTEM.format(keys["system"]), fresh, generate.pop())

    def take(self, flows: int) -> Plan:
        """The first `flows` flows."""
        if not 1 <= flows <= len(self.fresh):
            raise ValueError(f"there are {len(self.fresh)} flows, but {flows} were requested")
        return Plan(self.system, self.fresh[:flows], self.generate, self.prompt_tokens[:flows])

    def to_json(self) -> dict:
        return vars(self)

    @staticmethod
    def from_json(fields: dict) -> Plan:
        return Plan(**fields)


class Tokens:
    """The workload in the tokens of one program. `encode` must parse special tokens and add none."""

    def __init__(self, plan: Plan, encode) -> None:
        self.plan = plan
        self.system = list(encode(plan.system))
        known: dict[str, list[int]] = {}
        for texts in plan.fresh:
            for text in texts:
                if text not in known:
                    known[text] = list(encode(text))
        self.fresh = [[known[text] for text in texts] for texts in plan.fresh]
        for flow, steps in enumerate(self.fresh):
            self._check_first(flow, len(self.system) + len(steps[0]))

    def _check_first(self, flow: int, count: int) -> None:
        wanted = self.plan.prompt_tokens[flow][0]
        if count != wanted:
            raise Unequal(
                f"flow {flow + 1}: its first prompt is {count} tokens here and {wanted} in flowbench"
            )

    def digest(self) -> str:
        """Fingerprint of the tokenization: SHA-256 of all IDs as little-endian u32."""
        digest = hashlib.sha256()
        for ids in [self.system, *(ids for steps in self.fresh for ids in steps)]:
            digest.update(struct.pack(f"<{len(ids)}I", *ids))
        return digest.hexdigest()[:16]

    def prompt(self, flow: int, step: int, before: list[int], answer: list[int]) -> list[int]:
        """Prompt of a step, from the prompt and the answer of the previous step."""
        fresh = self.fresh[flow][step]
        if step == 0:
            return self.system + fresh
        counts = self.plan.prompt_tokens[flow]
        return before + fitted(answer, counts[step] - counts[step - 1] - len(fresh)) + fresh


def fitted(answer: list[int], length: int) -> list[int]:
    """Cuts an answer to a length, or pads it with its last token."""
    if length < 1 or not answer:
        raise Unequal(f"an answer of {len(answer)} tokens cannot be fitted to {length}")
    return (answer + answer[-1:] * length)[:length]


def least_prefill(tokens: Tokens) -> int:
    """Lower bound on the prompt tokens to compute if nothing is computed twice: the system message once,
    the additions of each step, and the last token of each answer, which was generated but not yet
    computed."""
    steps = [ids for flow in tokens.fresh for ids in flow]
    later = sum(len(flow) - 1 for flow in tokens.fresh)
    return len(tokens.system) + sum(map(len, steps)) + later
