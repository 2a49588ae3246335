"""Compares flowbench's verdicts on a few thousand pairs of answers with those of math-verify.

    python scripts/answer_pairs.py --flowbench target/release/flowbench

Needs a Python with math-verify, which flowbench uses as well. Prints a contingency table of the verdicts, and
the pairs that only one of them considers equal. Exits with 1 if a number does not equal another spelling of
itself.
"""

import argparse
import collections
import json
import logging
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
from fractions import Fraction

from math_verify import parse, verify

TEMPLATE = """schema = 1
name = "pairs"
suite = "pairs.suite.jsonl"

[[step]]
id = "answer"
prompt = "{{ row.problem }}"

[[step]]
id = "check"
kind = "verify"
of = "answer"
question = "{{ row.problem }}"
expected = "{{ row.answer }}"
"""

EXPRESSIONS = r"""
\sqrt{12} | 2\sqrt{3} | \sqrt{13} | \frac{\sqrt{2}}{2} | \frac{1}{\sqrt{2}} | \frac{\pi}{3} | 60^\circ
2\pi | 3.14159265 | 1+\sqrt{30} | \sqrt{30}+1 | \frac{6-\sqrt{12}}{2} | 3-\sqrt{3} | x+1 | 1+x | x-1
x^2-1 | (x-1)(x+1) | 4x^2-18x-10 | 2(2x^2-9x-5) | (2x+1)(x-5) | 2x^2-9x-5 | (1,2) | [1,2] | (1,2] | 1,2
2,1 | \{1,2\} | \{2,1\} | (2,1) | 1<x<2 | 1\le x\le 2 | x>2 | (2,\infty) | x\ge 2 | [2,\infty)
(-\infty,1)\cup(2,\infty) | (2,\infty)\cup(-\infty,1) | x=2 | y=2 | 2 | \text{even} | \text{odd} | Tuesday
\text{(B)} | B | C | \text{no solution} | \emptyset | \begin{pmatrix}1\\2\end{pmatrix} | 3+4i | 4i+3 | \pm 2
-2,2 | 2^{10} | 1024 | \binom{10}{3} | 120 | \log_2 8 | 3 | e^3 | \tan 45^\circ | 1 | \frac12 | 0.5 | 50\%
n\equiv 1\pmod{3} | y' | y | A^T | A | 1011_2 | 11 | 1011 | \$5 | 5 \text{ dollars} | 5 | 5\text{ cm}^2 | ab
ba | a b | 2ab | \infty | -\infty | \frac{x+2}{y} | \frac{x}{y}+\frac{2}{y} | 1,234 | 1234 | 0.0000001
0.0000002 | f(x)=x+1 | \frac{a}{b} | a/b | \sqrt[3]{8} | 2\frac{1}{2} | 2.5 | \text{12 students} | 12 | 1:2
1, 2, \ldots, n | 3x+2y=6 | 6x+4y=12
"""


def spellings(value):
    """Spellings of a number, the plainest first."""
    sign, above, below = "-" * (value < 0), abs(value.numerator), value.denominator
    if below == 1:
        grouped = f"{sign}{above:,}"
        forms = [
            "{s}{n}", "{s}{n}.0", "{s}{n}.", "${s}{n}$", "\\text{{{s}{n}}}", "\\text{{{s}{n} cm}}", "x = {s}{n}",
            "{s}{n} \\text{{ cm}}", "{s}{n}^\\circ", "{s}{n}°", "{s}{n}e0", "{s}{n}\\%", "{s}{n} apples",
        ]
        texts = [form.format(s=sign, n=above) for form in forms]
        texts += [grouped.replace(",", separator) for separator in (",", "\\,", "{,}", " ", "\u2009")]
        return texts + [f"{sign}\\frac{{{3 * above}}}{{3}}", f"{sign}{10 * above} \\times 10^{{-1}}"]
    texts = [f"{sign}{above}/{below}"]
    texts += [f"{sign}\\{name}{{{above}}}{{{below}}}" for name in ("frac", "dfrac", "tfrac")]
    if above > below:
        texts.append(f"{sign}{above // below}\\frac{{{above % below}}}{{{below}}}")
    if below == 3:
        return texts + [f"{sign}{above // 3}.\\overline{{{3 * (above % 3)}}}"]
    places = next((places for places in range(12) if 10**places % below == 0), None)
    if places:
        digits = f"{above * 10**places // below:0{places + 1}d}"
        decimal = f"{sign}{digits[:-places]}.{digits[-places:]}"
        texts += [decimal, decimal + "0", decimal + "e0"]
    return texts


