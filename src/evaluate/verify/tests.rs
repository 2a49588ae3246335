//! Pairs of answers and their verdicts without the library.

use proptest::prelude::*;

use super::Verdict::{self, Equal, Undecided, Unequal};
use super::*;

/// Each line: answer, expected answer, verdict without the library, verdict with math-verify.
const ANSWERS: &str = include_str!("../../../tests/data/answers.jsonl");

#[test]
fn the_verdicts_of_the_table_are_reproduced() {
    let mut lines = 0;
    for line in ANSWERS.lines() {
        let [answer, expected, verdict, _]: [String; 4] = serde_json::from_str(line).expect(line);
        assert_eq!(
            compare(&answer, &expected).as_str(),
            verdict,
            "{answer} | {expected}"
        );
        lines += 1;
    }
    assert!(lines > 300, "{lines}");
}

fn check(cases: &[(&str, &str, Verdict)]) {
    for (answer, expected, verdict) in cases {
        assert_eq!(compare(answer, expected), *verdict, "{answer} | {expected}");
    }
}

#[test]
fn numerals_are_compared_exactly() {
    check(&[
        ("4", "4.0", Equal),
        ("$4$.", "4", Equal),
        ("-0", "0", Equal),
        ("0.75", "3/4", Equal),
        (r"-\dfrac{1}{2}", "-0.5", Equal),
        ("0.1", "0.10000000000000001", Unequal),
        ("0.3333", "1/3", Unequal),
        ("0.0000001", "0.0000002", Unequal),
        ("4", "5", Unequal),
        ("99999999999999999999999999999999999999999", "1", Unequal),
        ("9^{9^{9^9}}", "1", Unequal),
        ("9^{9^{9^9}}", "x", Undecided),
        ("1,23", "123", Undecided),
        ("", "", Undecided),
        ("1/0", "1", Undecided),
        ("--1", "1", Undecided),
        (".", "0", Undecided),
    ]);
}

#[test]
fn a_partly_parsed_text_is_undecided() {
    check(&[
        (r"n \equiv 1 \pmod 3", "3", Undecided),
        (r"n \equiv 1 \pmod 3", r"n \equiv 2 \pmod 3", Undecided),
        (r"\{1, 2, \ldots, 10\}", "10", Undecided),
        (r"\begin{cases} 1 & x > 0 \\ 2 \end{cases}", "2", Undecided),
        ("at least 5", "5", Undecided),
        ("5 or more", "5", Undecided),
        ("about 5", "5", Undecided),
        ("5 (approximately)", "5", Undecided),
        ("3–5", "5", Undecided),
        ("x + y = 5", "5", Undecided),
        ("1011_2", "1011", Undecided),
        ("y'", "y", Undecided),
        ("A^T", "A", Undecided),
        ("3m", "3", Undecided),
    ]);
}

#[test]
fn lists_sets_and_tuples_are_compared_item_by_item() {
    check(&[
        ("3, 2", "2, 3", Equal),
        (r"\{3, 2\}", r"\{2, 3\}", Equal),
        ("(3, 2)", "(2, 3)", Unequal),
        ("2, 3", "(2, 3)", Equal),
        ("3, 2", "(2, 3)", Undecided),
        ("2", "2, 3", Unequal),
        ("2, 3", "2", Unequal),
        ("2, 4", "2, 3", Unequal),
        ("2, 2, 3", "2, 3", Undecided),
        (r"\{2, 2, 3\}", r"\{2, 3\}", Equal),
        ("(1, 2)", "[1, 2]", Unequal),
        (r"\pm 3", "-3, 3", Equal),
        ("x = 2, y = 3", "y = 3, x = 2", Equal),
        ("x = 2, y = 3", "x = 3, y = 2", Unequal),
        ("x = 5", "5", Equal),
        ("x = 5", "y = 5", Undecided),
        ("100,200", "100, 200", Equal),
        ("1,234", "1234", Equal),
    ]);
}

/// `1,5` may be two numbers, or one.
#[test]
fn a_decimal_comma_gives_no_verdict() {
    check(&[
        ("0,25", "0.25", Undecided),
        ("1,5", "1.5", Undecided),
        ("-1,5", "-1.5", Undecided),
        ("+1,5", "1.5", Undecided),
        ("x = 1,5", "1.5", Undecided),
        (r"1,5 \text{ cm}", "1.5", Undecided),
        (r"1,5\%", "1.5", Undecided),
        (r"3,5^\circ", "3.5", Undecided),
        (r"\$1,5", "1.5", Undecided),
        (r"1,5 \cdot 10^{3}", "1500", Undecided),
        ("1.234,5", "1234.5", Undecided),
        ("1 234,5", "1234.5", Undecided),
        ("1234.5", "1.234,5", Undecided),
        ("1,234.5", "1.234,5", Undecided),
        ("1,5", "1,6", Unequal),
        ("1, 5", "1.5", Unequal),
        ("1,5,2", "1.5", Unequal),
        ("(1,5)", "1.5", Unequal),
        ("1,234", "1234", Equal),
        ("1{,}5", "1.5", Equal),
    ]);
}

#[test]
fn an_overlong_answer_is_wrong() {
    let nines = "9".repeat(2001);
    check(&[
        (&nines, "1", Unequal),
        (&nines, r"\pi", Unequal),
        (&nines, &nines, Equal),
    ]);
    let padded = format!("1.{}", "0".repeat(1990));
    check(&[(&padded, "1", Equal)]);
}

#[test]
fn a_megabyte_of_input_is_handled() {
    for piece in [
        "9",
        "(",
        r"\boxed{",
        "1,",
        r"\frac{",
        " ",
        "$",
        "x+",
        "½",
        r"\text{a}",
    ] {
        let long = piece.repeat(1_000_000 / piece.len());
        assert_ne!(compare(&long, "7"), Equal);
        assert_ne!(compare("7", &long), Equal);
        let _ = given_answer(&long);
    }
}

proptest! {
    #[test]
    fn comparison_is_symmetric_and_never_panics(
        one in r"(\\frac|\\text|\\pm|\\boxed|\\sqrt|\\circ|[\\{}()\[\]0-9a-cxe,./ $%^_!=<+*½°–-]){0,20}",
        other in r"(\\frac|\\text|[\\{}()0-9xe,./ $%^-]){0,12}",
    ) {
        prop_assert_eq!(compare(&one, &other), compare(&other, &one));
    }

    #[test]
    fn a_number_equals_all_its_spellings(
        numerator in -1_000_000_i64..1_000_000, factor in 1_i64..1000, shift in 0_u32..6,
    ) {
        let scale = 10_i64.pow(shift);
        let sign = if numerator < 0 { "-" } else { "" };
        let magnitude = numerator.abs();
        let width = shift as usize;
        let decimal = match shift {
            0 => format!("{sign}{magnitude}"),
            _ => format!("{sign}{}.{:0width$}", magnitude / scale, magnitude % scale),
        };
        let fraction = format!("{}/{}", numerator * factor, scale * factor);
        let latex = format!(r"{sign}\frac{{{magnitude}}}{{{scale}}}");
        let scientific = format!("{numerator}e-{shift}");
        let product = format!(r"{numerator} \times 10^{{-{shift}}}");
        for spelling in [&fraction, &latex, &scientific, &product] {
            prop_assert_eq!(compare(&decimal, spelling), Equal, "{} | {}", decimal, spelling);
        }
        let next = format!("{}/{scale}", numerator + 1);
        prop_assert_eq!(compare(&decimal, &next), Unequal);
    }
}
