"""Shared by the builders: exact answers as LaTeX, and the problem record."""

import random
from collections import namedtuple
from fractions import Fraction
from math import isqrt

# `answer` and `others` (equivalent forms) are LaTeX; `wrong` holds the results of typical mistakes.
Problem = namedtuple("Problem", "text answer others work wrong")


def agreed(formula, check):
    """Returns the answer after asserting that both computations agree."""
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
    """Other common spellings of the number."""
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
    """Decimal notation, if it terminates within four places."""
    for places in range(1, 5):
        scaled = value * 10**places
        if scaled.denominator == 1:
            sign, digits = "-" if scaled < 0 else "", f"{abs(scaled.numerator):0{places + 1}d}"
            return f"{sign}{digits[:-places]}.{digits[-places:]}"
    return None


def surd(square):
    """Square root of a positive integer in simplest form: factor, radicand, LaTeX."""
    factor = max(it for it in range(1, isqrt(square) + 1) if square % (it * it) == 0)
    left = square // factor**2
    if left == 1:
        return factor, left, str(factor)
    return factor, left, f"{factor if factor > 1 else ''}\\sqrt{{{left}}}"


def polynomial(coefficients, reverse=False):
    """LaTeX of a polynomial, highest power first; `coefficients` start with the constant."""
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
    """The answer and its other forms, for a numeric problem."""
    return number(value), other_numbers(value)


def off(value, *slips):
    """Results of typical mistakes, unless they happen to be correct."""
    value = Fraction(value)
    return [number(slip) for slip in map(Fraction, slips) if slip != value] or [number(value + 1)]


def pick(chance, *texts):
    return chance.choice(texts)


NAMES = ["Amara", "Bela", "Chidi", "Dunya", "Elif", "Farid", "Greta", "Hana", "Ivo", "Jun", "Kofi", "Lena"]