def pairs(chance):
    """Pairs of an answer and an expected answer, and whether they are spellings of the same number."""
    values = [Fraction(chance.randint(-30, 30)) for _ in range(14)]
    values += [Fraction(chance.randint(1000, 9_999_999)) for _ in range(14)]
    values += [Fraction(chance.randint(-40, 90), chance.choice([2, 3, 4, 5, 7, 8, 16, 25])) for _ in range(36)]
    values += [Fraction(chance.randint(1, 9), 10 ** chance.randint(5, 9)) for _ in range(8)]
    for value in values:
        known = spellings(value)
        yield from ((text, known[0], True) for text in known[1:])
        for other in (value + 1, value * 10 + 1, value + Fraction(1, 10**6), value * 2 + 1):
            texts = spellings(other)
            yield from ((text, chance.choice(known), False) for text in chance.sample(texts, min(4, len(texts))))
    expressions = [text.strip() for line in EXPRESSIONS.split("\n") for text in line.split(" | ") if text.strip()]
    for one in expressions:
        yield from ((one, other, False) for other in chance.sample(expressions, 16))


def verdicts(flowbench, all_pairs):
    """flowbench's verdict on each pair."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "templates").mkdir()
        (folder / "templates/pairs.toml").write_text(TEMPLATE)
        (folder / "templates/pairs.suite.jsonl").write_text('{"id": "x", "problem": "p", "answer": "1"}\n')
        with open(folder / "rows.jsonl", "w") as rows, open(folder / "script.jsonl", "w") as script:
            for number, (answer, expected, _) in enumerate(all_pairs):
                print(json.dumps({"id": f"r{number}", "problem": f"p{number}", "answer": expected}), file=rows)
                output = f"\\boxed{{{answer}}}"
                print(json.dumps({"row": f"r{number}", "step": "answer", "output": output}), file=script)
        command = [flowbench, "run", "--template", "pairs", "--mode", "scripted", "--script", "script.jsonl"]
        command += ["--script-latency", "0", "--input", "rows.jsonl", "--output", "out.jsonl", "--quiet"]
        command += ["--python", sys.executable]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        lines = (folder / "out.jsonl").read_text().splitlines()
        return [json.loads(line)["outcome"] for line in lines]


def library(answer, expected):
    """math-verify's verdict on a pair, called as its README shows."""
    signal.alarm(10)
    try:
        known = parse("$" + expected.strip("$") + "$", parsing_timeout=None)
        given = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
        return "equal" if verify(known, given, timeout_seconds=None) else "unequal"
    except Exception as error:
        return type(error).__name__
    finally:
        signal.alarm(0)


def give_up(*_):
    raise TimeoutError


def main():
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--flowbench", required=True, type=lambda path: str(pathlib.Path(path).resolve()))
    arguments.add_argument("--seed", type=int, default=1)
    arguments = arguments.parse_args()
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, give_up)
    all_pairs = list(pairs(random.Random(arguments.seed)))
    counts, wrong = collections.Counter(), 0
    for (answer, expected, same), ours in zip(all_pairs, verdicts(arguments.flowbench, all_pairs)):
        theirs = library(answer, expected)
        counts[ours, theirs] += 1
        if ours != theirs and "equal" in (ours, theirs):
            print(f"{ours}, math-verify {theirs}: {answer} | {expected}")
        if same and ours != "equal":
            wrong += 1
            print(f"WRONG {ours}: {answer} | {expected}")
    for (ours, theirs), count in sorted(counts.items()):
        print(f"{ours:10} math-verify {theirs:10} {count}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
