"""Tests that need no peer: ratios, tables, and the counts of the workload.

python3 -m unittest discover --start-directory benches/peers
"""

from __future__ import annotations

import json
import os
import sys
import unittest

import compare
import report
from flowbench_peer import prompt_counts, with_counts
from workload import Plan, Tokens, Unequal, fitted, least_prefill


def measured(task: str, program: str, setting: str, *values: float) -> list[dict]:
    return [
        {
            "task": task,
            "program": program,
            "setting": setting,
            "round": number,
            "value": value,
            "others_cpu": 0.02,
            "peak_bytes": 2e8,
        }
        for number, value in enumerate(values, 1)
    ]


class Ratios(unittest.TestCase):
    def test_rates_and_times_are_turned_so_that_above_one_is_faster(self) -> None:
        [rate] = report.comparisons(
            measured("prefill", "flowbench", "native", 800, 900, 700)
            + measured("prefill", "llama.cpp", "on", 100, 90, 100)
        )
        # 8, 10, 7: the median of the ratios, not the ratio of the medians.
        self.assertEqual((rate["ratio"], rate["ratio_min"], rate["ratio_max"]), (8, 7, 10))
        self.assertTrue(rate["reached"])
        [time] = report.comparisons(
            measured("reuse", "flowbench", "all", 4, 5)
            + measured("reuse", "llama.cpp", "one", 40, 30)
        )
        self.assertEqual(time["ratio"], 8)
        self.assertFalse(time["reached"])

    def test_a_peer_is_compared_by_its_best_setting(self) -> None:
        for task, best in (("decode-25", "fast"), ("reuse", "slow")):
            [one] = report.comparisons(
                measured(task, "flowbench", "native", 10, 10, 10)
                + measured(task, "llama.cpp", "slow", 2, 2, 9)
                + measured(task, "llama.cpp", "fast", 3, 3, 3)
            )
            self.assertEqual(one["setting"], best)

    def test_rounds_of_one_side_only_do_not_count(self) -> None:
        ours = measured("reuse", "flowbench", "all", 4, 400, 4)
        theirs = measured("reuse", "OpenVINO", "all", 12, 12, 12)
        ours[1]["others_cpu"] = 0.5
        [one] = report.comparisons(ours + theirs)
        self.assertEqual((one["rounds"], one["ratio_min"], one["ratio_max"]), (2, 3, 3))
        self.assertEqual(report.comparisons(ours), [])
        self.assertEqual(report.comparisons(theirs), [])

    def test_a_disturbed_measurement_is_superseded_by_a_later_one(self) -> None:
        first, again = (measured("load", "OpenVINO", "a", value)[0] for value in (9, 2))
        first["others_cpu"] = 0.9
        self.assertEqual(report.rounds_of([first], "load"), {})
        self.assertEqual(report.rounds_of([first, again], "load"), {("OpenVINO", "a"): {1: 2}})


class Tables(unittest.TestCase):
    def test_numbers_keep_three_digits(self) -> None:
        values = [0.2204, 3.456, 44.84, 161.4, 1732.6]
        self.assertEqual(
            [report.number(value) for value in values], ["0.22", "3.46", "44.8", "161", "1,733"]
        )

    def test_the_whole_report(self) -> None:
        measurements = measured("prefill", "flowbench", "native", 2400, 2500, 2600) + measured(
            "prefill", "llama.cpp", "flash attention on", 250, 250, 260
        )
        disturbed = measured("prefill", "llama.cpp", "flash attention on", 20)[0]
        disturbed["others_cpu"] = 0.7
        text = report.markdown(
            {
                "programs": {"flowbench": "flowbench 1", "llama.cpp": "llama.cpp 2"},
                "missing": {"OpenVINO": "cannot be loaded"},
                "environment": {"model": "tiny.gguf"},
                "measurements": [disturbed, *measurements],
            }
        )
        self.assertEqual(
            text,
            """\
- flowbench: flowbench 1
- llama.cpp: llama.cpp 2
- skipped: OpenVINO: cannot be loaded
- model: tiny.gguf
- 1 of 7 measurements ignored: other processes used more than 20% of the processors

Speed-up of flowbench (over the best setting of each peer):

| work                | peer                          | flowbench |  peer's |   ratio |    min–max | rounds | target | reached |
| ------------------- | ----------------------------- | --------: | ------: | ------: | ---------: | -----: | -----: | ------: |
| prefill, 512 tokens | llama.cpp, flash attention on | 2,500 t/s | 250 t/s | 10.00 × | 9.60–10.00 |      3 |    ≥ 8 |     yes |

All measurements, medians over the rounds:

| work                | program                       |    median |     min–max | rounds | prefilled | peak RSS |
| ------------------- | ----------------------------- | --------: | ----------: | -----: | --------: | -------: |
| prefill, 512 tokens | flowbench, native             | 2,500 t/s | 2,400–2,600 |      3 |           |   200 MB |
| prefill, 512 tokens | llama.cpp, flash attention on |   250 t/s |     250–260 |      3 |           |   200 MB |
""",
        )


