//! Turns two texts into a verdict, a question for the library, or a reason why there is neither.

use std::borrow::Cow;

use num_rational::BigRational;
use serde::Serialize;

use super::expression::{self, Expression};
use super::normal::{normal, squeezed};
use super::numeral::{self, Value};
use super::shape::{self, Kind, Part, Shape};
use super::units::{self, Unit};
use super::words::{self, Choice};
use super::{LONGEST_ANSWER, Verdict, given_answer};

/// Maximum items of lists and sets that are compared pairwise.
const MOST_PARTS: usize = 24;

/// The result of examining two answers.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::evaluate) enum Finding {
    /// Decided. The text explains a verdict on an unparsed answer.
    Known(Verdict, String),
    /// Undecided, and the library cannot help, with the reason.
    Open(String),
    /// The library may decide.
    Ask(Question),
}

/// The question, in the format of `math_check.py`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::evaluate) struct Question {
    /// Expressions of the answer and the expected answer that must be equal, pair by pair. The number is that
    /// of the decimals, if one of the two is a decimal fraction.
    pairs: Vec<(String, String, Option<usize>)>,
    /// Alternatively: expressions that must be equal in any order.
    answer: Vec<String>,
    expected: Vec<String>,
    /// Whether numbers may be complex.
    complex: bool,
}

/// The result of comparing two items.
#[derive(Debug, Clone, PartialEq)]
enum Pair {
    Same,
    Differ,
    Open(String),
    Ask(Box<Asked>),
}

#[derive(Debug, Clone, PartialEq)]
struct Asked {
    one: Expression,
    other: Expression,
    decimals: Option<usize>,
}

/// Compares an answer with the expected one, as far as this is possible without the library.
pub(in crate::evaluate) fn examine(answer: &str, expected: &str) -> Finding {
    let (answer, expected) = (answer.trim(), expected.trim());
    if answer.is_empty() || expected.is_empty() {
        let which = if answer.is_empty() { "" } else { "expected " };
        return Finding::Open(format!("there is no {which}answer"));
    }
    if answer == expected {
        return known(Verdict::Equal);
    }
    // The expected answer may be boxed at the end of a worked solution.
    let boxed = |text: &str| match text.contains(r"\boxed") || text.contains(r"\fbox") {
        true => given_answer(text).map(Cow::into_owned),
        false => None,
    };
    if let Some(boxed) = boxed(expected) {
        return examine(answer, &boxed);
    }
    if let Some(boxed) = boxed(answer).filter(|boxed| boxed.len() < answer.len()) {
        return examine(&boxed, expected);
    }
    let longest = LONGEST_ANSWER.max(expected.len().saturating_mul(2));
    if answer.len() > longest {
        let why = format!("longer than {longest} bytes, the limit");
        return Finding::Known(Verdict::Unequal, why);
    }
    if expected.len() > LONGEST_ANSWER {
        let why = format!("the expected answer is longer than {LONGEST_ANSWER} bytes");
        return Finding::Open(why);
    }
    let (answer, expected) = (normal(answer), normal(expected));
    if answer.is_empty() || expected.is_empty() {
        return Finding::Open("there is no answer".to_owned());
    }
    if squeezed(&answer) == squeezed(&expected) {
        return known(Verdict::Equal);
    }
    // Numbers with commas, words with *and*, and choices take precedence over lists.
    let [one, other] =
        [&answer, &expected].map(|text| Item::new(shape::single(text).parts.remove(0)));
    if let (Some(_), Some(_)) = (&one.quantity, &other.quantity) {
        let as_numbers = compare_items(&one, &other);
        return match as_numbers {
            Pair::Same => known(Verdict::Equal),
            Pair::Open(why) => Finding::Open(why),
            _ if is_list_too(&answer) && is_list_too(&expected) => {
                match compare_shapes(
                    &shape::shape(&answer),
                    &shape::shape(&expected),
                    (&answer, &expected),
                ) {
                    Finding::Known(Verdict::Unequal, _) => known(Verdict::Unequal),
                    _ => Finding::Open("a list, or a number with commas".to_owned()),
                }
            }
            _ => known(Verdict::Unequal),
        };
    }
    if (one.words.is_some() || one.is_choice()) && (other.words.is_some() || other.is_choice()) {
        let pair = compare_items(&one, &other);
        let has_lists = [&answer, &expected]
            .iter()
            .any(|it| shape::shape(it).kind == Kind::List);
        if !has_lists || pair == Pair::Same {
            return of_pair(pair);
        }
    }
    let (mut one, mut other) = (shape::shape(&answer), shape::shape(&expected));
    // `y = 2x` and `2x - y = 0` are both equations, though the first looks like a named value.
    let is_equation = |shape: &Shape, text: &str| shape.name.is_none() && text.contains('=');
    if is_equation(&one, &answer) && other.name.is_some()
        || is_equation(&other, &expected) && one.name.is_some()
    {
        (one, other) = (shape::single(&answer), shape::single(&expected));
    }
    compare_shapes(&one, &other, (&answer, &expected))
}

