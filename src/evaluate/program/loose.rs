//! Finds code in text without fences.

use super::source::State;

/// The lines of the text that look like Python, including continuation lines.
pub(super) fn code(text: &str) -> String {
    let plain = lines_of_code(text);
    if begins_a_function(&plain) {
        return plain;
    }
    // In Markdown, text indented by four spaces is code as well.
    let indented: String = (text.split_inclusive('\n'))
        .filter_map(|line| {
            let code = line
                .strip_prefix("    ")
                .or_else(|| line.strip_prefix('\t'));
            code.or_else(|| Some(line).filter(|line| line.trim().is_empty()))
        })
        .collect();
    if begins_a_function(&indented) {
        indented.trim_start_matches('\n').to_owned()
    } else {
        plain
    }
}

/// Whether a function starts on some line.
pub(super) fn begins_a_function(code: &str) -> bool {
    code.lines()
        .any(|line| line.starts_with("def ") || line.starts_with("async def "))
}

/// Where the code ends in a text that begins with code: the prose behind it is left out.
pub(super) fn end_of_code(text: &str) -> usize {
    let mut state = State::default();
    let (mut at, mut end) = (0, 0);
    let mut goes_on = false;
    for line in text.split_inclusive('\n') {
        at += line.len();
        if line.trim().is_empty() && !state.is_in_statement() {
            continue;
        }
        let is_within = goes_on && line.starts_with([' ', '\t']);
        goes_on = state.is_in_statement() || is_within || looks_like_code(line);
        if goes_on {
            state.read(line);
            end = at;
        }
    }
    match end {
        0 => text.len(),
        end => end,
    }
}

fn lines_of_code(text: &str) -> String {
    let mut code = String::new();
    let mut state = State::default();
    let mut goes_on = false;
    for line in text.split_inclusive('\n') {
        let is_blank = line.trim().is_empty();
        let is_within = goes_on && line.starts_with([' ', '\t']);
        let is_code = state.is_in_statement() || is_blank || is_within || looks_like_code(line);
        if !is_code {
            goes_on = false;
            continue;
        }
        if is_blank && code.is_empty() {
            continue;
        }
        if !is_blank {
            goes_on = true;
        }
        state.read(line);
        code.push_str(line);
    }
    let end = code.trim_end().len();
    if end < code.len() {
        code.truncate(end);
        code.push('\n');
    }
    code
}

/// Whether an unindented line can start or end a statement. Prose starting with `if` or `for` rarely ends
/// with a colon.
fn looks_like_code(line: &str) -> bool {
    let line = line.trim_end();
    let word_end = line
        .find(|letter: char| letter != '_' && !letter.is_alphanumeric())
        .unwrap_or(line.len());
    let (word, rest) = line.split_at(word_end);
    let rest = rest.trim_start();
    let ends_with_colon = || {
        let mut state = State::default();
        state.read(line).trim_end().ends_with(':')
    };
    match word {
        "" => line.starts_with(['@', '#', '"', '\'', ')', ']', '}', '(']),
        "import" => rest
            .split(',')
            .all(|module| matches!(module.split_whitespace().count(), 1 | 3)),
        "from" => rest.split_whitespace().nth(1) == Some("import"),
        "def" => rest.contains('('),
        "async" => rest.starts_with("def "),
        "class" => ends_with_colon() || rest.contains("):"),
        "for" => ends_with_colon() && rest.contains(" in "),
        "with" => ends_with_colon() && (rest.contains('(') || rest.contains(" as ")),
        "try" | "else" | "finally" => rest.starts_with(':'),
        "if" | "elif" | "while" | "except" => ends_with_colon(),
        "assert" | "del" | "global" | "raise" => true,
        _ => is_assignment(rest) || is_call(line),
    }
}

/// Whether `rest`, which follows a name, assigns to it: `= 1`, `, b = 1`, `[0] = 1`, `.x = 1`, `: int = 1`,
/// `+= 1`.
fn is_assignment(rest: &str) -> bool {
    let Some(at) = rest.find('=') else {
        return false;
    };
    let (before, after) = (&rest[..at], &rest[at + 1..]);
    let is_target =
        |letter: char| letter.is_alphanumeric() || "_, .[]*:+-/%|&^@'\"".contains(letter);
    let words = before.split_whitespace().count();
    !after.starts_with('=') && before.chars().all(is_target) && words <= 3
}

/// Whether the line is a call, complete or continued: `f(x)`, `a.f(`.
fn is_call(line: &str) -> bool {
    let Some((name, _)) = line.split_once('(') else {
        return false;
    };
    let is_path = |letter: char| letter.is_alphanumeric() || "_.".contains(letter);
    name.chars().all(is_path) && (line.ends_with([')', '(', ',', '[', '{']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_separated_from_prose() {
        let program = "import math\nfrom random import random\n\n@cache\ndef solve():\n    \"\"\"It\n\
                       is in here:\n\"\"\"\n    return f(\n1)\n\nif math.pi > 3:\n    x, y = 1, 2\n\
                       x[0] += 1\nsolve()\n";
        let text = format!(
            "Sure, here is the program:\n\n{program}\nIts sum is 2.1667.\nIf you import more, \
             it grows.\nfrom there on (as said) it is better\nimport it as you like\n"
        );
        assert_eq!(code(&text), program);
        assert_eq!(code(program), program);
    }

    #[test]
    fn an_indented_program_is_found() {
        let text = "Here:\n\n    def solve():\n        return 1\n\nDone.\n";
        assert_eq!(code(text).trim_end(), "def solve():\n    return 1");
        assert_eq!(code("Nothing at all.\nI would define def f().\n"), "");
    }
}
