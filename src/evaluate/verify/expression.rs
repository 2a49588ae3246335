//! Prepares expressions for the library. Only unambiguous expressions are handed over.
//!
//! math-verify drops input that it does not know and misreads some of it (`y'` as `y`, `1011_2` as 1011, a
//! word as a product, `2t` with a dropped unit). So an expression is handed over only if everything in it is
//! known here. Its numbers are written as fractions, which the library does not round.

use num_traits::{Signed, ToPrimitive};

use super::numeral::{self, Value};

/// An expression in unambiguous LaTeX.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Expression {
    pub(super) latex: String,
    /// Whether `i` occurs, so that numbers may be complex.
    pub(super) has_i: bool,
}

/// Maximum nesting depth of brackets.
const DEEPEST: usize = 24;

/// The largest exponent of a number, and the largest argument of a factorial, given to the library.
const LARGEST: u32 = 1000;

const FUNCTIONS: [&str; 18] = [
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh",
    "ln", "log", "exp", "arccot", "arcsec", "arccsc",
];

const SYMBOLS: [&str; 34] = [
    "pi",
    "infty",
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "varepsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "lambda",
    "mu",
    "nu",
    "xi",
    "rho",
    "sigma",
    "tau",
    "phi",
    "varphi",
    "chi",
    "psi",
    "omega",
    "Gamma",
    "Delta",
    "Theta",
    "Lambda",
    "Sigma",
    "Phi",
    "Psi",
    "Omega",
    "emptyset",
];

const OPERATORS: [&str; 9] = [
    r"\cdot ",
    r"\times ",
    r"\div ",
    r"\le ",
    r"\ge ",
    r"\ne ",
    r"\cup ",
    r"\cap ",
    r"\setminus ",
];

/// The imaginary unit in the library's notation.
const IMAGINARY: &str = "I";

/// Short words that are not products of letters.
const WORDS: [&str; 40] = [
    "a", "am", "an", "and", "any", "are", "as", "at", "be", "but", "by", "do", "for", "go", "he",
    "if", "in", "is", "it", "me", "my", "no", "not", "of", "off", "on", "one", "or", "out", "pm",
    "so", "the", "to", "two", "up", "us", "we", "ten", "six", "all",
];

/// Parses an expression (see [`super::normal`]) and writes it for the library.
///
/// # Errors
/// Describes what is unknown or ambiguous.
pub(super) fn clean(text: &str) -> Result<Expression, String> {
    let signs = |c: char| c.is_ascii_digit() || "+-*/^=<>|!\\".contains(c);
    cleaned(text, text.contains(signs))
}

/// Like [`clean`], for letters that are known to form a product.
///
/// # Errors
/// See [`clean`].
pub(super) fn clean_product(text: &str) -> Result<Expression, String> {
    cleaned(text, true)
}

fn cleaned(text: &str, has_mathematics: bool) -> Result<Expression, String> {
    let mut reader = Reader {
        rest: text.trim(),
        depth: 0,
        has_i: false,
        has_mathematics,
    };
    let nodes = reader.nodes()?;
    if !reader.rest.is_empty() {
        return Err("unmatched closing bracket".to_owned());
    }
    Ok(Expression {
        latex: latex(&nodes)?,
        has_i: reader.has_i,
    })
}

#[derive(Debug)]
enum Node {
    /// Digits before and after the point.
    Number(String, String),
    /// A letter or a symbol, as LaTeX.
    Symbol(String),
    Function(String),
    Operator(&'static str),
    /// A command with its arguments: `\frac`, `\sqrt`, `\binom`.
    Command(&'static str, Vec<Vec<Node>>),
    /// Degree and radicand.
    Root(Vec<Node>, Vec<Node>),
    Group(&'static str, Vec<Node>, &'static str),
    Power(Vec<Node>),
    Index(String),
    Degree,
    Factorial,
    Bar,
}

impl Node {
    fn is_operand(&self) -> bool {
        use Node::{Command, Group, Number, Root, Symbol};
        matches!(
            self,
            Number(..) | Symbol(_) | Command(..) | Root(..) | Group(..)
        )
    }

    /// Whether it applies to what precedes it.
    fn is_script(&self) -> bool {
        matches!(
            self,
            Self::Power(_) | Self::Index(_) | Self::Degree | Self::Factorial
        )
    }
}

struct Reader<'a> {
    rest: &'a str,
    depth: usize,
    has_i: bool,
    /// Whether there is more than letters. If so, adjacent letters are a product.
    has_mathematics: bool,
}

impl<'a> Reader<'a> {
    fn take(&mut self, what: &str) -> bool {
        match self.rest.strip_prefix(what) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn while_some(&mut self, is: impl Fn(&u8) -> bool) -> &'a str {
        let length = self.rest.bytes().take_while(is).count();
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }

    /// Everything up to a closing bracket or the end.
    fn nodes(&mut self) -> Result<Vec<Node>, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("nested too deeply".to_owned());
        }
        let mut nodes = Vec::new();
        loop {
            self.spaces();
            let closes = self.rest.starts_with([')', ']', '}'])
                || self.rest.starts_with(r"\}")
                || self.rest.starts_with(r"\rfloor")
                || self.rest.starts_with(r"\rceil");
            if self.rest.is_empty() || closes {
                break;
            }
            self.node(&mut nodes)?;
        }
        self.depth -= 1;
        Ok(nodes)
    }

    fn node(&mut self, nodes: &mut Vec<Node>) -> Result<(), String> {
        let first = self.rest.chars().next().unwrap_or(' ');
        match first {
            '0'..='9' | '.' => nodes.push(self.number()?),
            'a'..='z' | 'A'..='Z' => return self.letters(nodes),
            '\\' => return self.command(nodes),
            '(' => nodes.push(self.group("(", "(", ")")?),
            '[' => nodes.push(self.group("[", "[", "]")?),
            '{' => nodes.push(self.group("{", "(", ")")?),
            '^' => {
                self.take("^");
                nodes.push(self.power()?);
            }
            '_' => {
                self.take("_");
                nodes.push(self.index(nodes.last())?);
            }
            '|' if !self.rest.starts_with("||") => {
                self.take("|");
                nodes.push(Node::Bar);
            }
            '*' if self.take("**") => nodes.push(self.power()?),
            '!' if !self.rest.starts_with("!!") => {
                self.take("!");
                nodes.push(Node::Factorial);
            }
            other => {
                let operators = [
                    ('+', "+"),
                    ('-', "-"),
                    ('*', r"\cdot "),
                    ('/', "/"),
                    ('=', "="),
                    ('<', "<"),
                    ('>', ">"),
                    (',', ","),
                ];
                let operator = operators.iter().find(|(sign, _)| *sign == other);
                let Some((_, operator)) = operator.filter(|_| other != ',' || self.depth > 1)
                else {
                    return Err(format!("unknown sign `{}`", other.escape_debug()));
                };
                self.rest = &self.rest[other.len_utf8()..];
                // Plain-text `<=` and `>=`.
                let operator = match (*operator, self.take_equals(operator)) {
                    ("<", true) => r"\le ",
                    (">", true) => r"\ge ",
                    (operator, _) => operator,
                };
                nodes.push(Node::Operator(operator));
            }
        }
        Ok(())
    }

    fn take_equals(&mut self, operator: &str) -> bool {
        (operator == "<" || operator == ">") && self.take("=")
    }

    fn number(&mut self) -> Result<Node, String> {
        let mut whole = self.while_some(u8::is_ascii_digit).to_owned();
        while self.rest.starts_with("{,}") && is_group(&self.rest[3..]) {
            whole.push_str(&self.rest[3..6]);
            self.rest = &self.rest[6..];
        }
        while self.depth == 1 && self.rest.starts_with(',') && is_group(&self.rest[1..]) {
            whole.push_str(&self.rest[1..4]);
            self.rest = &self.rest[4..];
        }
        let mut part = "";
        if self.take(".") {
            part = self.while_some(u8::is_ascii_digit);
            if part.is_empty() {
                return Err("stray decimal point".to_owned());
            }
        }
        let next = self.rest.as_bytes();
        let is_scientific = matches!(next, [b'e' | b'E', b'0'..=b'9', ..]);
        if is_scientific || self.rest.starts_with('.') {
            return Err("malformed number".to_owned());
        }
        Ok(Node::Number(whole, part.to_owned()))
    }

    fn letters(&mut self, nodes: &mut Vec<Node>) -> Result<(), String> {
        let word = self.while_some(u8::is_ascii_alphabetic);
        if self.rest.starts_with('\'') {
            return Err("unsupported prime mark".to_owned());
        }
        if let Some(function) = FUNCTIONS.iter().find(|function| **function == word) {
            nodes.push(Node::Function((*function).to_owned()));
            return Ok(());
        }
        match word {
            "sqrt" => {
                let argument = self.argument()?;
                nodes.push(Node::Command("sqrt", vec![argument]));
                return Ok(());
            }
            "pi" => {
                nodes.push(Node::Symbol(r"\pi ".to_owned()));
                return Ok(());
            }
            "inf" | "infinity" | "oo" => {
                nodes.push(Node::Symbol(r"\infty ".to_owned()));
                return Ok(());
            }
            _ => {}
        }
        let is_product = word.len() == 1
            || word.len() <= 3
                && self.has_mathematics
                && !WORDS.contains(&word.to_lowercase().as_str());
        if !is_product {
            return Err(format!("`{word}` may be a word"));
        }
        for letter in word.chars() {
            nodes.push(self.letter(letter)?);
        }
        Ok(())
    }

    fn letter(&mut self, letter: char) -> Result<Node, String> {
        match letter {
            // The library takes it for the imaginary unit.
            'I' => return Err("`I` is not supported".to_owned()),
            'i' => {
                self.has_i = true;
                return Ok(Node::Symbol(IMAGINARY.to_owned()));
            }
            _ => {}
        }
        Ok(Node::Symbol(letter.to_string()))
    }

    fn command(&mut self, nodes: &mut Vec<Node>) -> Result<(), String> {
        if self.rest.starts_with(r"\{") {
            nodes.push(self.group(r"\{", r"\{", r"\}")?);
            return Ok(());
        }
        self.rest = &self.rest[1..];
        let name = self.while_some(u8::is_ascii_alphabetic);
        let node = match name {
            "frac" => Node::Command("frac", vec![self.argument()?, self.argument()?]),
            "binom" | "dbinom" | "tbinom" => {
                Node::Command("binom", vec![self.argument()?, self.argument()?])
            }
            "sqrt" => {
                self.spaces();
                if self.take("[") {
                    let degree = self.nodes()?;
                    if !self.take("]") {
                        return Err("unclosed bracket".to_owned());
                    }
                    Node::Root(degree, self.argument()?)
                } else {
                    Node::Command("sqrt", vec![self.argument()?])
                }
            }
            "lfloor" => self.group("", r"\lfloor ", r"\rfloor ")?,
            "lceil" => self.group("", r"\lceil ", r"\rceil ")?,
            "mathbb" => {
                let set = ["{R}", "{Z}", "{Q}", "{N}", "{C}"]
                    .iter()
                    .find(|set| self.take(set));
                let set = set.ok_or("unknown number set")?;
                Node::Symbol(format!(r"\mathbb{set}"))
            }
            "text" => {
                let text =
                    (self.rest.trim_start().strip_prefix('{')).and_then(|it| it.split_once('}'));
                match text {
                    Some((letter @ ("e" | "i"), rest)) => {
                        self.rest = rest;
                        let letter = if letter == "i" { 'i' } else { 'e' };
                        self.letter(letter)?
                    }
                    _ => return Err("it contains words".to_owned()),
                }
            }
            name if FUNCTIONS.contains(&name) => Node::Function(name.to_owned()),
            name if SYMBOLS.contains(&name) => Node::Symbol(format!(r"\{name} ")),
            name => match OPERATORS
                .iter()
                .find(|operator| operator[1..].trim_end() == name)
            {
                Some(operator) => Node::Operator(operator),
                None => {
                    let sign = match name {
                        "" => self.rest.chars().take(1).collect(),
                        name => name.to_owned(),
                    };
                    return Err(format!("unknown command `\\{}`", sign.escape_debug()));
                }
            },
        };
        nodes.push(node);
        Ok(())
    }

    fn group(
        &mut self,
        opening: &str,
        open: &'static str,
        close: &'static str,
    ) -> Result<Node, String> {
        self.take(opening);
        let nodes = self.nodes()?;
        if nodes.is_empty() {
            return Err("empty brackets".to_owned());
        }
        let closed = match opening {
            // `(1, 2]` is an interval.
            "(" | "[" => match (self.take(")"), self.rest.starts_with(']')) {
                (true, _) => Some(")"),
                (false, true) => {
                    self.take("]");
                    Some("]")
                }
                (false, false) => None,
            },
            "{" => self.take("}").then_some(close),
            _ => self.take(close.trim_end()).then_some(close),
        };
        let close = closed.ok_or("unclosed bracket")?;
        Ok(Node::Group(open, nodes, close))
    }

    /// An argument of a command: in brackets, or a single digit, letter or command.
    fn argument(&mut self) -> Result<Vec<Node>, String> {
        self.spaces();
        let mut nodes = Vec::new();
        match self.rest.chars().next() {
            Some('{' | '(') => match self.group(&self.rest[..1], "(", ")")? {
                Node::Group(_, inner, _) => nodes = inner,
                other => nodes.push(other),
            },
            Some(digit @ '0'..='9') => {
                self.rest = &self.rest[1..];
                nodes.push(Node::Number(digit.to_string(), String::new()));
            }
            Some(letter) if letter.is_ascii_alphabetic() => {
                self.rest = &self.rest[1..];
                nodes.push(self.letter(letter)?);
            }
            Some('\\') => self.command(&mut nodes)?,
            _ => return Err("a command lacks an argument".to_owned()),
        }
        Ok(nodes)
    }

    fn power(&mut self) -> Result<Node, String> {
        self.spaces();
        for degree in [r"\circ", r"{\circ}"] {
            if self.take(degree) {
                return Ok(Node::Degree);
            }
        }
        // Transpose, inverse, derivative: the library would drop them.
        let other = [
            r"{T}",
            "T",
            r"\top",
            r"{\top}",
            "*",
            "{*}",
            r"\prime",
            r"{\prime}",
            r"\text",
            r"{\text",
        ];
        if other.iter().any(|sign| self.rest.starts_with(sign)) {
            return Err("a superscript is no exponent".to_owned());
        }
        let mut exponent = Vec::new();
        if self.take("-") {
            exponent.push(Node::Operator("-"));
        }
        match self.rest.as_bytes().first() {
            // In plain text all digits belong to the exponent; TeX would take only the first.
            Some(b'0'..=b'9') => exponent.push(self.number()?),
            _ => exponent.extend(self.argument()?),
        }
        Ok(Node::Power(exponent))
    }

    fn index(&mut self, of: Option<&Node>) -> Result<Node, String> {
        let is_log = matches!(of, Some(Node::Function(name)) if name == "log");
        if !is_log && !matches!(of, Some(Node::Symbol(_))) {
            return Err("unsupported index".to_owned());
        }
        self.spaces();
        let index = match self.rest.strip_prefix('{') {
            Some(rest) => {
                let (index, rest) = rest.split_once('}').ok_or("unclosed bracket")?;
                self.rest = rest;
                index
            }
            None => {
                let (index, rest) = self.rest.split_at_checked(1).ok_or("an index is missing")?;
                self.rest = rest;
                index
            }
        };
        let is_plain =
            (1..=6).contains(&index.len()) && index.bytes().all(|it| it.is_ascii_alphanumeric());
        if !is_plain {
            return Err("unsupported index".to_owned());
        }
        Ok(Node::Index(index.to_owned()))
    }
}