fn known(verdict: Verdict) -> Finding {
    Finding::Known(verdict, String::new())
}

/// Whether a number with commas may also be a list of numbers.
fn is_list_too(text: &str) -> bool {
    text.contains(',') && !text.contains("{,}")
}

fn of_pair(pair: Pair) -> Finding {
    match pair {
        Pair::Same => known(Verdict::Equal),
        Pair::Differ => known(Verdict::Unequal),
        Pair::Open(why) => Finding::Open(why),
        Pair::Ask(asked) => ask(vec![*asked]),
    }
}

fn ask(asked: Vec<Asked>) -> Finding {
    let complex = asked
        .iter()
        .any(|asked| asked.one.has_i || asked.other.has_i);
    let pairs = asked
        .into_iter()
        .map(|asked| (asked.one.latex, asked.other.latex, asked.decimals));
    Finding::Ask(Question {
        pairs: pairs.collect(),
        answer: Vec::new(),
        expected: Vec::new(),
        complex,
    })
}

fn compare_shapes(one: &Shape, other: &Shape, texts: (&str, &str)) -> Finding {
    use Kind::{Bracketed, List, Matrix, Set, Single};
    if let (Some(name), Some(other_name)) = (&one.name, &other.name)
        && squeezed(name) != squeezed(other_name)
    {
        return Finding::Open("they assign to different names".to_owned());
    }
    let [left, right] = [one, other]
        .map(|shape| -> Vec<Item> { shape.parts.iter().cloned().map(Item::new).collect() });
    match (one.kind, other.kind) {
        (Single, Single) => match (left.first(), right.first()) {
            (Some(one), Some(other)) => of_pair(compare_items(one, other)),
            _ => Finding::Open("there is nothing to compare".to_owned()),
        },
        (Set, Set) | (Set | List, List) | (List, Set) => {
            let as_sets = one.kind == Set || other.kind == Set;
            let finding = in_any_order(&left, &right, as_sets);
            // `1.234,5` against `1,234.5`: only one of them is a number here, and both may be the same.
            let is_number = |text: &str| numeral::whole(text).is_some();
            let may_be_numbers = is_number(texts.0) != is_number(texts.1)
                && [texts.0, texts.1]
                    .iter()
                    .any(|text| is_decimal_comma(text) && !is_number(text));
            match finding {
                Finding::Known(Verdict::Unequal, _) if may_be_numbers => {
                    Finding::Open("two numbers, or one with a decimal comma".to_owned())
                }
                finding => finding,
            }
        }
        (Bracketed(a, b), Bracketed(c, d)) => {
            if (a, b) != (c, d) {
                return match left.len() == 2 && right.len() == 2 {
                    // Intervals with different brackets.
                    true => known(Verdict::Unequal),
                    false => unless_different(in_order(&left, &right), "their brackets differ"),
                };
            }
            in_order(&left, &right)
        }
        (Matrix(..), Matrix(..)) if one.kind == other.kind => in_order(&left, &right),
        (Matrix(rows, columns), Matrix(other_rows, other_columns)) => {
            match (rows, columns) == (other_columns, other_rows) && (rows == 1 || columns == 1) {
                true => unless_different(in_order(&left, &right), "one is a row, one is a column"),
                false => known(Verdict::Unequal),
            }
        }
        (Matrix(rows, columns), Bracketed(..)) | (Bracketed(..), Matrix(rows, columns)) => {
            match rows == 1 || columns == 1 {
                true => {
                    unless_different(in_order(&left, &right), "one is a matrix, one is a tuple")
                }
                false => Finding::Open("one is a matrix, one is a tuple".to_owned()),
            }
        }
        // A tuple may be written without its brackets.
        (Bracketed('(', ')'), List) | (List, Bracketed('(', ')')) => {
            match in_order(&left, &right) {
                Finding::Known(Verdict::Unequal, _) => unless_different(
                    in_any_order(&left, &right, false),
                    "one is ordered, the other may be",
                ),
                finding => finding,
            }
        }
        (Bracketed(..), Set | List) | (Set | List, Bracketed(..)) => unless_different(
            in_any_order(&left, &right, true),
            "one is ordered, the other is not",
        ),
        (Single, Set) if right.len() == 1 => in_order(&left, &right),
        (Set, Single) if left.len() == 1 => in_order(&left, &right),
        (Single, _) | (_, Single) => several_against_one((&left, &right), texts),
        _ => Finding::Open("they have different structures".to_owned()),
    }
}

