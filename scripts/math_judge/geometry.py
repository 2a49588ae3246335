"""Geometry problems."""

import itertools
from fractions import Fraction

from exact import Problem, agreed, off, pick, plain, surd


def hypotenuse(chance):
    while True:
        a, b = chance.randint(2, 12), chance.randint(2, 12)
        factor, left, root = surd(a * a + b * b)
        if left > 1 and factor > 1:
            break
    agreed(factor**2 * left, a * a + b * b)
    text = pick(
        chance,
        f"The legs of a right triangle are {a} and {b} units long. How long is the hypotenuse, in simplest radical form?",
        f"A rectangle has sides {a} and {b}. Give the exact length of its diagonal.",
    )
    work = f"{a}^2 + {b}^2 = {a * a + b * b}."
    return Problem(
        text,
        root,
        [f"\\sqrt{{{a * a + b * b}}}", f"{factor} \\cdot \\sqrt{{{left}}}"],
        work,
        [str(a + b), f"{factor + 1}\\sqrt{{{left}}}"],
    )


def triangle_area(chance):
    while True:
        corners = [(chance.randint(-5, 6), chance.randint(-5, 6)) for _ in range(3)]
        (a, b), (c, d), (e, f) = corners
        doubled = abs((c - a) * (f - b) - (e - a) * (d - b))
        if doubled > 5:
            break
    value = Fraction(doubled, 2)
    # Pick's theorem, with counted lattice points.
    cross = lambda p, q, r: (q[0] - p[0]) * (r[1] - p[1]) - (r[0] - p[0]) * (q[1] - p[1])
    inside = edge = 0
    for point in itertools.product(range(-5, 7), repeat=2):
        signs = [cross(corners[it], corners[(it + 1) % 3], point) for it in range(3)]
        if all(it >= 0 for it in signs) or all(it <= 0 for it in signs):
            if 0 in signs:
                edge += 1
            else:
                inside += 1
    agreed(value, inside + Fraction(edge, 2) - 1)
    named = [f"({x}, {y})" for x, y in corners]
    text = pick(
        chance,
        f"Find the area of the triangle with the corners ${named[0]}$, ${named[1]}$ and ${named[2]}$.",
        f"Three posts stand at ${named[0]}$, ${named[1]}$ and ${named[2]}$ on a square grid of unit cells. What area does a rope around them enclose?",
    )
    work = f"The shoelace formula gives half of {doubled}."
    return Problem(text, *plain(value), work, off(value, doubled, value + Fraction(1, 2)))


def circles(chance):
    radius = chance.randint(2, 15)
    hole = chance.randint(1, radius - 1)
    value = radius**2 - hole**2
    agreed(value, (radius - hole) * (radius + hole))
    text = pick(
        chance,
        f"A ring lies between two circles with one centre and the radii {hole} and {radius}. What is its area?",
        f"From a disc of radius {radius} a disc of radius {hole} is cut out. Find the exact area that is left.",
    )
    work = f"The area is pi times ({radius}^2 - {hole}^2)."
    others = [f"\\pi \\cdot {value}", f"{radius**2}\\pi - {hole**2}\\pi"]
    return Problem(text, f"{value}\\pi", others, work, [f"{(radius - hole) ** 2}\\pi", f"{2 * value}\\pi"])


def box_diagonal(chance):
    while True:
        a, b, c = (chance.randint(1, 9) for _ in range(3))
        factor, left, root = surd(a * a + b * b + c * c)
        if left > 1:
            break
    agreed(factor**2 * left, a * a + b * b + c * c)
    text = pick(
        chance,
        f"A box measures {a} by {b} by {c}. How long is the straight line between two opposite corners, exactly?",
        f"Find the exact distance from $(0, 0, 0)$ to $({a}, {b}, {c})$.",
    )
    work = f"The square of the length is {a}^2 + {b}^2 + {c}^2 = {a * a + b * b + c * c}."
    others = [f"\\sqrt{{{a}^2+{b}^2+{c}^2}}", f"({a * a + b * b + c * c})^{{1/2}}"]
    return Problem(text, root, others, work, [str(a + b + c), f"\\sqrt{{{a * a + b * b}}}"])


def polygon_angle(chance):
    corners = chance.choice([5, 6, 7, 8, 9, 10, 12, 15, 16, 18])
    value = agreed(Fraction(180 * (corners - 2), corners), 180 - Fraction(360, corners))
    text = pick(
        chance,
        f"How many degrees does each interior angle of a regular polygon with {corners} sides have?",
        f"In a regular {corners}-gon, what is the size of an interior angle in degrees?",
    )
    work = f"The exterior angle is 360/{corners} degrees, the interior one is 180 less that."
    return Problem(text, *plain(value), work, off(value, Fraction(360, corners), 180 * (corners - 2)))
