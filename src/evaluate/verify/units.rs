//! Text before or after a number: units, percent signs, currencies, and counted nouns.

/// The unit of a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unit {
    None,
    Percent,
    Degree,
    /// A canonical name, see [`canonical`].
    Named(String),
    /// A single letter outside `\text{…}`: a unit or a variable.
    Letter(char),
}

/// A known unit. Units of the same dimension convert into each other; the factor is above / below.
struct Known {
    name: &'static str,
    dimension: u8,
    above: u64,
    below: u64,
    spellings: &'static [&'static str],
}

const fn known(
    name: &'static str,
    dimension: u8,
    (above, below): (u64, u64),
    spellings: &'static [&'static str],
) -> Known {
    Known {
        name,
        dimension,
        above,
        below,
        spellings,
    }
}

const LENGTH: u8 = 1;
const MASS: u8 = 2;
const TIME: u8 = 3;
const MONEY: u8 = 4;
const VOLUME: u8 = 5;
/// Units that do not convert.
const OTHER: u8 = 0;

const KNOWN: &[Known] = &[
    known("mm", LENGTH, (1, 1000), &["mm", "millimeter", "millimetre"]),
    known("cm", LENGTH, (1, 100), &["cm", "centimeter", "centimetre"]),
    known("dm", LENGTH, (1, 10), &["dm", "decimeter", "decimetre"]),
    known("m", LENGTH, (1, 1), &["m", "meter", "metre"]),
    known("km", LENGTH, (1000, 1), &["km", "kilometer", "kilometre"]),
    known("in", LENGTH, (254, 10_000), &["in", "inch", "inches"]),
    known("ft", LENGTH, (3048, 10_000), &["ft", "foot", "feet"]),
    known("yd", LENGTH, (9144, 10_000), &["yd", "yard"]),
    known("mi", LENGTH, (1_609_344, 1000), &["mi", "mile"]),
    known("mg", MASS, (1, 1000), &["mg", "milligram"]),
    known("g", MASS, (1, 1), &["g", "gram", "gm"]),
    known("kg", MASS, (1000, 1), &["kg", "kilogram"]),
    known("ms", TIME, (1, 1000), &["ms", "millisecond"]),
    known("s", TIME, (1, 1), &["s", "sec", "second"]),
    known("min", TIME, (60, 1), &["min", "minute"]),
    known("h", TIME, (3600, 1), &["h", "hr", "hour"]),
    known("day", TIME, (86_400, 1), &["d", "day"]),
    known("week", TIME, (604_800, 1), &["week", "wk"]),
    known("cent", MONEY, (1, 100), &["cent", "¢"]),
    known("$", MONEY, (1, 1), &["$", "dollar", "usd"]),
    known("ml", VOLUME, (1, 1000), &["ml", "milliliter", "millilitre"]),
    known("l", VOLUME, (1, 1), &["l", "liter", "litre"]),
    known("€", OTHER, (1, 1), &["€", "euro", "eur"]),
    known("£", OTHER, (1, 1), &["£", "gbp"]),
    known("lb", OTHER, (1, 1), &["lb", "lbs"]),
    // Money or mass, so distinct from both.
    known("pound", OTHER, (1, 1), &["pound"]),
    known("¥", OTHER, (1, 1), &["¥", "yen"]),
    known("₹", OTHER, (1, 1), &["₹", "rupee", "rs"]),
    known("oz", OTHER, (1, 1), &["oz", "ounce"]),
    known("gallon", OTHER, (1, 1), &["gal", "gallon"]),
    known("month", OTHER, (1, 1), &["month"]),
    known("year", OTHER, (1, 1), &["yr", "year"]),
    known("radian", OTHER, (1, 1), &["rad", "radian"]),
    known("celsius", OTHER, (1, 1), &["celsius", "°c"]),
    known("fahrenheit", OTHER, (1, 1), &["fahrenheit", "°f"]),
    known("mph", OTHER, (1, 1), &["mph"]),
    known("km/h", OTHER, (1, 1), &["kmh", "kph", "kmph"]),
    known("ton", OTHER, (1, 1), &["ton", "tonne"]),
    known("acre", OTHER, (1, 1), &["acre"]),
    known("hectare", OTHER, (1, 1), &["hectare", "ha"]),
    known("newton", OTHER, (1, 1), &["newton"]),
    known("joule", OTHER, (1, 1), &["joule"]),
    known("watt", OTHER, (1, 1), &["watt"]),
    known("ohm", OTHER, (1, 1), &["ohm"]),
    known("volt", OTHER, (1, 1), &["volt"]),
    known("hz", OTHER, (1, 1), &["hz", "hertz"]),
    known("mol", OTHER, (1, 1), &["mol", "mole"]),
    known("unit", OTHER, (1, 1), &["unit"]),
];