/// Unequal if the two are unequal even without regard to `why`, undecided otherwise.
fn unless_different(finding: Finding, why: &str) -> Finding {
    match finding {
        Finding::Known(Verdict::Unequal, reason) => Finding::Known(Verdict::Unequal, reason),
        _ => Finding::Open(why.to_owned()),
    }
}

/// Compares a single item with a list, set, tuple or interval. Several numbers never equal one number. A
/// relation and an interval may be the same set.
fn several_against_one((left, right): (&[Item], &[Item]), texts: (&str, &str)) -> Finding {
    let are_numbers = |items: &[Item]| items.iter().all(|item| item.quantity.is_some());
    // `1,5` is a list, or a number with a decimal comma.
    if [texts.0, texts.1].iter().any(|text| is_decimal_comma(text)) {
        return Finding::Open("two numbers, or one with a decimal comma".to_owned());
    }
    if are_numbers(left) && are_numbers(right) && !left.is_empty() && !right.is_empty() {
        return known(Verdict::Unequal);
    }
    let is_set = |text: &str| {
        text.contains(['<', '>', '(', '[', '{']) || text.contains(r"\le") || text.contains(r"\ge")
    };
    if !is_set(texts.0) || !is_set(texts.1) {
        return Finding::Open("only one of them is a single item".to_owned());
    }
    let (one, other) = (strip_set_name(texts.0), strip_set_name(texts.1));
    match (expression::clean(one), expression::clean(other)) {
        (Ok(one), Ok(other)) => ask(vec![Asked {
            one,
            other,
            decimals: None,
        }]),
        (Err(why), _) => Finding::Open(format!("the answer: {why}")),
        (_, Err(why)) => Finding::Open(format!("the expected answer: {why}")),
    }
}

/// Whether the text has one comma outside of brackets, directly between two digits: as in `1,5`, `x = 1.234,5` and
/// `1,5 \text{ cm}`, not in `1, 5`, `1,2,3` and `(1,5)`.
fn is_decimal_comma(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_digit = |at: Option<usize>| {
        let byte = at.and_then(|at| bytes.get(at));
        byte.is_some_and(u8::is_ascii_digit)
    };
    let mut depth = 0_usize;
    let mut commas = Vec::new();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b',' if depth == 0 => commas.push(at),
            _ => {}
        }
    }
    matches!(commas[..], [at] if is_digit(at.checked_sub(1)) && is_digit(Some(at + 1)))
}

