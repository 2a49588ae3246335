//! Normalizes text that has several spellings with the same meaning: Unicode characters, spaces, delimiters
//! and LaTeX commands.

/// Commands and their normalized spelling. Empty removes the command.
const COMMANDS: &[(&str, &str)] = &[
    ("dfrac", r"\frac"),
    ("tfrac", r"\frac"),
    ("cfrac", r"\frac"),
    ("quad", " "),
    ("qquad", " "),
    ("enspace", " "),
    ("thinspace", " "),
    ("medspace", " "),
    ("thickspace", " "),
    ("nobreakspace", " "),
    ("space", " "),
    ("left", ""),
    ("right", ""),
    ("big", ""),
    ("Big", ""),
    ("bigl", ""),
    ("bigr", ""),
    ("Bigl", ""),
    ("Bigr", ""),
    ("bigg", ""),
    ("Bigg", ""),
    ("biggl", ""),
    ("biggr", ""),
    ("displaystyle", ""),
    ("textstyle", ""),
    ("scriptstyle", ""),
    ("limits", ""),
    ("nolimits", ""),
    ("strut", ""),
    ("bm", r"\text"),
    ("boldsymbol", r"\text"),
    ("mathbf", r"\text"),
    ("mathit", r"\text"),
    ("mathrm", r"\text"),
    ("mathsf", r"\text"),
    ("mathtt", r"\text"),
    ("mathnormal", r"\text"),
    ("mbox", r"\text"),
    ("hbox", r"\text"),
    ("operatorname", r"\text"),
    ("textbf", r"\text"),
    ("textit", r"\text"),
    ("textrm", r"\text"),
    ("textsf", r"\text"),
    ("texttt", r"\text"),
    ("textnormal", r"\text"),
    ("emph", r"\text"),
    ("unit", r"\text"),
    ("geq", r"\ge"),
    ("geqslant", r"\ge"),
    ("leq", r"\le"),
    ("leqslant", r"\le"),
    ("gt", ">"),
    ("lt", "<"),
    ("neq", r"\ne"),
    ("lbrace", r"\{"),
    ("rbrace", r"\}"),
    ("lbrack", "["),
    ("rbrack", "]"),
    ("lparen", "("),
    ("rparen", ")"),
    ("lvert", "|"),
    ("rvert", "|"),
    ("vert", "|"),
    ("ast", "*"),
    ("degree", r"^\circ"),
    ("textdegree", r"^\circ"),
    ("varnothing", r"\emptyset"),
    ("dots", r"\ldots"),
    ("cdots", r"\ldots"),
    ("dotsc", r"\ldots"),
    ("dotsb", r"\ldots"),
    ("land", r"\wedge"),
    ("colon", ":"),
    ("lnot", r"\neg"),
    ("dollar", "$"),
    ("textdollar", "$"),
    ("euro", "€"),
    ("pounds", "£"),
];