/// Counted nouns, which do not change the number.
const NOUNS: &[&str] = &[
    "answer",
    "apple",
    "arrangement",
    "arrow",
    "bag",
    "ball",
    "bead",
    "bean",
    "bird",
    "block",
    "book",
    "bottle",
    "box",
    "boxes",
    "boy",
    "brick",
    "bus",
    "buses",
    "cake",
    "candy",
    "candies",
    "car",
    "card",
    "case",
    "cat",
    "cell",
    "chair",
    "child",
    "children",
    "chocolate",
    "choice",
    "class",
    "classes",
    "coin",
    "color",
    "combination",
    "cookie",
    "copies",
    "copy",
    "cow",
    "crayon",
    "cube",
    "cup",
    "customer",
    "diagonal",
    "dice",
    "die",
    "digit",
    "dog",
    "edge",
    "egg",
    "element",
    "employee",
    "face",
    "factor",
    "fish",
    "flower",
    "friend",
    "fruit",
    "game",
    "girl",
    "goal",
    "group",
    "guest",
    "handshake",
    "hat",
    "horse",
    "house",
    "integer",
    "item",
    "jar",
    "kid",
    "lap",
    "leaf",
    "leaves",
    "letter",
    "line",
    "marble",
    "match",
    "matches",
    "meal",
    "member",
    "men",
    "man",
    "move",
    "number",
    "orange",
    "outcome",
    "package",
    "page",
    "pair",
    "passenger",
    "path",
    "patient",
    "pen",
    "pencil",
    "people",
    "permutation",
    "person",
    "persons",
    "phone",
    "picture",
    "piece",
    "pizza",
    "place",
    "plant",
    "player",
    "point",
    "possibilities",
    "possibility",
    "prime",
    "problem",
    "question",
    "rectangle",
    "ride",
    "room",
    "root",
    "rose",
    "round",
    "row",
    "seat",
    "sheep",
    "shirt",
    "side",
    "slice",
    "solution",
    "square",
    "stamp",
    "step",
    "stick",
    "sticker",
    "stone",
    "student",
    "subset",
    "sweet",
    "symbol",
    "table",
    "teacher",
    "team",
    "ticket",
    "tile",
    "time",
    "toy",
    "tree",
    "trial",
    "triangle",
    "trip",
    "turn",
    "value",
    "vertex",
    "vertices",
    "visitor",
    "vote",
    "way",
    "win",
    "woman",
    "women",
    "word",
    "worker",
    "zero",
    "zeros",
    "zeroes",
];

/// Filler words, which do not change the number either.
const FILLERS: &[&str] = &[
    "of",
    "the",
    "a",
    "an",
    "per",
    "different",
    "distinct",
    "total",
    "whole",
];

/// Words after a number that multiply it.
const MULTIPLIERS: &[(&str, u64)] = &[
    ("hundred", 100),
    ("thousand", 1000),
    ("million", 1_000_000),
    ("billion", 1_000_000_000),
    ("trillion", 1_000_000_000_000),
];

/// Parses the text after a number: a factor and a unit. `None` if some of the text is unknown.
pub(super) fn behind(text: &str) -> Option<(u64, Unit)> {
    let mut text = text.trim();
    let (inner, mut in_text) = match unwrapped(text) {
        Some(inner) => (inner, true),
        None => (text.to_owned(), false),
    };
    // `5\text{.}` ends a sentence, `0.333...` is continued.
    let inner = inner.trim();
    let mut inner = if inner == "." { "" } else { inner };
    let mut factor = 1;
    for (word, by) in MULTIPLIERS {
        if let Some(rest) = inner.strip_prefix(word)
            && !rest.starts_with(|c: char| c.is_alphabetic())
        {
            factor = *by;
            inner = rest.trim();
            in_text = true;
        }
    }
    if inner.len() > 60 {
        return None;
    }
    let owned = inner.to_owned();
    text = owned.as_str();
    if text.is_empty() {
        return Some((factor, Unit::None));
    }
    let lower = text.to_lowercase();
    match lower.as_str() {
        r"\%" | "percent" | "per cent" | "pct" | "percentage" => {
            return Some((factor, Unit::Percent));
        }
        r"^\circ" | r"^{\circ}" | "degree" | "degrees" | "deg" => {
            return Some((factor, Unit::Degree));
        }
        "^{th}" | "^{st}" | "^{nd}" | "^{rd}" => return Some((factor, Unit::None)),
        r"^\circ c" | r"^{\circ} c" | r"^{\circ}c" => {
            return Some((factor, Unit::Named("celsius".to_owned())));
        }
        r"^\circ f" | r"^{\circ} f" | r"^{\circ}f" => {
            return Some((factor, Unit::Named("fahrenheit".to_owned())));
        }
        _ => {}
    }
    let mut chars = text.chars();
    if let (Some(letter), None, false) = (chars.next(), chars.next(), in_text)
        && letter.is_ascii_alphabetic()
    {
        return Some((factor, Unit::Letter(letter)));
    }
    Some((factor, Unit::Named(canonical(&lower)?)))
}