/// Removes `x \in`.
fn strip_set_name(text: &str) -> &str {
    match text.split_once(r"\in") {
        Some((name, rest)) if name.trim().len() <= 2 && rest.starts_with(' ') => rest.trim(),
        _ => text,
    }
}

fn in_order(left: &[Item], right: &[Item]) -> Finding {
    if left.len() != right.len() {
        return known(Verdict::Unequal);
    }
    let mut asked = Vec::new();
    let mut open = None;
    for (one, other) in left.iter().zip(right) {
        match compare_items(one, other) {
            Pair::Same => {}
            Pair::Differ => return known(Verdict::Unequal),
            Pair::Open(why) => open = Some(why),
            Pair::Ask(pair) => asked.push(*pair),
        }
    }
    match open {
        Some(why) => Finding::Open(why),
        None if asked.is_empty() => known(Verdict::Equal),
        None => ask(asked),
    }
}

fn in_any_order(left: &[Item], right: &[Item], as_sets: bool) -> Finding {
    if left.len().max(right.len()) > MOST_PARTS {
        return Finding::Open(format!("more than {MOST_PARTS} items"));
    }
    if left.is_empty() || right.is_empty() {
        return match left.is_empty() && right.is_empty() {
            true => known(Verdict::Equal),
            false => known(Verdict::Unequal),
        };
    }
    let table: Vec<Vec<Pair>> = (left.iter())
        .map(|one| {
            right
                .iter()
                .map(|other| compare_named(one, other))
                .collect()
        })
        .collect();
    let column = |place: usize| table.iter().map(move |row| &row[place]);
    let columns = || 0..right.len();
    // An item that differs from all others decides.
    let lonely = table
        .iter()
        .any(|row| row.iter().all(|pair| *pair == Pair::Differ))
        || columns().any(|place| column(place).all(|pair| *pair == Pair::Differ));
    if lonely {
        return known(Verdict::Unequal);
    }
    let covered = table.iter().all(|row| row.contains(&Pair::Same))
        && columns().all(|place| column(place).any(|pair| *pair == Pair::Same));
    if covered {
        return match as_sets || left.len() == right.len() {
            true => known(Verdict::Equal),
            false => Finding::Open("one repeats an item".to_owned()),
        };
    }
    let open = table.iter().flatten().find_map(|pair| match pair {
        Pair::Open(why) => Some(why.clone()),
        _ => None,
    });
    if let Some(why) = open {
        return Finding::Open(why);
    }
    if left.len() != right.len() {
        return Finding::Open("they have different numbers of items".to_owned());
    }
    let clean = |items: &[Item]| -> Result<Vec<Expression>, String> {
        items
            .iter()
            .map(|item| expression::clean(&item.text))
            .collect()
    };
    match (clean(left), clean(right)) {
        (Ok(answer), Ok(expected)) => {
            let complex = answer.iter().chain(&expected).any(|it| it.has_i);
            let latex = |all: Vec<Expression>| all.into_iter().map(|it| it.latex).collect();
            Finding::Ask(Question {
                pairs: Vec::new(),
                answer: latex(answer),
                expected: latex(expected),
                complex,
            })
        }
        (Err(why), _) => Finding::Open(format!("the answer: {why}")),
        (_, Err(why)) => Finding::Open(format!("the expected answer: {why}")),
    }
}

/// Compares items of lists. Items assigned to different names differ.
fn compare_named(one: &Item, other: &Item) -> Pair {
    match (&one.name, &other.name) {
        (Some(name), Some(other_name)) if squeezed(name) != squeezed(other_name) => Pair::Differ,
        _ => compare_items(one, other),
    }
}