/// Non-ASCII characters and their LaTeX.
const SIGNS: &[(char, &str)] = &[
    ('¼', r"\frac{1}{4}"),
    ('½', r"\frac{1}{2}"),
    ('¾', r"\frac{3}{4}"),
    ('⅐', r"\frac{1}{7}"),
    ('⅑', r"\frac{1}{9}"),
    ('⅒', r"\frac{1}{10}"),
    ('⅓', r"\frac{1}{3}"),
    ('⅔', r"\frac{2}{3}"),
    ('⅕', r"\frac{1}{5}"),
    ('⅖', r"\frac{2}{5}"),
    ('⅗', r"\frac{3}{5}"),
    ('⅘', r"\frac{4}{5}"),
    ('⅙', r"\frac{1}{6}"),
    ('⅚', r"\frac{5}{6}"),
    ('⅛', r"\frac{1}{8}"),
    ('⅜', r"\frac{3}{8}"),
    ('⅝', r"\frac{5}{8}"),
    ('⅞', r"\frac{7}{8}"),
    ('⁄', "/"),
    ('∕', "/"),
    ('×', r"\times"),
    ('✕', r"\times"),
    ('⨯', r"\times"),
    ('·', r"\cdot"),
    ('⋅', r"\cdot"),
    ('∙', r"\cdot"),
    ('÷', r"\div"),
    ('∗', "*"),
    ('√', r"\sqrt"),
    ('∞', r"\infty"),
    ('≤', r"\le"),
    ('⩽', r"\le"),
    ('≥', r"\ge"),
    ('⩾', r"\ge"),
    ('≠', r"\ne"),
    ('±', r"\pm"),
    ('∓', r"\mp"),
    ('∪', r"\cup"),
    ('∩', r"\cap"),
    ('∈', r"\in"),
    ('∅', r"\emptyset"),
    ('ℝ', r"\mathbb{R}"),
    ('ℤ', r"\mathbb{Z}"),
    ('ℕ', r"\mathbb{N}"),
    ('ℚ', r"\mathbb{Q}"),
    ('ℂ', r"\mathbb{C}"),
    ('°', r"^\circ"),
    ('˚', r"^\circ"),
    ('º', r"^\circ"),
    ('…', r"\ldots"),
    ('⋯', r"\ldots"),
    ('≡', r"\equiv"),
    ('≈', r"\approx"),
    ('α', r"\alpha"),
    ('β', r"\beta"),
    ('γ', r"\gamma"),
    ('δ', r"\delta"),
    ('θ', r"\theta"),
    ('λ', r"\lambda"),
    ('μ', r"\mu"),
    ('π', r"\pi"),
    ('ρ', r"\rho"),
    ('σ', r"\sigma"),
    ('φ', r"\phi"),
    ('ω', r"\omega"),
    ('′', "'"),
    ('’', "'"),
    ('‘', "'"),
    ('“', "\""),
    ('”', "\""),
    ('٫', "."),
    ('٬', ","),
    ('，', ","),
    ('、', ","),
    ('。', "."),
    ('％', r"\%"),
    ('﹪', r"\%"),
    ('٪', r"\%"),
];

/// The code points of digit zero in other scripts; the other nine digits follow each (Unicode category Nd).
const ZEROS: [u32; 17] = [
    0x0660, 0x06F0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66, 0x0E50,
    0x0ED0, 0x1D7CE, 0x1D7D8, 0x1D7E2, 0x1D7F6,
];

const SUPERSCRIPTS: &str = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const SUBSCRIPTS: &str = "₀₁₂₃₄₅₆₇₈₉";

/// Normalizes a text without dropping anything that has a meaning.
pub(super) fn normal(text: &str) -> String {
    let mut text = undressed(text);
    let signs = simple_signs(text);
    let spelled = commands(&signs);
    let dollars = without_dollars(&spelled);
    let mut normal = collapsed(&dollars).replace(r"\circ{}", r"\circ");
    // The content of the delimiters may itself be delimited.
    loop {
        text = undressed(&normal);
        if text.len() == normal.len() {
            return normal;
        }
        normal = text.to_owned();
    }
}

/// Removes all spaces except those between letters or digits.
pub(super) fn squeezed(normal: &str) -> String {
    let mut squeezed = String::with_capacity(normal.len());
    let mut chars = normal.chars().peekable();
    while let Some(c) = chars.next() {
        let between = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        let means_something = || between(squeezed.chars().next_back());
        if c != ' ' || means_something() && between(chars.peek().copied()) {
            squeezed.push(c);
        }
    }
    squeezed
}

