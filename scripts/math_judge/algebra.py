"""Algebra problems."""

from fractions import Fraction

from exact import Problem, agreed, number, off, pick, plain, polynomial, surd


def linear_equation(chance):
    a, c = chance.sample(range(2, 12), 2)
    b, d = chance.randint(-15, 15) or 4, chance.randint(-15, 15) or -7
    value = Fraction(d - b, a - c)
    agreed(a * value + b, c * value + d)
    side = lambda of, more: polynomial([more, of])
    text = (
        pick(chance, "Solve for $x$:", "Find $x$ if", "Which number $x$ satisfies")
        + f" ${side(a, b)} = {side(c, d)}$"
        + "."
    )
    work = f"Collecting terms gives {a - c}x = {d - b}."
    return Problem(text, *plain(value), work, off(value, -value, Fraction(d + b, a - c)))


def pair_of_equations(chance):
    x, y = chance.randint(-6, 9), chance.randint(-6, 9)
    a, b, c, d = 1, 1, 1, 1
    while a * d == b * c:
        a, b, c, d = (chance.randint(1, 6) for _ in range(4))
    right, below = a * x + b * y, c * x + d * y
    found = [
        (p, q)
        for p in range(-40, 41)
        for q in range(-40, 41)
        if a * p + b * q == right and c * p + d * q == below
    ]
    agreed([(x, y)], found)
    coefficient = lambda it: "" if it == 1 else it
    first = f"${coefficient(a)}x + {coefficient(b)}y = {right}$"
    second = f"${coefficient(c)}x + {coefficient(d)}y = {below}$"
    text = pick(
        chance,
        f"If {first} and {second}, what is $x + y$?",
        f"Two numbers satisfy {first} and {second}. Find the value of $x + y$.",
    )
    work = f"Elimination gives x = {x} and y = {y}."
    return Problem(text, *plain(x + y), work, off(x + y, x * y, x - y))


def squares_of_roots(chance):
    total, product = chance.randint(-9, 9) or 5, chance.randint(-12, 12) or -3
    value = total**2 - 2 * product
    # The trace of the square of the companion matrix.
    companion = [[0, -product], [1, total]]
    agreed(value, sum(companion[i][j] * companion[j][i] for i in range(2) for j in range(2)))
    text = f"Let $r$ and $s$ be the roots of ${polynomial([product, -total, 1])} = 0$ " + pick(
        chance, "(they need not be real). Find $r^2 + s^2$.", "in the complex numbers. What is $r^2 + s^2$?"
    )
    work = f"r + s = {total} and rs = {product}, and r^2 + s^2 = (r+s)^2 - 2rs."
    return Problem(text, *plain(value), work, off(value, total**2 + 2 * product, total**2))


def larger_root(chance):
    while True:
        half, under = chance.randint(-6, 6), chance.randint(2, 40)
        factor, left, root = surd(under)
        if left > 1 and half:
            break
    # Substitute into x^2 - 2 half x + half^2 - under: first the rational part, then the coefficient of the
    # root.
    square = (half**2 + factor**2 * left, 2 * half * factor)
    agreed((square[0] - 2 * half * half + half**2 - under, square[1] - 2 * half * factor), (0, 0))
    answer, other = f"{half}+{root}", f"{root}+{half}" if half > 0 else f"{root}{half}"
    unsimplified = f"\\frac{{{2 * half}+\\sqrt{{{4 * under}}}}}{{2}}"
    text = (
        pick(chance, "What is the larger root of", "Give the larger solution of")
        + f" ${polynomial([half**2 - under, -2 * half, 1])} = 0$"
        + pick(chance, ", in exact form?", " as an exact expression.")
    )
    work = f"The equation is (x {'-' if half > 0 else '+'} {abs(half)})^2 = {under}."
    return Problem(text, answer, [other, unsimplified], work, [f"{half}-{root}", f"{-half}+{root}"])