/// An item, in all possible interpretations.
#[derive(Debug, Clone)]
struct Item {
    name: Option<String>,
    text: String,
    quantity: Option<Quantity>,
    words: Option<String>,
    choice: Option<Choice>,
}

/// A number with a unit.
#[derive(Debug, Clone)]
struct Quantity {
    value: Value,
    decimals: Option<usize>,
    unit: Unit,
}

impl Item {
    fn new(part: Part) -> Self {
        let text = unwrapped(&part.text);
        let words = words::words(text);
        let quantity = Quantity::read(text)
            .or_else(|| words.as_deref().and_then(words::number).map(Quantity::of));
        let choice = words::choice(&part.text);
        Self {
            name: part.name,
            text: text.to_owned(),
            quantity,
            words,
            choice,
        }
    }

    fn is_choice(&self) -> bool {
        self.choice.is_some()
    }

    fn is_beyond(&self) -> bool {
        self.quantity
            .as_ref()
            .is_some_and(|quantity| quantity.value == Value::Beyond)
    }
}

/// Removes a `\text{…}` or braces around the whole.
fn unwrapped(text: &str) -> &str {
    let mut text = text.trim();
    loop {
        let inner = text.strip_prefix(r"\text").unwrap_or(text).trim_start();
        let inner = inner
            .strip_prefix('{')
            .and_then(|inner| inner.strip_suffix('}'));
        match inner.filter(|inner| !inner.contains(['{', '}'])) {
            Some(inner) if !inner.trim().is_empty() => text = inner.trim(),
            _ => return text,
        }
    }
}

impl Quantity {
    fn of(number: u64) -> Self {
        Self {
            value: Value::Exact(BigRational::from_integer(number.into())),
            decimals: None,
            unit: Unit::None,
        }
    }

    fn read(text: &str) -> Option<Self> {
        // The sign precedes or follows the currency: `-$5`, `$-5`.
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) if units::currency(rest.trim_start()).0.is_some() => {
                (true, rest.trim_start())
            }
            _ => (false, text),
        };
        let (money, number) = units::currency(unsigned);
        let read = numeral::leading(number)?;
        let (factor, unit) = units::behind(read.rest)?;
        let unit = match (money, unit) {
            (None, unit) => unit,
            (Some(money), Unit::None) => money,
            (Some(_), _) => return None,
        };
        let value = match read.value {
            Value::Exact(value) => {
                let value = value * BigRational::from_integer(factor.into());
                Value::Exact(if negative { -value } else { value })
            }
            Value::Beyond => Value::Beyond,
        };
        Some(Self {
            value,
            decimals: read.decimals.filter(|_| factor == 1),
            unit,
        })
    }

    fn multiplied(&self, above: u64, below: u64) -> Value {
        match &self.value {
            Value::Exact(value) => {
                Value::Exact(value * BigRational::new(above.into(), below.into()))
            }
            Value::Beyond => Value::Beyond,
        }
    }
}

fn compare_items(one: &Item, other: &Item) -> Pair {
    if squeezed(&one.text) == squeezed(&other.text) {
        return Pair::Same;
    }
    if let (Some(one), Some(other)) = (&one.quantity, &other.quantity) {
        return compare_quantities(one, other);
    }
    if let (Some(one), Some(other)) = (&one.choice, &other.choice) {
        return match words::compare_choices(one, other) {
            Some(Verdict::Equal) => Pair::Same,
            Some(_) => Pair::Differ,
            None => Pair::Open("choices or variables that may mean the same".to_owned()),
        };
    }
    if let (Some(one), Some(other)) = (&one.words, &other.words) {
        return match words::compare(one, other) {
            Some(Verdict::Equal) => Pair::Same,
            Some(_) => Pair::Differ,
            None => Pair::Open("different words that may mean the same".to_owned()),
        };
    }
    let marked = |item: &Item| item.choice.as_ref().is_some_and(|choice| !choice.is_bare());
    if marked(one) || marked(other) {
        return choice_against_content(one, other);
    }
    let are_words = |item: &Item| {
        item.words
            .as_ref()
            .is_some_and(|_| expression::clean_product(&item.text).is_err())
    };
    if are_words(one) || are_words(other) {
        return Pair::Open("only one of them is words".to_owned());
    }
    if one.is_beyond() || other.is_beyond() {
        return Pair::Open("a number is too large to compute".to_owned());
    }
    for (number, with_base) in [(one, other), (other, one)] {
        if number.quantity.is_some() && is_in_a_base(&with_base.text) {
            return Pair::Open("a number in another base".to_owned());
        }
    }
    ask_about(one, other)
}

