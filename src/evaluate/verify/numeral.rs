//! Parses written-out numbers exactly, as fractions of arbitrarily large integers.

use num_bigint::BigInt;
use num_integer::Integer;
use num_rational::BigRational;
use num_traits::{One, Pow, Signed, ToPrimitive, Zero};

/// Maximum bits of the numerator or denominator of a computed number.
const MOST_BITS: u64 = 16_384;

/// The largest argument for which factorials are computed.
const LARGEST_FACTORIAL: u32 = 1000;

/// From here on a factorial certainly has more than [`MOST_BITS`].
const FACTORIAL_BEYOND: u32 = 3000;

/// Maximum nesting depth of brackets.
const DEEPEST: usize = 32;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Exact(BigRational),
    /// Not computed: in lowest terms it has more than [`MOST_BITS`], so it equals no `Exact` number.
    Beyond,
}

/// A parsed number and the text after it.
#[derive(Debug)]
pub(super) struct Read<'a> {
    pub(super) value: Value,
    /// The number of decimals, if the text is a plain decimal fraction.
    pub(super) decimals: Option<usize>,
    pub(super) rest: &'a str,
}

/// Parses the number at the start of `text` (see [`super::normal`]), including arithmetic on integers and
/// fractions: `+ - \cdot / ^ !`, brackets and `\frac`.
pub(super) fn leading(text: &str) -> Option<Read<'_>> {
    let mut reader = Reader {
        rest: text,
        depth: 0,
        atoms: 0,
    };
    let value = reader.sum()?;
    let decimals = decimals(text.trim_start_matches(['+', '-', ' ']), reader.rest);
    Some(Read {
        value,
        decimals,
        rest: reader.rest,
    })
}

/// Parses a text that is a number as a whole.
pub(super) fn whole(text: &str) -> Option<Value> {
    let read = leading(text)?;
    read.rest.trim().is_empty().then_some(read.value)
}

/// Whether two numbers are equal; `None` if unknown.
pub(super) fn same(one: &Value, other: &Value) -> Option<bool> {
    match (one, other) {
        (Value::Exact(one), Value::Exact(other)) => Some(one == other),
        (Value::Beyond, Value::Beyond) => None,
        _ => Some(false),
    }
}

/// The number of decimals, if the parsed text consists of digits and a point only.
fn decimals(text: &str, rest: &str) -> Option<usize> {
    let read = text[..text.len() - rest.len()].trim_end();
    let (whole, part) = read.split_once('.')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(whole) && digits(part)).then_some(part.len())
}

