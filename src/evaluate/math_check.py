"""Compares expressions with math-verify. Runs once in the zygote, to trigger lazy loading in it and in sympy,
and then in a child process per question. The expressions are arguments, never source code.

`verify/expression.rs` hands over only unambiguous expressions. The library's own search for an answer in a
text, and its clean-up, are not used, because they drop what they do not know. Its parser consumes the whole
expression or fails. Two values are unequal only if they differ at every point examined, and equal only if
they agree at every point.

Time limits are enforced by the pool; the library's own are not used.
"""

import sympy
from latex2sympy2_extended import latex2sympy2
from sympy.core.relational import Relational

EQUAL, UNEQUAL = "equal", "unequal"

# Digits of an evaluation. Values within a relative `AGREE` are equal, from a relative `DIFFER` on unequal.
DIGITS, AGREE, DIFFER = 40, sympy.Float("1e-25"), sympy.Float("1e-12")

# The decimals, and significant digits, that a rounded value needs to match an exact one.
FEWEST_DECIMALS = 6

# Values of the variables at which expressions are compared: unrelated numbers of both signs, and integers,
# at which `(-1)^{2n}` is 1.
POINTS = [
    [sympy.Rational(n, 1009) for n in (743, 1471, 2719, 3697, 577, 5051)],
    [sympy.Rational(n, 1013) for n in (-1583, -811, -3023, -2111, -4507, -619)],
    [sympy.Rational(n, 1019) for n in (2203, -937, 4049, -1787, 691, -3331)],
    [sympy.Integer(n) for n in (23, 34, 19, 38, 29, 26)],
    [sympy.Integer(n) for n in (26, 31, 22, 37, 28, 25)],
]


class Unread(Exception):
    """The reason why something cannot be compared."""


def read(latex, is_complex):
    """Parses a whole text as one expression."""
    config = latex2sympy2.ConversionConfig(lowercase_symbols=False)
    reader = latex2sympy2._Latex2Sympy(is_real=not is_complex, config=config)
    try:
        expression = reader.parse(latex)
    except RecursionError:
        raise
    except Exception as error:
        raise Unread("cannot parse: " + type(error).__name__) from error
    if isinstance(expression, (sympy.Basic, sympy.MatrixBase)):
        return expression
    raise Unread("cannot parse")


def same(one, other, decimals, is_complex):
    """Whether two expressions are equal; raises `Unread` with the reason if undecided."""
    one, other = read(one, is_complex), read(other, is_complex)
    kinds = [kind(one), kind(other)]
    if kinds == ["value", "value"]:
        return same_values(one, other, decimals)
    if "other" in kinds:
        raise Unread("cannot compare such expressions")
    if kinds == ["relation", "relation"]:
        answer = same_relations(one, other)
        if answer is not None:
            return answer
    if "value" not in kinds:
        answer = same_sets(one, other)
        if answer is not None:
            return answer
    raise Unread("finds them neither equal nor certainly different")


def kind(expression):
    if isinstance(expression, sympy.Set):
        return "set"
    if isinstance(expression, Relational) or type(expression).__name__ == "And":
        return "relation"
    return "value" if isinstance(expression, sympy.Expr) else "other"


def same_values(one, other, decimals):
    one, other = one.doit(), other.doit()
    symbols = sorted(one.free_symbols | other.free_symbols, key=str)
    if not symbols:
        return same_numbers(one, other, decimals)
    if len(symbols) > len(POINTS[0]):
        raise Unread("too many variables")
    looks = [look(one, other, dict(zip(symbols, point))) for point in POINTS]
    looks = [agrees for agrees in looks if agrees is not None]
    if len(looks) < 2:
        raise Unread("cannot evaluate them")
    if all(looks):
        return True
    if any(looks):
        raise Unread("they agree only for some values of the variables")
    if one.free_symbols != other.free_symbols:
        return same_letters(one, other)
    return False


def same_letters(one, other):
    """For unequal values with different variables: False, or `Unread` if a variable may be a constant."""
    one_only, other_only = one.free_symbols - other.free_symbols, other.free_symbols - one.free_symbols
    names = {symbol.name.lower() for symbol in one_only | other_only}
    if one_only and other_only:
        raise Unread("they have different variables")
    if names & {"c", "k", "n", "m"}:
        raise Unread("one has an additional variable, which may be any number")
    return False


def look(one, other, values):
    """Whether two expressions agree at these values of the variables; `None` if either is undefined there."""
    one, other = (work_out(expression.subs(values)) for expression in (one, other))
    if one is None or other is None:
        return None
    difference, scale = abs(one - other), max(abs(one), abs(other))
    if difference <= AGREE * scale:
        return True
    return False if difference >= DIFFER * scale else None


def work_out(expression):
    """The value to `DIGITS` digits; `None` if there is none."""
    try:
        value = sympy.N(expression, DIGITS)
    except (ArithmeticError, TypeError, ValueError):
        return None
    finite = value.is_number and value.is_finite is not False and not value.has(sympy.nan, sympy.zoo, sympy.oo)
    if not finite or value.has(sympy.Function) or not all(part.is_Float or part.is_Integer or part.is_Rational
                                                          for part in value.as_real_imag()):
        return None
    return value


