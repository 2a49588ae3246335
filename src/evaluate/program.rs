//! The program in a model's answer.

/// The last block of Python in a Markdown text: fenced by ``` or ~~~, and called `python`, `py`, or
/// nothing at all. A block that is cut off counts to the end of the text. Text without any fence is a
/// program itself where a line of it begins a function.
pub fn last_block(text: &str) -> Option<&str> {
    let mut found = None;
    let mut any = false;
    let mut open: Option<Fence> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let next = at + line.len();
        match (&open, Fence::read(line)) {
            (None, Some(fence)) => {
                any = true;
                open = Some(Fence {
                    start: next,
                    ..fence
                });
            }
            (Some(fence), Some(end)) if end.closes(fence) => {
                if fence.is_python {
                    found = Some(&text[fence.start..at]);
                }
                open = None;
            }
            _ => {}
        }
        at = next;
    }
    if let Some(fence) = open.filter(|fence| fence.is_python) {
        found = Some(&text[fence.start..]);
    }
    let is_program = !any && text.lines().any(|line| line.starts_with("def "));
    found
        .or_else(|| is_program.then_some(text))
        .filter(|program| !program.trim().is_empty())
}

/// A line that opens or closes a block (CommonMark 0.31, section 4.5).
struct Fence {
    mark: char,
    length: usize,
    is_python: bool,
    has_info: bool,
    /// Where the block's first line begins (bytes).
    start: usize,
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
        if length < 3 || line.len() - indented.len() > 3 || (mark == '`' && info.contains('`')) {
            return None;
        }
        let language = info.split_whitespace().next().unwrap_or_default();
        Some(Self {
            mark,
            length,
            is_python: ["", "python", "py", "python3"]
                .iter()
                .any(|known| language.eq_ignore_ascii_case(known)),
            has_info: !info.is_empty(),
            start: 0,
        })
    }

    fn closes(&self, open: &Self) -> bool {
        self.mark == open.mark && self.length >= open.length && !self.has_info
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
            assert_eq!(last_block(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_found_is_in_the_text(text in "(```|~~~|python|\n|a| |ä){0,20}") {
            if let Some(program) = last_block(&text) {
                prop_assert!(text.contains(program));
            }
        }

        #[test]
        fn a_fenced_program_is_found(lines in prop::collection::vec("[a-z =()]{1,12}", 1..5)) {
            let program = lines.join("\n") + "\n";
            prop_assume!(!program.trim().is_empty());
            let text = format!("Sure.\n```python\n{program}```\nDone.");
            prop_assert_eq!(last_block(&text), Some(program.as_str()));
        }
    }
}