struct Reader<'a> {
    rest: &'a str,
    depth: usize,
    /// Numbers parsed so far. Limited, because a long sum is an expression, not a number.
    atoms: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.rest.bytes().next()
    }

    fn take(&mut self, what: &str) -> bool {
        match self.rest.strip_prefix(what) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// Like [`Reader::take`], for a command, which ends where its letters end.
    fn take_command(&mut self, command: &str) -> bool {
        let ends = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphabetic());
        match self.rest.strip_prefix(command) {
            Some(rest) if ends(rest) => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn spaces(&mut self) {
        self.rest = self.rest.trim_start_matches(' ');
    }

    fn digits(&mut self) -> &'a str {
        let length = self.rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = self.rest.split_at(length);
        self.rest = rest;
        digits
    }

    fn sum(&mut self) -> Option<Value> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return None;
        }
        self.spaces();
        let negative = self.take("-");
        if !negative {
            self.take("+");
        }
        self.spaces();
        if matches!(self.peek(), Some(b'-' | b'+')) {
            return None;
        }
        let mut sum = self.product()?;
        if negative {
            sum = negated(sum);
        }
        loop {
            let before = self.rest;
            self.spaces();
            let minus = match self.peek() {
                Some(b'+') => false,
                Some(b'-') => true,
                _ => {
                    self.rest = before;
                    break;
                }
            };
            self.rest = &self.rest[1..];
            let term = self.product()?;
            let (one, other) = (exact(sum)?, exact(term)?);
            sum = bounded(if minus { one - other } else { one + other })?;
        }
        self.depth -= 1;
        Some(sum)
    }

    fn product(&mut self) -> Option<Value> {
        let mut product = self.factor()?;
        loop {
            let before = self.rest;
            self.spaces();
            let times = self.take_command(r"\times")
                || self.take_command(r"\cdot")
                || self.rest.starts_with('*') && !self.rest.starts_with("**") && self.take("*")
                || self.ten_follows();
            let over = !times && (self.take("/") || self.take_command(r"\div"));
            if !times && !over {
                self.rest = before;
                return Some(product);
            }
            let factor = self.factor()?;
            let (one, other) = (exact(product)?, exact(factor)?);
            if over && other.is_zero() {
                return None;
            }
            // `1/2/3` and `1/2 * 3` are left-associative.
            product = bounded(if over { one / other } else { one * other })?;
        }
    }

    /// Skips the `x` of `1.5 x 10^3`.
    fn ten_follows(&mut self) -> bool {
        let rest = self.rest.strip_prefix(['x', 'X']);
        let rest = rest.map(|rest| rest.trim_start_matches(' '));
        match rest {
            Some(rest) if rest.starts_with("10^") => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    fn factor(&mut self) -> Option<Value> {
        self.spaces();
        if self.take("-") {
            return self.power().map(negated);
        }
        self.power()
    }

    fn power(&mut self) -> Option<Value> {
        let mut base = self.atom()?;
        loop {
            if self.rest.starts_with('!') && !self.rest.starts_with("!!") {
                self.take("!");
                base = factorial(&exact(base)?)?;
                continue;
            }
            let before = self.rest;
            self.spaces();
            // `^\circ` is a unit.
            let is_degree = self.rest.starts_with(r"^\circ") || self.rest.starts_with(r"^{\circ");
            let is_power = !is_degree && (self.take("^") || self.take("**"));
            if !is_power || self.rest.starts_with(r"\text") || self.rest.starts_with(r"{\text") {
                self.rest = before;
                return Some(base);
            }
            let exponent = self.exponent()?;
            base = power(&exact(base)?, exponent)?;
            if self.rest.starts_with('^') {
                return None;
            }
        }
    }

    fn exponent(&mut self) -> Option<Value> {
        self.spaces();
        if self.peek() == Some(b'{') || self.peek() == Some(b'(') {
            return self.bracketed();
        }
        let negative = self.take("-");
        // TeX takes one digit, but `10^12` without braces means the twelfth power.
        let digits = Some(self.digits()).filter(|digits| !digits.is_empty())?;
        let value = integer(digits)?;
        let value = Value::Exact(value.into());
        Some(if negative { negated(value) } else { value })
    }

    fn bracketed(&mut self) -> Option<Value> {
        let close = if self.take("{") {
            "}"
        } else if self.take("(") {
            ")"
        } else {
            return None;
        };
        let value = self.sum()?;
        self.spaces();
        self.take(close).then_some(value)
    }

    fn atom(&mut self) -> Option<Value> {
        self.spaces();
        self.atoms += 1;
        if self.atoms > 64 {
            return None;
        }
        if self.take_command(r"\frac") {
            return self.fraction();
        }
        if matches!(self.peek(), Some(b'(' | b'{')) {
            return self.bracketed();
        }
        self.number()
    }

    /// The two arguments of `\frac`, each in braces or a single digit.
    fn fraction(&mut self) -> Option<Value> {
        let (above, below) = (self.argument()?, self.argument()?);
        let (above, below) = (exact(above)?, exact(below)?);
        (!below.is_zero()).then(|| bounded(above / below))?
    }

    fn argument(&mut self) -> Option<Value> {
        self.spaces();
        if self.peek() == Some(b'{') {
            return self.bracketed();
        }
        let digit = self
            .rest
            .get(..1)
            .filter(|one| one.as_bytes()[0].is_ascii_digit())?;
        self.rest = &self.rest[1..];
        Some(Value::Exact(integer(digit)?.into()))
    }

    /// Digits with separators, a fractional part, a repeating part, an exponent of ten, or a mixed
    /// fraction.
    fn number(&mut self) -> Option<Value> {
        let whole = self.grouped()?;
        let point = self.take_point();
        if whole.is_empty() && !point {
            return None;
        }
        let mut part = String::new();
        let mut period = String::new();
        if point {
            part = self.fractional_digits();
            period = self.period()?;
            if whole.is_empty() && part.is_empty() && period.is_empty() {
                return None;
            }
        }
        let all = integer(&format!("{whole}{part}"))?;
        let scale = ten_to(part.len())?;
        let mut value = BigRational::new(all, scale.clone());
        if !period.is_empty() {
            let nines = ten_to(period.len())? - BigInt::one();
            value += BigRational::new(integer(&period)?, scale * nines);
        }
        if let Some(exponent) = self.exponent_of_ten() {
            if value.is_zero() {
                return Some(Value::Exact(value));
            }
            let exponent = exact(exponent)?.to_integer().to_i32();
            return match exponent.filter(|exponent| exponent.abs() <= 10_000) {
                Some(small) => {
                    bounded(value * Pow::pow(BigRational::from(BigInt::from(10)), small))
                }
                // Too few digits to compensate for such an exponent.
                None => (whole.len() + part.len() < 1000).then_some(Value::Beyond),
            };
        }
        let is_integer = !point && !whole.is_empty();
        if is_integer && let Some(fraction) = self.mixed()? {
            value += fraction;
        }
        bounded(value)
    }

    /// A decimal point, or a comma that LaTeX sets as one (`3{,}14`).
    fn take_point(&mut self) -> bool {
        if self.rest.starts_with("..") {
            return false;
        }
        // The point at the end of `5.` belongs to the number, the one in `5.x` does not.
        self.take(".") || self.take("{,}") || self.take("{.}")
    }

    /// Digits after the point, possibly in groups of three (`3.141 592`).
    fn fractional_digits(&mut self) -> String {
        let mut digits = self.digits().to_owned();
        while digits.len() >= 3 && digits.len().is_multiple_of(3) {
            let group = self.rest.strip_prefix(' ').unwrap_or_default();
            let length = group.bytes().take_while(u8::is_ascii_digit).count();
            if length == 0 || length > 3 {
                break;
            }
            digits.push_str(&group[..length]);
            self.rest = &group[length..];
        }
        digits
    }

    /// Digits of an integer, possibly with thousands separators; all groups use the same separator.
    fn grouped(&mut self) -> Option<String> {
        let first = self.digits();
        let mut whole = first.to_owned();
        if !(1..=3).contains(&first.len()) || first.starts_with('0') {
            return Some(whole);
        }
        for separator in ["{,}", ",", "{ }", " ", "'", "\\_", "_"] {
            if !self.rest.starts_with(separator) {
                continue;
            }
            let mut groups = 0;
            while let Some(group) = self.rest.strip_prefix(separator) {
                // `1, 234` is a list. `{,}` produces no space in TeX, so it needs no such check.
                let length = group.bytes().take_while(u8::is_ascii_digit).count();
                if length != 3 {
                    break;
                }
                whole.push_str(&group[..3]);
                self.rest = &group[3..];
                groups += 1;
            }
            let lakhs = separator == "," && groups == 0;
            if lakhs && let Some((digits, rest)) = indian_groups(self.rest) {
                whole.push_str(&digits);
                self.rest = rest;
            }
            // `1 100/200` is 1100/200 or one and a half; `12 345 6` is malformed.
            if groups > 0 && separator == " " {
                let next = self.rest.trim_start_matches(' ');
                let is_open = self.rest.starts_with('/')
                    || self.rest.starts_with(' ') && next.starts_with(|c: char| c.is_ascii_digit());
                if is_open {
                    return None;
                }
            }
            break;
        }
        Some(whole)
    }

    /// The repeating digits: `\overline{3}`, `\bar{3}`, `\dot{1}4\dot{2}`, `(3)`, or digits each with a line
    /// above (U+0305). Empty if there are none.
    fn period(&mut self) -> Option<String> {
        for command in [r"\overline", r"\bar", r"\dot"] {
            if !self.take_command(command) {
                continue;
            }
            let mut period = self.braced_digits()?;
            if command == r"\dot" {
                let between = self.digits();
                if self.take_command(r"\dot") {
                    period.push_str(between);
                    period.push_str(&self.braced_digits()?);
                } else if !between.is_empty() {
                    return None;
                }
            }
            return Some(period);
        }
        if self.rest.starts_with('(') {
            let before = self.rest;
            self.take("(");
            let period = self.digits().to_owned();
            if period.is_empty() || !self.take(")") {
                self.rest = before;
                return Some(String::new());
            }
            return Some(period);
        }
        Some(String::new())
    }

    /// `{123}`, or a single digit.
    fn braced_digits(&mut self) -> Option<String> {
        self.spaces();
        let digits = if self.take("{") {
            let digits = self.digits();
            if !self.take("}") {
                return None;
            }
            digits
        } else {
            let (digit, rest) = self.rest.split_at_checked(1)?;
            self.rest = rest;
            digit
        };
        let is_read = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_read.then(|| digits.to_owned())
    }

    /// Parses the `e3` of `1.5e3`.
    fn exponent_of_ten(&mut self) -> Option<Value> {
        let rest = self.rest.strip_prefix(['e', 'E'])?;
        let (negative, rest) = match rest.strip_prefix(['-', '+']) {
            Some(after) => (rest.starts_with('-'), after),
            None => (false, rest),
        };
        let length = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = rest.split_at(length);
        if digits.is_empty() || rest.starts_with(|c: char| c.is_alphanumeric() || c == '.') {
            return None;
        }
        self.rest = rest;
        let value = Value::Exact(integer(digits)?.into());
        Some(if negative { negated(value) } else { value })
    }

    /// A proper fraction after an integer: `1\frac{1}{2}`, `1 1/2`. `Some(None)` if no fraction follows;
    /// `None` if digits or a fraction follow that do not make a proper fraction.
    fn mixed(&mut self) -> Option<Option<BigRational>> {
        let before = self.rest;
        self.spaces();
        let spaced = self.rest.len() < before.len();
        if self.take_command(r"\frac") {
            let fraction = exact(self.fraction()?)?;
            let proper = fraction.is_positive() && fraction < BigRational::one();
            return proper.then_some(Some(fraction));
        }
        if spaced && self.peek().is_some_and(|next| next.is_ascii_digit()) {
            let above = integer(self.digits())?;
            if !self.take("/") {
                return None;
            }
            let below = integer(self.digits())?;
            let proper = above.is_positive() && above < below;
            return proper.then(|| Some(BigRational::new(above, below)));
        }
        self.rest = before;
        Some(None)
    }
}

/// `,00,000` of `1,00,000`: groups of two digits, then one of three.
fn indian_groups(text: &str) -> Option<(String, &str)> {
    let mut digits = String::new();
    let mut rest = text;
    loop {
        let group = rest.strip_prefix(',')?;
        let length = group.bytes().take_while(u8::is_ascii_digit).count();
        if !(2..=3).contains(&length) {
            return None;
        }
        digits.push_str(&group[..length]);
        rest = &group[length..];
        if length == 3 {
            return (digits.len() > 3).then_some((digits, rest));
        }
    }
}

fn integer(digits: &str) -> Option<BigInt> {
    if digits.is_empty() {
        return Some(BigInt::zero());
    }
    BigInt::parse_bytes(digits.as_bytes(), 10)
}

fn ten_to(exponent: usize) -> Option<BigInt> {
    let exponent = u32::try_from(exponent)
        .ok()
        .filter(|exponent| *exponent < 4000)?;
    Some(BigInt::from(10).pow(exponent))
}

fn exact(value: Value) -> Option<BigRational> {
    match value {
        Value::Exact(value) => Some(value),
        Value::Beyond => None,
    }
}

fn negated(value: Value) -> Value {
    match value {
        Value::Exact(value) => Value::Exact(-value),
        Value::Beyond => Value::Beyond,
    }
}

fn bits(value: &BigRational) -> u64 {
    value.numer().bits().max(value.denom().bits())
}

fn bounded(value: BigRational) -> Option<Value> {
    Some(match bits(&value) <= MOST_BITS {
        true => Value::Exact(value),
        false => Value::Beyond,
    })
}

fn power(base: &BigRational, exponent: Value) -> Option<Value> {
    let is_trivial = base.is_zero() || base.numer().abs().is_one() && base.is_integer();
    let Value::Exact(exponent) = exponent else {
        return match base.is_one() {
            true => Some(Value::Exact(BigRational::one())),
            false => (!is_trivial).then_some(Value::Beyond),
        };
    };
    if !exponent.is_integer() {
        return None;
    }
    let exponent = exponent.to_integer();
    if base.is_zero() {
        // 0^0 is undefined.
        return exponent
            .is_positive()
            .then(|| Value::Exact(BigRational::zero()));
    }
    if is_trivial {
        let odd = base.is_negative() && exponent.is_odd();
        let one = BigRational::one();
        return Some(Value::Exact(if odd { -one } else { one }));
    }
    // In lowest terms, a power of a fraction is the fraction of the powers.
    let at_least = (bits(base) - 1).max(1);
    match exponent.to_i32() {
        Some(small) if u64::from(small.unsigned_abs()) * at_least <= MOST_BITS => {
            bounded(Pow::pow(base, small))
        }
        _ => Some(Value::Beyond),
    }
}

fn factorial(of: &BigRational) -> Option<Value> {
    if !of.is_integer() || of.is_negative() {
        return None;
    }
    match of.to_integer().to_u32() {
        Some(small) if small <= LARGEST_FACTORIAL => {
            let product = (2..=small).fold(BigInt::one(), |product, factor| product * factor);
            bounded(product.into())
        }
        Some(small) if small < FACTORIAL_BEYOND => None,
        _ => Some(Value::Beyond),
    }
}

#[cfg(test)]
mod tests {
    use super::super::normal::normal;
    use super::*;

    fn read(text: &str) -> Option<Value> {
        whole(&normal(text))
    }

    fn fraction(above: i64, below: i64) -> Option<Value> {
        Some(Value::Exact(BigRational::new(above.into(), below.into())))
    }

    #[test]
    fn numbers_are_parsed_in_all_spellings() {
        let cases = [
            ("12", 12, 1),
            ("007", 7, 1),
            ("+5", 5, 1),
            ("-1,234", -1234, 1),
            ("1,234,567.5", 2_469_135, 2),
            (r"5\,000", 5000, 1),
            ("5 000", 5000, 1),
            ("5\u{2009}000", 5000, 1),
            ("5{,}000", 5000, 1),
            (r"5{\,}000{\,}000", 5_000_000, 1),
            ("5'000", 5000, 1),
            ("5_000", 5000, 1),
            ("1,00,000", 100_000, 1),
            ("3{,}5", 7, 2),
            (".5", 1, 2),
            ("5.", 5, 1),
            ("0.10", 1, 10),
            ("3.141 592", 3_141_592, 1_000_000),
            ("1e3", 1000, 1),
            ("1.5E-1", 3, 20),
            (r"1.5 \times 10^3", 1500, 1),
            (r"1.5 \cdot 10^{-1}", 3, 20),
            ("1.5·10³", 1500, 1),
            ("1.5*10^3", 1500, 1),
            ("1.5x10^3", 1500, 1),
            ("10⁻³", 1, 1000),
            ("2^{10}", 1024, 1),
            ("2^10", 1024, 1),
            ("(-2)^3", -8, 1),
            ("-2^2", -4, 1),
            (r"\frac{3}{4}", 3, 4),
            (r"\frac34", 3, 4),
            (r"\dfrac 3 4", 3, 4),
            (r"\tfrac{3}4", 3, 4),
            ("3/4", 3, 4),
            ("3⁄4", 3, 4),
            ("-3/4", -3, 4),
            (r"\frac{-3}{4}", -3, 4),
            (r"-\frac{3}{-4}", 3, 4),
            ("½", 1, 2),
            ("1½", 3, 2),
            ("1 1/2", 3, 2),
            (r"1\frac{1}{2}", 3, 2),
            (r"-1\frac12", -3, 2),
            (r"0.\overline{3}", 1, 3),
            (r"0.1\overline{6}", 1, 6),
            (r"0.\bar3", 1, 3),
            (r"0.\dot{3}", 1, 3),
            (r"0.\dot{1}4285\dot{7}", 1, 7),
            ("0.(3)", 1, 3),
            (r"0.\overline{9}", 1, 1),
            ("0.3\u{305}", 1, 3),
            ("0.1\u{305}8\u{305}", 2, 11),
            ("5!", 120, 1),
            ("2+3", 5, 1),
            ("(2+3)*4", 20, 1),
            ("8/2", 4, 1),
            ("１２", 12, 1),
            ("٣", 3, 1),
            ("−5", -5, 1),
            ("–5", -5, 1),
            ("(5)", 5, 1),
        ];
        for (text, above, below) in cases {
            assert_eq!(read(text), fraction(above, below), "{text}");
        }
    }

    #[test]
    fn text_that_is_not_a_number_is_rejected() {
        let cases = [
            "",
            ".",
            "-",
            "--1",
            "x",
            "2x",
            "1,23",
            "1, 234",
            "5 00",
            "12 345 6",
            "3–5",
            "1..5",
            "1e",
            "e3",
            "1/0",
            r"\frac{1}{0}",
            r"2\frac{3}{2}",
            "1 100/200",
            "0.333...",
            "0.333…",
            r"0.3\ldots",
            "2^{1/2}",
            "2^3^2",
            "3^",
            "3^T",
            "0^0",
            "(5",
            "5)",
            r"\frac{1}",
            "5!!",
            r"1\frac{x}{2}",
            "3:4",
            "2(3)",
            r"\sqrt{4}",
            "1.234.567",
            r"\overline{3}",
            "2 3",
            "0x10",
            "1_2",
        ];
        for text in cases {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_that_are_too_large_are_beyond() {
        for text in [
            "9^{9^{9^9}}",
            "9^{9^{9^{9^9}}}",
            "1e999999999999999999999",
            "1e-99999",
            "-10^{100000}",
            "(1/2)^{99999}",
            "99999!",
            "2^{-100000}",
        ] {
            assert_eq!(read(text), Some(Value::Beyond), "{text}");
        }
        assert!(matches!(read(&"9".repeat(2000)), Some(Value::Exact(_))));
        for text in ["1^{9^{9^9}}", "0e99999999"] {
            assert!(matches!(read(text), Some(Value::Exact(_))), "{text}");
        }
    }

    #[test]
    fn decimals_are_counted_only_in_plain_decimal_fractions() {
        let decimals = |text: &str| leading(text).and_then(|read| read.decimals);
        assert_eq!(decimals("3.14"), Some(2));
        assert_eq!(decimals("-3.140"), Some(3));
        assert_eq!(decimals("3"), None);
        assert_eq!(decimals("3.1+2"), None);
        assert_eq!(decimals("1.5e3"), None);
    }

    #[test]
    fn deeply_nested_and_long_texts_are_rejected() {
        for text in [
            "(".repeat(2000),
            "{1}^".repeat(500),
            "1+".repeat(900),
            "-".repeat(2000),
        ] {
            assert_eq!(read(&text), None);
        }
    }
}
