"""Arithmetic and fraction problems."""

from fractions import Fraction
from math import gcd, lcm

from exact import NAMES, Problem, agreed, number, off, pick, plain


def order_of_operations(chance):
    a, b, c, d, e = (chance.randint(*span) for span in [(20, 90), (2, 9), (11, 30), (2, 9), (2, 7)])
    value = agreed(a - b * (c - d) + e**2, eval(f"{a} - {b} * ({c} - {d}) + {e} * {e}"))
    text = (
        pick(chance, "Evaluate", "Work out", "Find the value of")
        + f" ${a} - {b} \\times ({c} - {d}) + {e}^2$."
    )
    work = f"The bracket is {c - d}, times {b} that is {b * (c - d)}. And {e}^2 = {e * e}, so {a} - {b * (c - d)} + {e * e} = {value}."
    return Problem(text, *plain(value), work, off(value, (a - b) * (c - d) + e**2, a - b * c - d + e**2))


def price_changes(chance):
    price, up, down = (
        chance.choice([200, 400, 500, 800]),
        chance.choice([10, 20, 25, 50]),
        chance.choice([10, 20, 30, 40]),
    )
    value = agreed(
        Fraction(price * (100 + up) * (100 - down), 10_000),
        price * (1 + Fraction(up, 100)) * (1 - Fraction(down, 100)),
    )
    text = pick(
        chance,
        f"A coat costs {price} crowns. Its price goes up by {up}%, and a month later the new price goes down by {down}%. What does it cost then, in crowns?",
        f"A shop raises the price of a lamp, {price} crowns, by {up}% and afterwards takes {down}% off the raised price. How many crowns is the lamp now?",
    )
    raised = Fraction(price * (100 + up), 100)
    work = f"After the rise the price is {number(raised)}. Taking {down}% off leaves {100 - down}% of it."
    return Problem(text, *plain(value), work, off(value, price * (100 + up - down) / Fraction(100)))


def arithmetic_series(chance):
    first, step, count = chance.randint(2, 15), chance.randint(2, 9), chance.randint(12, 40)
    value = agreed(
        count * (2 * first + (count - 1) * step) // 2, sum(first + step * it for it in range(count))
    )
    last = first + step * (count - 1)
    text = pick(
        chance,
        f"Find the sum ${first} + {first + step} + {first + 2 * step} + \\cdots + {last}$, in which each term is {step} more than the one before.",
        f"A row of seats grows: the first row has {first} seats, and every next row has {step} more. How many seats are in the first {count} rows together?",
    )
    work = f"There are {count} terms from {first} to {last}. The sum is {count} times ({first} + {last})/2."
    return Problem(
        text, *plain(value), work, off(value, (count - 1) * (first + last) / Fraction(2), value + last)
    )


def missing_number(chance):
    value = 0
    while not 10 <= value <= 100:
        shown = [chance.randint(40, 99) for _ in range(chance.randint(3, 5))]
        mean = chance.randint(55, 85)
        value = mean * (len(shown) + 1) - sum(shown)
    agreed(Fraction(sum(shown) + value, len(shown) + 1), mean)
    name = chance.choice(NAMES)
    listed = ", ".join(map(str, shown))
    text = pick(
        chance,
        f"{name} scored {listed} in the first {len(shown)} tests. Which score in the next test makes the mean of all {len(shown) + 1} exactly {mean}?",
        f"The numbers {listed} and one more number $n$ have the mean {mean}. What is $n$?",
    )
    work = f"All {len(shown) + 1} numbers add up to {mean} times {len(shown) + 1} = {mean * (len(shown) + 1)}, and those known to {sum(shown)}."
    return Problem(text, *plain(value), work, off(value, mean * len(shown) - sum(shown), mean))


def average_speed(chance):
    there, back = chance.sample([20, 24, 30, 36, 40, 45, 60, 72], 2)
    value = agreed(
        Fraction(2 * there * back, there + back),
        Fraction(720, 1) / (Fraction(360, there) + Fraction(360, back)),
    )
    name = chance.choice(NAMES)
    text = pick(
        chance,
        f"{name} drives to the lake at {there} km/h and returns on the same road at {back} km/h. What is the average speed of the whole journey, in km/h?",
        f"A ferry crosses a bay at {there} km/h and comes back at {back} km/h. Give its average speed for both ways together in km/h, as an exact number.",
    )
    work = f"For a road of d km the time is d/{there} + d/{back} hours for 2d km, so the speed is 2 times {there} times {back} over {there + back}."
    return Problem(text, *plain(value), work, off(value, Fraction(there + back, 2)))