def double_inequality(chance):
    a, b = chance.randint(2, 5), chance.randint(-7, 7) or 1
    low = chance.randint(-5, 2)
    high = low + chance.randint(2, 7)
    holds = lambda x: a * low + b < a * x + b <= a * high + b
    steps = [Fraction(it, 8) for it in range(8 * low - 8, 8 * high + 9)]
    agreed([x for x in steps if holds(x)], [x for x in steps if low < x <= high])
    text = (
        pick(chance, "Solve", "Find all real $x$ with")
        + f" ${a * low + b} < {polynomial([b, a])} \\le {a * high + b}$"
        + pick(chance, ". Give the answer as an interval.", " and write the solution in interval notation.")
    )
    work = f"Subtract {b} and divide by {a}." if b > 0 else f"Add {-b} and divide by {a}."
    wrong = [f"[{low}, {high})", f"({low}, {high + 1}]", f"({low}, {high})"]
    return Problem(
        text, f"({low}, {high}]", [f"\\left({low}, {high}\\right]", f"({low},{high}]"], work, wrong
    )


def expand(chance):
    a, b, c = chance.randint(1, 9), chance.randint(1, 9), chance.randint(2, 4)
    coefficients = [-a * b, b - c * a, c]
    value = lambda x: sum(it * x**power for power, it in enumerate(coefficients))
    agreed([(x - a) * (c * x + b) for x in range(-3, 4)], [value(x) for x in range(-3, 4)])
    slip = [a * b, b - c * a, c]
    text = (
        pick(chance, "Expand and collect terms:", "Multiply out and simplify") + f" $(x - {a})({c}x + {b})$."
    )
    work = f"x times {c}x is {c}x^2, the middle terms are {b}x - {c * a}x, and -{a} times {b} is {-a * b}."
    return Problem(
        text,
        polynomial(coefficients),
        [polynomial(coefficients, reverse=True), f"(x-{a})({c}x+{b})"],
        work,
        [polynomial(slip), polynomial([-a * b, b + c * a, c])],
    )


def quadratic_inequality(chance):
    low = chance.randint(-7, 3)
    high = low + chance.randint(2, 8)
    holds = lambda x: x * x - (low + high) * x + low * high <= 0
    steps = [Fraction(it, 6) for it in range(6 * low - 12, 6 * high + 13)]
    agreed([x for x in steps if holds(x)], [x for x in steps if low <= x <= high])
    condition = f"${polynomial([low * high, -(low + high), 1])} \\le 0$"
    text = pick(
        chance,
        f"For which real $x$ is {condition}? Answer with an interval.",
        f"Find the set of all real $x$ with {condition}, as an interval.",
    )
    work = f"The roots are {low} and {high}, and the parabola opens upwards."
    wrong = [
        f"({low}, {high})",
        f"[{-high}, {-low}]" if (-high, -low) != (low, high) else f"[{low}, {high + 1}]",
    ]
    return Problem(
        text, f"[{low}, {high}]", [f"\\left[{low}, {high}\\right]", f"[{low},{high}]"], work, wrong
    )


def geometric_sum(chance):
    above, below = chance.choice([(1, 2), (1, 3), (2, 3), (3, 4), (2, 5), (1, 4)])
    ratio, first = Fraction(above, below), chance.randint(2, 12)
    value = first / (1 - ratio)
    agreed(value, first + ratio * value)
    terms = ", ".join(f"{number(first * ratio**it)}" for it in range(3))
    text = pick(
        chance,
        f"Find the sum of the infinite geometric series whose first terms are ${terms}, \\ldots$",
        f"A geometric sequence begins ${terms}, \\ldots$ and goes on for ever. What do all its terms add up to?",
    )
    work = f"The ratio is {number(ratio)}, so the sum is {first} / (1 - {number(ratio)})."
    return Problem(text, *plain(value), work, off(value, first / (1 + ratio), value - first))