fn is_group(text: &str) -> bool {
    text.bytes().take_while(u8::is_ascii_digit).take(4).count() == 3
}

/// Writes nodes as LaTeX. Fails if their sequence is ambiguous.
fn latex(nodes: &[Node]) -> Result<String, String> {
    if nodes.is_empty() {
        return Err("empty expression".to_owned());
    }
    if nodes
        .iter()
        .filter(|node| matches!(node, Node::Bar))
        .count()
        % 2
        == 1
    {
        return Err("unclosed `|`".to_owned());
    }
    let mut out = String::new();
    // The offset in `out` of the operand that directly precedes, if any.
    let mut operand: Option<usize> = None;
    let mut below_slash = false;
    let mut previous: Option<&Node> = None;
    for (place, node) in nodes.iter().enumerate() {
        let next = nodes.get(place + 1);
        if node.is_operand() {
            if operand.is_some() {
                if below_slash {
                    return Err("the denominator after `/` is ambiguous".to_owned());
                }
                match (previous, node) {
                    (_, Node::Number(..)) => {
                        return Err("a number directly follows an operand".to_owned());
                    }
                    (Some(Node::Number(_, part)), Node::Command("frac", arguments)) => {
                        let is_fraction = arguments
                            .iter()
                            .all(|of| matches!(of[..], [Node::Number(..)]));
                        if is_fraction && (!part.is_empty() || next.is_some_and(Node::is_script)) {
                            return Err("a number before a fraction is ambiguous".to_owned());
                        }
                        if is_fraction && !is_proper(arguments) {
                            return Err("a number before a fraction is ambiguous".to_owned());
                        }
                        if !is_fraction {
                            out.push_str(r"\cdot ");
                        }
                    }
                    _ => {}
                }
            }
            below_slash &= operand.is_none();
            below_slash |= matches!(previous, Some(Node::Operator("/")));
            operand = Some(out.len());
        } else if node.is_script() {
            let is_function = matches!(previous, Some(Node::Function(_)));
            let fits = match node {
                Node::Degree => matches!(previous, Some(Node::Number(..) | Node::Group("(", ..))),
                Node::Factorial => operand.is_some(),
                _ => {
                    operand.is_some()
                        || is_function
                        || matches!(previous, Some(Node::Bar | Node::Index(_)))
                }
            };
            let twice = matches!((previous, node), (Some(Node::Power(_)), Node::Power(_)));
            if !fits || twice {
                return Err("a superscript or index has no base".to_owned());
            }
        } else if matches!(node, Node::Bar) {
            operand = None;
        } else {
            operand = None;
            below_slash = false;
        }
        write(&mut out, node, (previous, operand))?;
        previous = Some(node);
    }
    Ok(out)
}