def same_numbers(one, other, decimals):
    infinite = [value.has(sympy.oo, -sympy.oo) for value in (one, other)]
    if any(infinite):
        if one in (sympy.oo, -sympy.oo) and other in (sympy.oo, -sympy.oo):
            return one == other
        if all(infinite):
            raise Unread("cannot compare infinities")
        return False
    left, right = work_out(one), work_out(other)
    if left is None or right is None:
        raise Unread("cannot evaluate them")
    difference, scale = abs(left - right), max(abs(left), abs(right))
    if difference <= AGREE * scale:
        return True
    if scale < sympy.Float("1e-30"):
        # Relative comparison does not work for zero.
        answer = (one - other).equals(0)
        if answer is None:
            raise Unread("cannot tell whether a value is zero")
        return answer
    if decimals is not None and decimals >= FEWEST_DECIMALS:
        counted = scale * sympy.Integer(10) ** decimals
        return bool(difference * 10**decimals <= sympy.Rational(1, 2) and counted >= 10 ** (FEWEST_DECIMALS - 1))
    return False


def same_relations(one, other):
    """Whether two equations or two inequalities are equivalent; `None` if undecided."""
    if not isinstance(one, Relational) or not isinstance(other, Relational):
        return None
    if isinstance(one, (sympy.StrictLessThan, sympy.LessThan)):
        one = one.reversed
    if isinstance(other, (sympy.StrictLessThan, sympy.LessThan)):
        other = other.reversed
    if type(one) is not type(other):
        return None
    left, right = one.lhs - one.rhs, other.lhs - other.rhs
    if left.free_symbols != right.free_symbols or not left.free_symbols:
        return None
    symbols = sorted(left.free_symbols, key=str)
    factors = []
    for point in POINTS[:3]:
        values = dict(zip(symbols, point))
        above, below = work_out(left.subs(values)), work_out(right.subs(values))
        if above is None or not below:
            return None
        factors.append(above / below)
    constant = all(abs(factor - factors[0]) <= AGREE * abs(factors[0]) for factor in factors)
    is_equation = isinstance(one, (sympy.Eq, sympy.Ne))
    if constant and (is_equation or (factors[0].is_real and factors[0] > 0)):
        return True
    if is_equation and left.is_polynomial() and right.is_polynomial():
        # The same zeros, ignoring multiplicity.
        roots = [sympy.factor_list(polynomial) for polynomial in (left, right)]
        zeros = [{monic(factor, symbols) for factor, _ in factors} for _, factors in roots]
        return zeros[0] == zeros[1]
    return None


def monic(polynomial, symbols):
    return sympy.Poly(polynomial, *symbols).monic().as_expr()


def same_sets(one, other):
    sets = []
    for side in (one, other):
        if kind(side) == "relation":
            if len(side.free_symbols) != 1:
                return None
            try:
                side = sympy.And(*getattr(side, "_unsorted_args", [side])).as_set()
            except Exception as error:
                raise Unread("cannot solve: " + type(error).__name__) from error
        sets.append(side)
    if any(side.free_symbols for side in sets):
        return None
    if sets[0] == sets[1]:
        return True
    try:
        empty = sets[0].symmetric_difference(sets[1]).is_empty
    except Exception as error:
        raise Unread("cannot compare sets: " + type(error).__name__) from error
    return empty


def check(question):
    """`equal`, `unequal`, or the reason why it is undecided."""
    is_complex = question["complex"]
    try:
        if question["pairs"]:
            return check_pairs(question["pairs"], is_complex)
        return check_sets(question["answer"], question["expected"], is_complex)
    except Unread as why:
        return f"math-verify: {why}"
    except Exception as error:
        return f"math-verify cannot compare them: {type(error).__name__}"


def check_pairs(pairs, is_complex):
    why = None
    for one, other, decimals in pairs:
        try:
            if not same(one, other, decimals, is_complex):
                return UNEQUAL
        except Unread as reason:
            why = reason
    if why is not None:
        raise why
    return EQUAL


def check_sets(answer, expected, is_complex):
    """Each expression of one side must be among those of the other."""
    table = [[told(one, other, is_complex) for other in expected] for one in answer]
    lines = table + [list(column) for column in zip(*table)]
    if any(all(cell is False for cell in line) for line in lines):
        return UNEQUAL
    if all(any(cell is True for cell in line) for line in lines):
        return EQUAL
    raise next(cell for line in table for cell in line if isinstance(cell, Unread))


def told(one, other, is_complex):
    try:
        return same(one, other, None, is_complex)
    except Unread as why:
        return why


def warm_up():
    """Parses and compares typical answers. The parser (ANTLR) extends its tables for each new form, which
    takes tens of milliseconds; children inherit the tables built here."""
    for one, other in [
        (r"\frac{1}{2}", r"(\frac{5}{10})"),
        (r"2\sqrt{3}+1", r"1+\sqrt{12}"),
        (r"-5\sqrt{2}", "(50)^{1/2}"),
        (r"\frac{6-\sqrt{12}}{2}", r"3\cdot \sqrt{5}"),
        ("x ^{2}-1", "(x -1)(x +1)"),
        ("-10+3x +x ^{2}", "2x ^{2}-x +1"),
        (r"(1,2]\cup(3,4)", r"[1,2)\cup\{3\}"),
        (r"1<x \le 2", "(1,2]"),
        (r"(-\infty ,2)\cup[3,\infty )", "x >3"),
        (r"\frac{\pi }{3}", r"60\cdot \frac{\pi }{180}"),
        (r"\pi \cdot 12", r"12\pi -3\pi "),
        ("2x +3y =1", "y =2x +1"),
        ("2^{10}", r"\sin (x )+e ^{x }"),
        ("a b +c ", "c +a b "),
    ]:
        check({"pairs": [[one, other, None]], "complex": False})