/// Removes formula delimiters, Markdown emphasis, and a final full stop.
fn undressed(text: &str) -> &str {
    const PAIRS: [(&str, &str); 6] = [
        ("$$", "$$"),
        ("$", "$"),
        (r"\(", r"\)"),
        (r"\[", r"\]"),
        ("**", "**"),
        ("`", "`"),
    ];
    let mut text = text.trim();
    loop {
        let before = text;
        if let Some(rest) = text.strip_suffix(['.', ';', '。'])
            && !rest.ends_with('.')
            && !rest.is_empty()
        {
            text = rest.trim_end();
        }
        for (open, close) in PAIRS {
            let inner = (text.strip_prefix(open)).and_then(|text| text.strip_suffix(close));
            if let Some(inner) = inner.filter(|inner| !inner.is_empty() && !inner.contains(open)) {
                text = inner.trim();
            }
        }
        if text.len() == before.len() {
            return text;
        }
    }
}

/// Unifies spaces, digits, minus signs and other characters, as ASCII where possible.
fn simple_signs(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        // Fullwidth characters and digits of other scripts.
        let c = match c {
            '\u{ff01}'..='\u{ff5e}' => char::from_u32(c as u32 - 0xfee0).unwrap_or(c),
            _ => ZEROS
                .iter()
                .find_map(|zero| digit_of(c, *zero))
                .unwrap_or(c),
        };
        if let Some(place) = SUPERSCRIPTS.chars().position(|one| one == c) {
            push_script(&mut out, '^', place, &mut chars, SUPERSCRIPTS);
            continue;
        }
        if let Some(place) = SUBSCRIPTS.chars().position(|one| one == c) {
            push_script(&mut out, '_', place, &mut chars, SUBSCRIPTS);
            continue;
        }
        match c {
            '\u{2212}' | '\u{fe63}' | '\u{2010}' | '\u{2011}' => out.push('-'),
            // A dash is a minus sign if nothing is to its left; between numbers it may be a range.
            '\u{2012}'..='\u{2015}' if begins_a_number(&out) => out.push('-'),
            '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}' | '\u{ad}' => {}
            // Superscript signs of an exponent.
            '⁻' if chars
                .peek()
                .is_some_and(|next| SUPERSCRIPTS.contains(*next)) =>
            {
                out.push_str("^{-");
                push_digits(&mut out, &mut chars, SUPERSCRIPTS);
                out.push('}');
            }
            // A combining overline marks a repeating digit.
            '\u{304}' | '\u{305}' => push_overline(&mut out, c),
            c if c.is_whitespace() => out.push(' '),
            '%' if !out.ends_with('\\') => out.push_str(r"\%"),
            c if c.is_ascii() => out.push(c),
            c => match SIGNS.iter().find(|(sign, _)| *sign == c) {
                Some((_, latex)) => {
                    out.push_str(latex);
                    let is_command = latex.ends_with(|c: char| c.is_ascii_alphabetic());
                    if is_command && chars.peek().is_some_and(char::is_ascii_alphabetic) {
                        out.push(' ');
                    }
                }
                None => out.push(c),
            },
        }
    }
    out
}

fn digit_of(c: char, zero: u32) -> Option<char> {
    let digit = (c as u32).checked_sub(zero).filter(|digit| *digit < 10)?;
    char::from_digit(digit, 10)
}

fn begins_a_number(before: &str) -> bool {
    let last = before.trim_end().chars().next_back();
    last.is_none_or(|last| "([{=,;<>^$".contains(last))
}