fn write(
    out: &mut String,
    node: &Node,
    (before, operand): (Option<&Node>, Option<usize>),
) -> Result<(), String> {
    match node {
        Node::Number(whole, part) if part.is_empty() => {
            let digits = whole.trim_start_matches('0');
            out.push_str(if digits.is_empty() { "0" } else { digits });
        }
        Node::Number(whole, part) => {
            let zeros = "0".repeat(part.len());
            let digits = format!("{whole}{part}");
            let digits = digits.trim_start_matches('0');
            let digits = if digits.is_empty() { "0" } else { digits };
            out.push_str(&format!(r"(\frac{{{digits}}}{{1{zeros}}})"));
        }
        Node::Symbol(symbol) => {
            out.push_str(symbol);
            if !symbol.ends_with([' ', '}']) {
                out.push(' ');
            }
        }
        Node::Function(name) => out.push_str(&format!(r"\{name} ")),
        Node::Operator(operator) => out.push_str(operator),
        Node::Command(name, arguments) => {
            out.push('\\');
            out.push_str(name);
            for argument in arguments {
                out.push_str(&format!("{{{}}}", latex(argument)?));
            }
        }
        Node::Root(degree, of) => {
            out.push_str(&format!(r"\sqrt[{}]{{{}}}", latex(degree)?, latex(of)?));
        }
        Node::Group(open, nodes, close) => {
            out.push_str(open);
            out.push_str(&latex(nodes)?);
            out.push_str(close);
        }
        Node::Power(exponent) => {
            let exponent = latex(exponent)?;
            if is_large(&exponent) {
                return Err("a power is too large to compute".to_owned());
            }
            out.truncate(out.trim_end().len());
            out.push_str(&format!("^{{{exponent}}}"));
        }
        Node::Index(index) => {
            out.truncate(out.trim_end().len());
            out.push_str(&format!("_{{{index}}}"));
        }
        Node::Degree => {
            let start = operand.unwrap_or(out.len());
            let number = out.split_off(start);
            out.push_str(&format!(r"({number}\cdot \frac{{\pi }}{{180}})"));
        }
        Node::Factorial => {
            let is_open = match before {
                Some(Node::Number(whole, _)) => is_large(whole),
                Some(Node::Group(_, nodes, _)) => !nodes
                    .iter()
                    .any(|node| matches!(node, Node::Symbol(it) if it.len() == 1)),
                before => matches!(before, Some(Node::Factorial | Node::Power(_))),
            };
            if is_open {
                return Err("a factorial is too large to compute".to_owned());
            }
            out.truncate(out.trim_end().len());
            out.push('!');
        }
        Node::Bar => out.push('|'),
    }
    Ok(())
}