def a_fraction(chance):
    while True:
        below = chance.randint(3, 12)
        above = chance.randint(1, below - 1)
        if gcd(above, below) == 1:
            return Fraction(above, below)


def mixed_operations(chance):
    a, b, c = a_fraction(chance), a_fraction(chance), a_fraction(chance)
    minus = chance.random() < 0.5
    value = a - b * c if minus else a + b * c
    common = a.denominator * b.denominator * c.denominator
    above = (
        a.numerator * b.denominator * c.denominator
        + (-1 if minus else 1) * b.numerator * c.numerator * a.denominator
    )
    agreed(value, Fraction(above, common))
    sign = "-" if minus else "+"
    text = (
        pick(chance, "Compute", "Simplify", "Write as a single fraction in lowest terms:")
        + f" ${number(a)} {sign} {number(b)} \\times {number(c)}$."
    )
    work = f"The product comes first: it is {number(b * c)}. Then {number(a)} {sign} {number(b * c)}."
    slip = (a - b) * c if minus else (a + b) * c
    return Problem(text, *plain(value), work, off(value, slip))


def continued_fraction(chance):
    a, b, c, d = (chance.randint(1, 6) for _ in range(4))
    d += 1
    value = a + 1 / (b + 1 / (c + Fraction(1, d)))
    # By the recurrence for convergents.
    before, now = (1, 0), (a, 1)
    for part in (b, c, d):
        before, now = now, (part * now[0] + before[0], part * now[1] + before[1])
    agreed(value, Fraction(*now))
    text = (
        pick(chance, "Write", "Simplify")
        + f" $\\displaystyle {a} + \\cfrac{{1}}{{{b} + \\cfrac{{1}}{{{c} + \\cfrac{{1}}{{{d}}}}}}}$ as a fraction in lowest terms."
    )
    work = f"From the inside: {c} + 1/{d} = {number(c + Fraction(1, d))}, its reciprocal plus {b} is {number(b + 1 / (c + Fraction(1, d)))}."
    return Problem(text, *plain(value), work, off(value, a + b + 1 / (c + Fraction(1, d)), 1 / value))


def repeating_decimal(chance):
    while True:
        digits = chance.randint(1, 98)
        if digits % 11:
            break
    value = Fraction(digits, 99)
    agreed(value * 100, value + digits)
    text = pick(
        chance,
        f"Write the repeating decimal $0.\\overline{{{digits:02d}}}$ as a fraction in lowest terms.",
        f"Which fraction in lowest terms equals $0.{digits:02d}{digits:02d}{digits:02d}\\ldots$, where the two digits {digits:02d} repeat for ever?",
    )
    work = f"With x for the number, 100x - x = {digits}, so x = {digits}/99."
    return Problem(text, *plain(value), work, off(value, Fraction(digits, 100), Fraction(digits, 90)))


def pipes(chance):
    a, b = sorted(chance.sample(range(3, 16), 2))
    value = agreed(Fraction(a * b, a + b), 1 / (Fraction(1, a) + Fraction(1, b)))
    text = pick(
        chance,
        f"One pipe fills a tank in {a} hours, another in {b} hours. How many hours do both together need?",
        f"{chance.choice(NAMES)} paints a fence in {a} hours, a friend needs {b} hours for it. How long, in hours, do they take if they paint together, each at their own pace?",
    )
    work = f"In an hour they do 1/{a} + 1/{b} = {number(Fraction(1, a) + Fraction(1, b))} of it."
    return Problem(text, *plain(value), work, off(value, Fraction(a + b, 2), 1 / value))


def what_is_left(chance):
    first, second = a_fraction(chance), a_fraction(chance)
    whole = lcm(first.denominator, 1) * second.denominator * chance.randint(2, 9)
    left = whole - whole * first
    value = agreed(left - left * second, whole * (1 - first) * (1 - second))
    name = chance.choice(NAMES)
    text = pick(
        chance,
        f"{name} has {whole} beads, gives away ${number(first)}$ of them, and then ${number(second)}$ of what is left. How many beads remain?",
        f"A library has {whole} old magazines. It sells ${number(first)}$ of them, and recycles ${number(second)}$ of the rest. How many are kept?",
    )
    work = f"After the first step {number(left)} are left, and {number(1 - second)} of them stay."
    return Problem(text, *plain(value), work, off(value, whole * (1 - first - second), left * second))