/// Puts the last digit under an overline, merging it with preceding overlined digits.
fn push_overline(out: &mut String, mark: char) {
    const OPENING: &str = r"\overline{";
    let Some(digit) = out.chars().next_back().filter(char::is_ascii_digit) else {
        out.push(mark);
        return;
    };
    out.pop();
    let goes_on = out.ends_with('}')
        && out.rfind(OPENING).is_some_and(|at| {
            let inner = &out[at + OPENING.len()..out.len() - 1];
            inner.bytes().all(|byte| byte.is_ascii_digit())
        });
    if goes_on {
        out.pop();
    } else {
        out.push_str(OPENING);
    }
    out.push(digit);
    out.push('}');
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn push_script(out: &mut String, sign: char, first: usize, chars: &mut Chars, digits: &str) {
    out.push(sign);
    out.push('{');
    out.extend(char::from_digit(first as u32, 10));
    push_digits(out, chars, digits);
    out.push('}');
}

fn push_digits(out: &mut String, chars: &mut Chars, digits: &str) {
    while let Some(place) = chars
        .peek()
        .and_then(|next| digits.chars().position(|one| one == *next))
    {
        out.extend(char::from_digit(place as u32, 10));
        chars.next();
    }
}

/// Normalizes the commands.
fn commands(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let length = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        if length == 0 {
            let Some(sign) = rest.chars().next() else {
                out.push('\\');
                break;
            };
            rest = &rest[sign.len_utf8()..];
            match sign {
                ',' | ';' | ':' | ' ' | '>' | '/' => out.push(' '),
                '!' => {}
                // An escaped dollar is a currency sign; an unescaped one is a delimiter.
                '$' => out.push('\u{1}'),
                '&' | '#' => out.push(sign),
                sign => out.extend(['\\', sign]),
            }
            continue;
        }
        let name = &rest[..length];
        rest = &rest[length..];
        let spelled = COMMANDS.iter().find(|(command, _)| *command == name);
        match spelled {
            Some((_, spelled)) => {
                out.push_str(spelled);
                let needs_a_space = spelled.starts_with('\\')
                    && rest.starts_with(|c: char| c.is_ascii_alphabetic());
                if needs_a_space {
                    out.push(' ');
                }
            }
            None => {
                out.push('\\');
                out.push_str(name);
            }
        }
    }
    out.push_str(rest);
    out.replace('~', " ")
}

/// Removes formula delimiters and restores currency signs.
fn without_dollars(text: &str) -> String {
    let delimiters = text.bytes().filter(|byte| *byte == b'$').count();
    let text = match delimiters % 2 {
        0 => text.replace('$', ""),
        _ => text.to_owned(),
    };
    text.replace('\u{1}', "$")
}

fn collapsed(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.trim().chars() {
        if c != ' ' || !out.ends_with(' ') {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equivalent_spellings_are_normalized() {
        let cases = [
            ("$4$.", "4"),
            (r"\(\dfrac{1}{2}\)", r"\frac{1}{2}"),
            ("5\u{202f}000", "5 000"),
            (r"5\,000", "5 000"),
            (r"5\;000", "5 000"),
            ("5 \u{a0} 000", "5 000"),
            ("−5", "-5"),
            ("–5", "-5"),
            ("3–5", "3–5"),
            ("½", r"\frac{1}{2}"),
            ("30°", r"30^\circ"),
            (r"30\degree", r"30^\circ"),
            ("12%", r"12\%"),
            (r"12\%", r"12\%"),
            ("x²", "x^{2}"),
            ("10⁻³", "10^{-3}"),
            ("πr", r"\pi r"),
            ("１２", "12"),
            ("٣", "3"),
            (r"\left(1, 2\right]", "(1, 2]"),
            (r"\mathrm{cm}", r"\text{cm}"),
            (r"x \geqslant 2", r"x \ge 2"),
            (r"\$5", "$5"),
            ("$5", "$5"),
            (r"$5$ cm", "5 cm"),
            ("**5**", "5"),
            ("$$x$$", "x"),
            ("1, 2, ...", "1, 2, ..."),
            (r"\", r"\"),
            ("", ""),
        ];
        for (text, expected) in cases {
            assert_eq!(normal(text), expected, "{text}");
        }
    }

    #[test]
    fn squeezing_keeps_spaces_between_numbers_and_words() {
        assert_eq!(squeezed("x + 1"), "x+1");
        assert_eq!(squeezed("1 2"), "1 2");
        assert_eq!(squeezed(r"\pi r"), r"\pi r");
        assert_eq!(squeezed("( 1, 2 )"), "(1,2)");
    }
}