fn is_proper(arguments: &[Vec<Node>]) -> bool {
    let value = |of: &Vec<Node>| match &of[..] {
        [Node::Number(whole, part)] if part.is_empty() => whole.parse::<u64>().ok(),
        _ => None,
    };
    match arguments {
        [above, below] => value(above) > Some(0) && value(above) < value(below),
        _ => false,
    }
}

/// Whether a number, or a written-out power, is too large for the library.
fn is_large(text: &str) -> bool {
    match numeral::whole(text) {
        Some(Value::Exact(value)) => value
            .abs()
            .to_integer()
            .to_u32()
            .is_none_or(|it| it > LARGEST),
        Some(Value::Beyond) => true,
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::normal::normal;
    use super::*;

    #[test]
    fn known_expressions_are_written_for_the_library() {
        let cases = [
            (r"\dfrac12 x", r"\frac{1}{2}x "),
            (r"2\sqrt3", r"2\sqrt{3}"),
            (r"\sqrt[3]{2}", r"\sqrt[3]{2}"),
            ("sqrt(3)/2", r"\sqrt{3}/2"),
            ("√3", r"\sqrt{3}"),
            ("2pi", r"2\pi "),
            ("x^10", r"x^{10}"),
            ("x²", r"x^{2}"),
            ("2*x", r"2\cdot x "),
            ("0.25x", r"(\frac{25}{100})x "),
            ("1,000x", "1000x "),
            ("xy + 1", "x y +1"),
            ("x_1 + x_{10}", "x_{1}+x_{10}"),
            (r"\left(x+1\right)^2", "(x +1)^{2}"),
            (r"\sin 30^\circ", r"\sin (30\cdot \frac{\pi }{180})"),
            (r"\log_2 8", r"\log_{2}8"),
            (r"\sin^2 x", r"\sin^{2}x "),
            (r"(1, 2] \cup \{3\}", r"(1,2]\cup\{3\}"),
            ("1 < x <= 2", r"1<x \le 2"),
            ("|x-1|", "|x -1|"),
            (r"2\frac{1}{2}", r"2\frac{1}{2}"),
            (r"2\frac{x}{3}", r"2\cdot \frac{x }{3}"),
            (r"\binom{5}{2}", r"\binom{5}{2}"),
            (r"e^{2\pi i}", r"e^{2\pi I }"),
        ];
        for (text, expected) in cases {
            let cleaned = clean(&normal(text)).map(|cleaned| cleaned.latex);
            assert_eq!(
                cleaned.as_deref().map(|it| it.replace(' ', "")),
                Ok(expected.replace(' ', "")),
                "{text}"
            );
        }
        assert!(clean("2i + 1").is_ok_and(|cleaned| cleaned.has_i));
    }

    #[test]
    fn ambiguous_or_unknown_expressions_are_rejected() {
        let cases = [
            "",
            "no",
            "Alice",
            "y'",
            "A^T",
            r"A^{\top}",
            "1011_2",
            "3 4",
            "x2",
            "2/3x",
            r"1/2\pi",
            r"n \equiv 1",
            r"1 \pmod 3",
            r"1, 2, \ldots, n",
            "1, 2",
            "1, 2, ...",
            r"\begin{cases}1\end{cases}",
            r"12\%",
            r"\text{no}",
            "x)",
            "(x",
            "|x",
            r"9^{9^{9^9}}x",
            "100000!x",
            "(9^9)!",
            "x^2^3",
            r"\frac{1}",
            "I + 1",
            "2e3x",
            "3:4",
            r"\int_0^1 x dx",
            "3–5",
            r"x \text{ or } y",
            r"2\frac{3}{2}x",
            r"\input{x}",
            "$x",
            "2 on",
            "a'b",
            r"x^{\circ}",
            "é",
            "x__1",
            "x^",
            r"\frac{}{2}",
            "()",
        ];
        for text in cases {
            assert!(
                clean(&normal(text)).is_err(),
                "{text}: {:?}",
                clean(&normal(text))
            );
        }
    }

    #[test]
    fn deep_nesting_is_rejected_and_long_sums_are_accepted() {
        for text in [
            "(".repeat(2000),
            r"\frac{".repeat(300),
            "x^{".repeat(600),
            r"\sqrt".repeat(400),
        ] {
            assert!(clean(&text).is_err());
        }
        let long = "x+".repeat(900) + "1";
        assert!(clean(&long).is_ok());
    }
}