class Workload(unittest.TestCase):
    def plan(self) -> Plan:
        return Plan("s1 s2", [["a1", "a2 a3"], ["b1", "a2 a3"]], 2, [[3, 7], [3, 6]])

    def tokens(self) -> Tokens:
        return Tokens(self.plan(), lambda text: [ord(word[0]) * 10 + int(word[1]) for word in text.split()])

    def test_answers_take_the_length_that_flowbench_gave_them(self) -> None:
        tokens = self.tokens()
        first = tokens.prompt(0, 0, [], [])
        self.assertEqual(first, [1151, 1152, 971])
        self.assertEqual(tokens.prompt(0, 1, first, [5, 6]), [*first, 5, 6, 972, 973])
        # In flowbench, the answer of flow 2 was one token shorter.
        other = tokens.prompt(1, 0, [], [])
        self.assertEqual(tokens.prompt(1, 1, other, [5, 6]), [*other, 5, 972, 973])
        self.assertEqual(fitted([5, 6], 4), [5, 6, 6, 6])
        with self.assertRaises(Unequal):
            fitted([5, 6], 0)

    def test_other_tokens_are_refused(self) -> None:
        plan = self.plan()
        plan.prompt_tokens[1][0] = 4
        with self.assertRaisesRegex(Unequal, "flow 2: .* 3 tokens here and 4 in flowbench"):
            Tokens(plan, lambda text: [0] * len(text.split()))

    def test_nothing_is_computed_twice(self) -> None:
        # 2 shared, 1 + 2 and 1 + 2 new, and the last token of 2 answers.
        self.assertEqual(least_prefill(self.tokens()), 10)

    def test_digests_tell_tokenisations_apart(self) -> None:
        tokens = self.tokens()
        before = tokens.digest()
        tokens.fresh[1][1] = [972, 974]
        self.assertNotEqual(tokens.digest(), before)

    def test_the_template_is_25_flows_of_three_steps(self) -> None:
        plan = Plan.load()
        self.assertEqual([len(steps) for steps in plan.fresh], [3] * 25)
        self.assertEqual(plan.generate, 48)
        self.assertTrue(plan.system.startswith("<|im_start|>system\nYou write"))
        self.assertNotIn("{{", json.dumps(plan.to_json()))
        # The flows differ right after the system message.
        self.assertEqual(len({steps[0] for steps in plan.fresh}), 25)
        self.assertEqual(len(plan.take(4).fresh), 4)
        with self.assertRaises(ValueError):
            plan.take(26)

    def test_counts_come_from_the_record(self) -> None:
        lines = [
            {"flow": 2, "prompt_tokens": 3},
            {"flow": 1, "prompt_tokens": 7},
            {"flow": 1, "prompt_tokens": 3},
            {"flow": 2, "prompt_tokens": 6},
        ]
        counts = prompt_counts(lines, 2)
        self.assertEqual(counts, [[3, 7], [3, 6]])
        self.assertEqual(with_counts(self.plan(), counts).prompt_tokens, counts)
        with self.assertRaises(Unequal):
            with_counts(self.plan(), [[3, 7], [3]])


class Processes(unittest.TestCase):
    def test_a_process_is_run_to_its_end(self) -> None:
        program = "import sys; data = bytearray(50_000_000); print(sys.stdin.read() + '!')"
        said, used = compare.call([sys.executable, "-c", program], "given")
        self.assertEqual(said, "given!\n")
        self.assertGreater(used["peak_bytes"], 50_000_000)
        self.assertTrue(0 <= used["others_cpu"] <= 1)

    def test_a_process_that_fails_says_why(self) -> None:
        with self.assertRaisesRegex(compare.Failed, "exits 1: no such library"):
            compare.call([sys.executable, "-c", "import sys; sys.exit('no such library')"])

    def test_busy_time_passes(self) -> None:
        before = compare.busy_seconds()
        used = os.times().user
        while os.times().user - used < 0.1:
            pass
        self.assertGreater(compare.busy_seconds(), before)


if __name__ == "__main__":
    unittest.main()
