"""What the builders share: exact answers as LaTeX, and a problem with everything that belongs to it."""

import random
from collections import namedtuple
from fractions import Fraction
from math import isqrt

# `answer` and `others` (the same in other words) are LaTeX, `wrong` is what a slip leads to.
Problem = namedtuple("Problem", "text answer others work wrong")


def agreed(formula, check):
    """The answer, once both ways to it agree."""
    assert formula == check, (formula, check)
    return formula


def number(value):
    """An integer or a fraction in lowest terms, as LaTeX."""
    value = Fraction(value)
    if value.denominator == 1:
        return str(value.numerator)
    sign = "-" if value < 0 else ""
    return f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def other_numbers(value):
    """The same number as people also write it."""
    value = Fraction(value)
    if value.denominator == 1:
        grouped = f"{value.numerator:,}"
        return [f"{value.numerator}.0", f"${value.numerator}$"] + ([grouped] if "," in grouped else [])
    sign = "-" if value < 0 else ""
    above, below = abs(value.numerator), value.denominator
    forms = [
        f"{value.numerator}/{below}",
        f"{sign}\\dfrac{{{above}}}{{{below}}}",
        f"{sign}\\frac{{{2 * above}}}{{{2 * below}}}",
    ]
    digits = decimal(value)
    return forms + ([digits] if digits else [])


def decimal(value):
    """Its decimal digits, if they end soon."""
    for places in range(1, 5):
        scaled = value * 10**places
        if scaled.denominator == 1:
            sign, digits = "-" if scaled < 0 else "", f"{abs(scaled.numerator):0{places + 1}d}"
            return f"{sign}{digits[:-places]}.{digits[-places:]}"
    return None


def surd(square):
    """The root of a positive integer in simplest form: factor, what is left under the root, LaTeX."""
    factor = max(it for it in range(1, isqrt(square) + 1) if square % (it * it) == 0)
    left = square // factor**2
    if left == 1:
        return factor, left, str(factor)
    return factor, left, f"{factor if factor > 1 else ''}\\sqrt{{{left}}}"


def polynomial(coefficients, reverse=False):
    """Coefficients from the constant up, as LaTeX from the highest power down."""
    terms = []
    for power, coefficient in enumerate(coefficients):
        if coefficient:
            size = "" if abs(coefficient) == 1 and power else str(abs(coefficient))
            variable = "" if power == 0 else "x" if power == 1 else f"x^{power}"
            terms.append(("-" if coefficient < 0 else "+", size + variable))
    terms = terms if reverse else terms[::-1]
    first = terms[0][1] if terms[0][0] == "+" else "-" + terms[0][1]
    return first + "".join(f"{sign}{term}" for sign, term in terms[1:])


def plain(value):
    """A problem's answer and its other forms, of a number."""
    return number(value), other_numbers(value)


def off(value, *slips):
    """What slips lead to, as far as it is not right after all."""
    value = Fraction(value)
    return [number(slip) for slip in map(Fraction, slips) if slip != value] or [number(value + 1)]


def pick(chance, *texts):
    return chance.choice(texts)


NAMES = ["Amara", "Bela", "Chidi", "Dunya", "Elif", "Farid", "Greta", "Hana", "Ivo", "Jun", "Kofi", "Lena"]
