"""Generates templates/math_judge.suite.jsonl and templates/math_judge.script.jsonl.

    python3 scripts/math_judge           writes both
    python3 scripts/math_judge --check   compares them with the expected content

Builders generate the problems with numbers from a fixed seed. Each answer is computed twice, by formula and by
brute force or substitution, in exact arithmetic, and the two must agree. The script holds one recorded answer
per problem: most are correct, some in another form, some wrong, some without a box; `expect` is the verdict
that a verifier must reach. Judgements are at its end.
"""

import json
import pathlib
import random
import sys

import algebra
import arithmetic
import discrete
import geometry
from exact import pick

TEMPLATES = pathlib.Path(__file__).resolve().parent.parent.parent / "templates"
SEED = 20_261_124

SUBJECTS = {
    "arithmetic": [
        arithmetic.order_of_operations,
        arithmetic.price_changes,
        arithmetic.arithmetic_series,
        arithmetic.missing_number,
        arithmetic.average_speed,
    ],
    "fractions": [
        arithmetic.mixed_operations,
        arithmetic.continued_fraction,
        arithmetic.repeating_decimal,
        arithmetic.pipes,
        arithmetic.what_is_left,
    ],
    "algebra": [
        algebra.linear_equation,
        algebra.pair_of_equations,
        algebra.squares_of_roots,
        algebra.larger_root,
        algebra.double_inequality,
        algebra.expand,
        algebra.quadratic_inequality,
        algebra.geometric_sum,
    ],
    "numbers": [
        discrete.power_remainder,
        discrete.common_multiple,
        discrete.divisor_count,
        discrete.two_remainders,
        discrete.trailing_zeros,
    ],
    "counting": [
        discrete.letter_orders,
        discrete.committees,
        discrete.grid_paths,
        discrete.multiples,
        discrete.shares,
    ],
    "geometry": [
        geometry.hypotenuse,
        geometry.triangle_area,
        geometry.circles,
        geometry.box_diagonal,
        geometry.polygon_angle,
    ],
    "probability": [
        discrete.dice_sum,
        discrete.same_colour,
        discrete.coin_heads,
        discrete.expected_larger,
        discrete.random_divisor,
    ],
}
EACH = 4  # problems per builder


def answered(problem, chance, kind):
    """A plausible model answer, and the verdict that a verifier must reach."""
    opening = pick(
        chance,
        "",
        "Let me work this out step by step. ",
        "We go step by step.\n\n",
        "First, what is asked. ",
        "Solution.\n",
    )
    if kind == "no_box":
        ending = pick(
            chance,
            f"So the answer is {problem.answer}.",
            "That gives the result.",
            f"**Answer:** ${problem.answer}$",
        )
        return f"{opening}{problem.work}\n\n{ending}", "no_answer"
    given, verdict = problem.answer, "equal"
    if kind == "other_form":
        given = chance.choice(problem.others)
    elif kind == "wrong":
        given, verdict = chance.choice(problem.wrong), "unequal"
    ending = pick(
        chance,
        f"So the answer is $\\boxed{{{given}}}$.",
        f"Therefore\n\\[\n\\boxed{{{given}}}\n\\]",
        f"The final answer is \\boxed{{{given}}}",
        f"Hence $\\boxed{{{given}}}$.",
    )
    return f"{opening}{problem.work}\n\n{ending}", verdict


KINDS = ["right"] * 12 + ["other_form"] * 4 + ["wrong"] * 3 + ["no_box"]


def judgements(name, verdict, chance):
    """Plausible judgements, for runs in which a verifier leaves the pair undecided. Now and then, the two
    orders of the pair get different judgements."""
    if verdict == "no_answer":
        return []
    same = pick(
        chance, "[[A=B]]", "Both have the same value. [[A=B]]", "They are two forms of one number.\n[[A=B]]"
    )
    other = pick(chance, "[[A!=B]]", "The two values differ. [[A!=B]]", "Answer A is not Answer B.\n[[A!=B]]")
    line = {"row": name, "step": "judge"}
    if chance.random() < 0.06:
        return [{**line, "sample": 1, "output": same}, {**line, "sample": 2, "output": other}]
    return [{**line, "output": same if verdict == "equal" else other}]


def made():
    """The content of the two files."""
    chance = random.Random(SEED)
    suite, script, judged = [], [], []
    for subject, builders in SUBJECTS.items():
        count = 0
        for builder in builders:
            answers = set()
            for _ in range(EACH):
                problem = builder(chance)
                while problem.answer in answers:
                    problem = builder(chance)
                answers.add(problem.answer)
                assert problem.answer not in problem.wrong + problem.others, problem
                count += 1
                name = f"{subject}-{count:02d}"
                suite.append({"id": name, "problem": problem.text, "answer": problem.answer})
                kind = KINDS[(len(script) * 7 + 3) % len(KINDS)]
                output, verdict = answered(problem, chance, kind)
                script.append({"row": name, "step": "answer", "output": output, "expect": verdict})
                judged += judgements(name, verdict, chance)
    lines = lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return {"math_judge.suite.jsonl": lines(suite), "math_judge.script.jsonl": lines(script + judged)}


def main():
    for name, text in made().items():
        path = TEMPLATES / name
        if "--check" not in sys.argv[1:]:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path.name} differs from the output of scripts/math_judge")


main()