/// The currency before a number, and the remaining text.
pub(super) fn currency(text: &str) -> (Option<Unit>, &str) {
    for sign in ["$", "€", "£", "¥", "₹"] {
        if let Some(rest) = text.strip_prefix(sign) {
            return (Some(Unit::Named(sign.to_owned())), rest.trim_start());
        }
    }
    for (word, sign) in [("US$", "$"), ("USD ", "$"), ("EUR ", "€"), ("GBP ", "£")] {
        if let Some(rest) = text.strip_prefix(word) {
            return (Some(Unit::Named(sign.to_owned())), rest.trim_start());
        }
    }
    for words in [r"\text{Rs.}", r"\text{Rs}", "Rs."] {
        if let Some(rest) = text.strip_prefix(words) {
            return (Some(Unit::Named("₹".to_owned())), rest.trim_start());
        }
    }
    (None, text)
}

/// Splits an expression from the unit after it, which is in `\text{…}`, or a word of at least two letters
/// after a space or a brace.
pub(super) fn split(text: &str) -> (&str, Unit) {
    let (text, money) = match currency(text) {
        (Some(unit), rest) => (rest, Some(unit)),
        (None, _) => (text, None),
    };
    let otherwise = money.unwrap_or(Unit::None);
    let exponent = ["^{2}", "^{3}", "^2", "^3"]
        .iter()
        .find(|sign| text.ends_with(**sign));
    let base = &text[..text.len() - exponent.map_or(0, |sign| sign.len())];
    let start = if base.ends_with('}') {
        base.rfind(r"\text")
    } else {
        let letters = base.len()
            - base
                .trim_end_matches(|c: char| c.is_ascii_alphabetic())
                .len();
        let at = base.len() - letters;
        let is_parted = base[..at].ends_with([' ', '}', ')']) && letters >= 2;
        is_parted.then_some(at)
    };
    let Some(start) = start.filter(|start| *start > 0) else {
        return (text, otherwise);
    };
    match behind(&text[start..]) {
        Some((1, unit @ Unit::Named(_))) => (text[..start].trim_end(), unit),
        _ => (text, otherwise),
    }
}

/// The content of `\text{…}`, also of several in a row, possibly with an exponent.
fn unwrapped(text: &str) -> Option<String> {
    if !text.contains(r"\text") {
        return None;
    }
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(r"\text") {
        plain.push_str(&rest[..at]);
        rest = rest[at + r"\text".len()..].trim_start().strip_prefix('{')?;
        let end = rest.find('}')?;
        if rest[..end].contains('{') {
            return None;
        }
        plain.push_str(&rest[..end]);
        rest = &rest[end + 1..];
    }
    plain.push_str(rest);
    Some(plain)
}

/// The canonical name of a unit or a counted noun: `square centimeters` and `cm^2` are the same. `None` if
/// a word is unknown.
fn canonical(lower: &str) -> Option<String> {
    let lower = lower.replace("^{2}", "^2").replace("^{3}", "^3");
    let parted = lower
        .replace('/', " / ")
        .replace(" per ", " / ")
        .replace(r"\cdot", " ");
    let mut names: Vec<String> = Vec::new();
    let mut exponent = None;
    for word in parted.split([' ', '-']).filter(|word| !word.is_empty()) {
        let word = word.trim_end_matches(['.', ',']);
        match word {
            "square" | "sq" => {
                exponent = Some(2);
                continue;
            }
            "cubic" | "cu" => {
                exponent = Some(3);
                continue;
            }
            "squared" | "cubed" => {
                let power = if word == "squared" { 2 } else { 3 };
                *names.last_mut()? += &format!("^{power}");
                continue;
            }
            "/" => {
                names.push("/".to_owned());
                continue;
            }
            "st" | "nd" | "rd" | "th" if names.is_empty() => continue,
            word if FILLERS.contains(&word) => continue,
            _ => {}
        }
        let (base, own) = match word.split_once('^') {
            Some((base, "2")) => (base, Some(2)),
            Some((base, "3")) => (base, Some(3)),
            Some(_) => return None,
            None => (word, None),
        };
        let name = match find(base) {
            Some(known) => known.name.to_owned(),
            None => noun(base)?,
        };
        let power = own.or(exponent.take());
        names.push(power.map_or(name.clone(), |power| format!("{name}^{power}")));
    }
    if let Some(power) = exponent {
        // `12 squares` is a count; `12 square` is incomplete.
        names.push(format!("unit^{power}"));
    }
    Some(names.join(" "))
}

