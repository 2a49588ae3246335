"""Compares two answers with math-verify: run once in the zygote, so that it and sympy have loaded what
they load lazily, and then for each pair in a child of its own. The answers are arguments, never source.

Time limits are kept from outside: the library's own are switched off.
"""

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify


def read(text):
    """What the library makes of an answer: expressions and texts, best first."""
    forms = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    return parse("\\boxed{" + text + "}", forms, parsing_timeout=None)


def is_read(parsed):
    """Whether there is an expression among it, and not only the text itself."""
    return any(not isinstance(one, str) for one in parsed)


def check(answer, expected):
    """`equal`, `unequal`, or why neither can be told."""
    known, given = read(expected), read(answer)
    if not is_read(known):
        return "math-verify cannot read the expected answer"
    if not is_read(given):
        return "math-verify cannot read the answer"
    try:
        return "equal" if compare(known, given, raise_on_error=True) else "unequal"
    except Exception as error:
        # It tries each form of one with each form of the other: another pair may work.
        equal = compare(known, given, raise_on_error=False)
        return "equal" if equal else "math-verify cannot compare them: " + type(error).__name__


def compare(known, given, raise_on_error):
    return verify(
        known, given, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=raise_on_error
    )


def warm_up():
    """Reads and compares what answers commonly look like. The parser (ANTLR) learns how to go on at every
    form that it meets, which takes tens of milliseconds each, and the children know what it knew here."""
    for one, other in [
        ("\\frac{1}{2}", "0.5"),
        ("2\\sqrt{3}+1", "1+\\sqrt{12}"),
        ("-5\\sqrt{2}", "(50)^{1/2}"),
        ("\\frac{6-\\sqrt{12}}{2}", "3 \\cdot \\sqrt{5}"),
        ("x^2-1", "(x-1)(x+1)"),
        ("-10+3x+x^2", "2x^2 - x + 1"),
        ("(1, 2]", "[1, 2)"),
        ("x \\in (-1, 2]", "-1 < x \\le 2"),
        ("(-\\infty, 2) \\cup [3, \\infty)", "x > 3"),
        ("\\{1, 2\\}", "\\{2, 1\\}"),
        ("\\dfrac{\\pi}{3}", "60^\\circ"),
        ("\\pi \\cdot 12", "12\\pi - 3\\pi"),
        ("x = 3, y = -4", "(3, -4)"),
        ("50\\%", "x \\ge 3"),
        ("2^{10}", "1,024.5"),
        ("12 \\text{ cm}", "a b + c"),
    ]:
        check(one, other)