/// A number with a base, such as `1011_2`.
fn is_in_a_base(text: &str) -> bool {
    let Some((digits, _)) = text.split_once('_') else {
        return false;
    };
    digits.starts_with(|c: char| c.is_ascii_digit())
        && digits.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Compares `(B) 12` with `12`: equal if the content is, undecided otherwise.
fn choice_against_content(one: &Item, other: &Item) -> Pair {
    let (choice, item) = match (&one.choice, &other.choice) {
        (Some(choice), _) => (choice, other),
        (_, Some(choice)) => (choice, one),
        _ => return Pair::Open("one is a choice".to_owned()),
    };
    if !choice.content.is_empty() {
        let content = Item::new(Part {
            name: None,
            text: choice.content.clone(),
        });
        if content.choice.is_none() && compare_items(&content, item) == Pair::Same {
            return Pair::Same;
        }
    }
    Pair::Open("only one of them is a choice".to_owned())
}

fn compare_quantities(one: &Quantity, other: &Quantity) -> Pair {
    use Unit::{Degree, Letter, Named, None as Bare, Percent};
    let pair = |same: Option<bool>| match same {
        Some(true) => Pair::Same,
        Some(false) => Pair::Differ,
        None => Pair::Open("the numbers are too large to compute".to_owned()),
    };
    let same = numeral::same(&one.value, &other.value);
    match (&one.unit, &other.unit) {
        (one_unit, other_unit) if one_unit == other_unit => pair(same),
        // `12\%` is 0.12, or the 12 of a question that asks for percent.
        (Percent, Bare) | (Bare, Percent) => {
            let (percent, number) = if one.unit == Percent {
                (one, other)
            } else {
                (other, one)
            };
            match same {
                Some(true) => Pair::Same,
                _ => pair(numeral::same(&percent.multiplied(1, 100), &number.value)),
            }
        }
        (Degree, Bare) | (Bare, Degree) => pair(same),
        (Named(name), Bare) | (Bare, Named(name)) => {
            let (with_unit, number) = if one.unit == Bare {
                (other, one)
            } else {
                (one, other)
            };
            if same == Some(true) {
                return Pair::Same;
            }
            // The question may ask for minutes and the answer be in hours.
            let converted = units::alike(name).any(|alike| {
                units::conversion(name, alike).is_some_and(|(above, below)| {
                    let value = with_unit.multiplied(above, below);
                    numeral::same(&value, &number.value) == Some(true)
                })
            });
            match converted {
                true => Pair::Open("possibly equal in another unit".to_owned()),
                false => pair(same),
            }
        }
        (Named(name), Named(other_name)) => match units::conversion(name, other_name) {
            Some((above, below)) => {
                pair(numeral::same(&one.multiplied(above, below), &other.value))
            }
            None => Pair::Open(format!("their units are `{name}` and `{other_name}`")),
        },
        (Letter(letter), unit) | (unit, Letter(letter)) => match (unit, same) {
            (Letter(_), Some(false)) | (Letter(_), None) => {
                Pair::Open("letters that may be units or variables".to_owned())
            }
            _ => Pair::Open(format!("`{letter}` may be a unit or a variable")),
        },
        _ => Pair::Open("their units differ".to_owned()),
    }
}

/// Compares two items, at least one of which is an expression.
fn ask_about(one: &Item, other: &Item) -> Pair {
    let ((one_text, one_unit), (other_text, other_unit)) =
        (units::split(&one.text), units::split(&other.text));
    let differ = one_unit != Unit::None && other_unit != Unit::None && one_unit != other_unit;
    if differ {
        return Pair::Open("their units differ".to_owned());
    }
    let (one_text, other_text) = match (after_equation(one_text), after_equation(other_text)) {
        // Two equations are compared as such. An equation and a value are compared by the last side.
        (Some(_), Some(_)) => (one_text, other_text),
        (Some(Ok(rest)), None) => (rest, other_text),
        (None, Some(Ok(rest))) => (one_text, rest),
        (Some(Err(())), None) | (None, Some(Err(()))) => {
            return Pair::Open("one is an equation, the other is not".to_owned());
        }
        (None, None) => (one_text, other_text),
    };
    let again = |text: &str| {
        Item::new(Part {
            name: None,
            text: text.to_owned(),
        })
    };
    if one_text != one.text || other_text != other.text {
        let (one, other) = (again(one_text), again(other_text));
        if let (Some(one), Some(other)) = (&one.quantity, &other.quantity) {
            return compare_quantities(one, other);
        }
        if squeezed(one_text) == squeezed(other_text) {
            return Pair::Same;
        }
    }
    let decimals = match (&one.quantity, &other.quantity) {
        (Some(quantity), None) | (None, Some(quantity)) => quantity.decimals,
        _ => None,
    };
    match (cleaned(one, one_text), cleaned(other, other_text)) {
        (Ok(one), Ok(other)) => Pair::Ask(Box::new(Asked {
            one,
            other,
            decimals,
        })),
        (Err(why), _) => Pair::Open(format!("the answer: {why}")),
        (_, Err(why)) => Pair::Open(format!("the expected answer: {why}")),
    }
}

/// The expression of an item. A number is written as the fraction that was parsed.
fn cleaned(item: &Item, text: &str) -> Result<Expression, String> {
    let Some(quantity) = &item.quantity else {
        // Two or three letters compared with an expression are a product, not a word.
        return match item.words {
            Some(_) => expression::clean_product(text),
            None => expression::clean(text),
        };
    };
    let Value::Exact(value) = &quantity.value else {
        return Err("a number is too large to compute".to_owned());
    };
    let (above, below) = (value.numer(), value.denom());
    let number = match value.is_integer() {
        true => format!("({above})"),
        false => format!(r"(\frac{{{above}}}{{{below}}})"),
    };
    let latex = match &quantity.unit {
        Unit::None | Unit::Named(_) => number,
        Unit::Degree => format!(r"{number}\cdot \frac{{\pi }}{{180}}"),
        Unit::Percent => return Err("percent is not supported".to_owned()),
        Unit::Letter(_) => return expression::clean(text),
    };
    Ok(Expression {
        latex,
        has_i: false,
    })
}

/// The text after the last `=` of a chain of equal numbers (`3 + 2 = 5`). An error if a side is anything
/// else.
fn after_equation(text: &str) -> Option<Result<&str, ()>> {
    let is_relation = |text: &str| {
        text.contains(['<', '>'])
            || text.contains(r"\ne")
            || text.contains(r"\le")
            || text.contains(r"\ge")
    };
    let (sides, last) = text.rsplit_once('=')?;
    let last = last.trim();
    if is_relation(text) {
        return Some(Err(()));
    }
    let Some(value) = numeral::whole(last) else {
        return Some(Err(()));
    };
    let are_same = sides.split('=').all(|side| {
        numeral::whole(side.trim()).is_some_and(|side| numeral::same(&side, &value) == Some(true))
    });
    Some(if are_same { Ok(last) } else { Err(()) })
}