fn find(word: &str) -> Option<&'static Known> {
    let is = |spelling: &&str| {
        *spelling == word || spelling.len() > 2 && word.strip_suffix('s') == Some(spelling)
    };
    KNOWN.iter().find(|known| known.spellings.iter().any(&is))
}

fn noun(word: &str) -> Option<String> {
    let singular = word.strip_suffix('s').unwrap_or(word);
    (NOUNS.iter())
        .find(|noun| **noun == word || **noun == singular)
        .map(|noun| (*noun).to_owned())
}

/// The factor (above, below) that converts `one` to `other`, if they have the same dimension.
pub(super) fn conversion(one: &str, other: &str) -> Option<(u64, u64)> {
    let by_name = |name: &str| KNOWN.iter().find(|known| known.name == name);
    let (one, other) = (by_name(one)?, by_name(other)?);
    let same = one.dimension == other.dimension && one.dimension != OTHER;
    same.then_some((one.above * other.below, one.below * other.above))
}

/// The other units of the same dimension as `name`.
pub(super) fn alike(name: &str) -> impl Iterator<Item = &'static str> {
    let dimension = (KNOWN.iter().find(|known| known.name == name))
        .map(|known| known.dimension)
        .filter(|dimension| *dimension != OTHER);
    let name = name.to_owned();
    KNOWN
        .iter()
        .filter(move |known| Some(known.dimension) == dimension && known.name != name)
        .map(|known| known.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Option<(u64, Unit)> {
        Some((1, Unit::Named(name.to_owned())))
    }

    #[test]
    fn units_have_a_canonical_name() {
        let cases = [
            (r"\text{ cm}", named("cm")),
            (" cm", named("cm")),
            ("centimeters", named("cm")),
            (r"\text{cm}^2", named("cm^2")),
            (r"\text{ square centimetres}", named("cm^2")),
            (r"\text{cm}^{3}", named("cm^3")),
            ("sq. ft", named("ft^2")),
            (r"\text{ square units}", named("unit^2")),
            ("km/h", named("km / h")),
            (r"\text{ miles per hour}", named("mi / h")),
            ("dollars", named("$")),
            (r"\text{ apples}", named("apple")),
            (r"\%", Some((1, Unit::Percent))),
            ("percent", Some((1, Unit::Percent))),
            (r"^\circ", Some((1, Unit::Degree))),
            (r"^\circ \text{C}", named("celsius")),
            ("million", Some((1_000_000, Unit::None))),
            (
                r"\text{ million dollars}",
                Some((1_000_000, Unit::Named("$".to_owned()))),
            ),
            ("m", Some((1, Unit::Letter('m')))),
            (r"\text{ m}", named("m")),
            ("", Some((1, Unit::None))),
            (r"\text{ or more}", None),
            ("+ x", None),
            (r"\pmod 7", None),
            ("frobs", None),
        ];
        for (text, unit) in cases {
            assert_eq!(behind(text), unit, "{text}");
        }
    }

    #[test]
    fn units_of_the_same_dimension_convert() {
        assert_eq!(conversion("mm", "cm"), Some((100, 1000)));
        assert_eq!(conversion("h", "min"), Some((3600, 60)));
        assert_eq!(conversion("cm", "kg"), None);
        assert_eq!(conversion("€", "£"), None);
    }

    #[test]
    fn a_unit_is_split_from_an_expression() {
        let cm = Unit::Named("cm".to_owned());
        assert_eq!(split(r"2\sqrt{3} \text{ cm}"), (r"2\sqrt{3}", cm.clone()));
        assert_eq!(split(r"2\sqrt{3} cm"), (r"2\sqrt{3}", cm));
        assert_eq!(split(r"x \text{ or } y"), (r"x \text{ or } y", Unit::None));
        assert_eq!(split("xy"), ("xy", Unit::None));
        assert_eq!(split(r"\text{no}"), (r"\text{no}", Unit::None));
    }
}
