//! The program in a model's answer.

/// The program in a Markdown text: the last block that is called `python` or `py`, or else the last
/// without a name, fenced by ``` or ~~~. A block that is cut off counts to the end of the text. Text
/// without any fence is a program itself where a line of it begins a function.
///
/// A fence may be indented, as in a list; what its first line is indented by is taken off each line.
pub fn last_block(text: &str) -> Option<String> {
    let mut named = None;
    let mut unnamed = None;
    let mut any = false;
    let mut open: Option<(Fence, String)> = None;
    for line in text.split_inclusive('\n') {
        match (open.take(), Fence::read(line)) {
            (None, None) => {}
            (None, Some(fence)) => {
                any = true;
                open = Some((fence, String::new()));
            }
            (Some((fence, block)), Some(end)) if end.closes(&fence) => {
                keep(&fence, block, &mut named, &mut unnamed);
            }
            (Some((fence, mut block)), _) => {
                block.push_str(fence.without_indent(line));
                open = Some((fence, block));
            }
        }
    }
    if let Some((fence, block)) = open {
        keep(&fence, block, &mut named, &mut unnamed);
    }
    let is_program = !any && text.lines().any(|line| line.starts_with("def "));
    named
        .or(unnamed)
        .or_else(|| is_program.then(|| text.to_owned()))
        .filter(|program| !program.trim().is_empty())
}

fn keep(fence: &Fence, block: String, named: &mut Option<String>, unnamed: &mut Option<String>) {
    match fence.language {
        Language::Python => *named = Some(block),
        Language::Unnamed => *unnamed = Some(block),
        Language::Other => {}
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Python,
    Unnamed,
    Other,
}

/// A line that opens or closes a block (CommonMark 0.31, section 4.5).
struct Fence {
    mark: char,
    length: usize,
    /// Spaces before it.
    indent: usize,
    language: Language,
}

impl Fence {
    fn read(line: &str) -> Option<Self> {
        let indented = line.trim_start_matches(' ');
        let mark = indented
            .chars()
            .next()
            .filter(|mark| "`~".contains(*mark))?;
        let length = indented.chars().take_while(|next| *next == mark).count();
        let info = indented[length..].trim();
        if length < 3 || (mark == '`' && info.contains('`')) {
            return None;
        }
        let language = info.split_whitespace().next().unwrap_or_default();
        let is_python = ["python", "py", "python3"]
            .iter()
            .any(|known| language.eq_ignore_ascii_case(known));
        Some(Self {
            mark,
            length,
            indent: line.len() - indented.len(),
            language: match language {
                "" => Language::Unnamed,
                _ if is_python => Language::Python,
                _ => Language::Other,
            },
        })
    }

    fn closes(&self, open: &Self) -> bool {
        let is_bare = self.language == Language::Unnamed;
        self.mark == open.mark && self.length >= open.length && is_bare
    }

    fn without_indent<'a>(&self, line: &'a str) -> &'a str {
        let spaces = line.len() - line.trim_start_matches(' ').len();
        &line[spaces.min(self.indent)..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_block_of_python_counts() {
        let cases = [
            (
                "```python\na = 1\n```\ntext\n```py\nb = 2\n```",
                Some("b = 2\n"),
            ),
            ("```\na = 1\n```\n```json\n{}\n```", Some("a = 1\n")),
            (
                "```python\na = 1\n```\nIt prints\n```\n1.0\n```",
                Some("a = 1\n"),
            ),
            (
                "1. do\n    ```python\n    if x:\n        y\n    ```",
                Some("if x:\n    y\n"),
            ),
            ("  ```py\n  a\n b\n  ```", Some("a\nb\n")),
            ("Here:\n  ```Python\nx\n  ```", Some("x\n")),
            ("```python\nx = 1\n", Some("x = 1\n")),
            ("````python\n```\ny\n```\n````", Some("```\ny\n```\n")),
            ("~~~python\nz\n~~~", Some("z\n")),
            ("def f():\n    return 1\n", Some("def f():\n    return 1\n")),
            ("I would define def f().", None),
            ("```json\n{}\n```\ndef f(): pass", None),
            ("```python\n\n```", None),
            ("inline ```x``` code", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(last_block(text).as_deref(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_found_is_of_the_text(text in "(```|~~~|python|\n|a| |ä){0,20}") {
            if let Some(program) = last_block(&text) {
                prop_assert!(program.lines().all(|line| text.contains(line)));
            }
        }

        #[test]
        fn a_fenced_program_is_found(lines in prop::collection::vec("[a-z =()]{1,12}", 1..5)) {
            let program = lines.join("\n") + "\n";
            prop_assume!(!program.trim().is_empty());
            let text = format!("Sure.\n```python\n{program}```\nDone.");
            prop_assert_eq!(last_block(&text), Some(program));
        }
    }
}
