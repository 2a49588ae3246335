//! Extracts the program from a model's answer.

mod blocks;
mod loose;
mod source;

use std::collections::BTreeSet;

use blocks::{Block, Language};
use source::{Names, defines};

/// Extracts the program from Markdown: the last Python block that defines one of `entry_points`, with the
/// earlier blocks that define names it needs. If no block does, the candidates are, in this order, code
/// outside of all blocks, the last block labelled as Python, and the last unlabelled block.
///
/// Text without any block is a program with its prose removed, provided that a function starts on some line.
pub fn of_answer(answer: &str, entry_points: &[&str]) -> Option<String> {
    let text = answer.replace("\r\n", "\n").replace('\u{feff}', "");
    let read = blocks::read(&text);
    let blocks = &read.blocks;
    let last = |is: &dyn Fn(&Block) -> bool| blocks.iter().rposition(is);
    let defining =
        last(&|block| block.language.may_be_python() && defines(&block.text, entry_points))
            .or_else(|| last(&|block| defines(&block.text, entry_points)));
    let loose = || {
        let code = loose::code(&read.prose);
        (defines(&code, entry_points) || blocks.is_empty() && loose::begins_a_function(&code))
            .then_some(code)
    };
    let named = || last(&|block| block.language == Language::Python);
    let unnamed = || last(&|block| block.language == Language::Unnamed);
    let program = match defining {
        Some(place) => Some(with_what_it_needs(&blocks[..place], &blocks[place].text)),
        None => loose().or_else(|| {
            let place = named().or_else(unnamed)?;
            Some(blocks[place].text.clone())
        }),
    };
    program.filter(|program| !program.trim().is_empty())
}

/// Prepends those earlier blocks that define a name which the program uses but does not define. Other drafts
/// are left out, and so are their side effects.
fn with_what_it_needs(before: &[Block], program: &str) -> String {
    let names = Names::of(program);
    let mut needed: BTreeSet<&str> = names.needed().collect();
    let mut parts = vec![program];
    for block in before.iter().rev() {
        if !block.language.may_be_python() {
            continue;
        }
        let names = Names::of(&block.text);
        if names.star || needed.iter().any(|name| names.defined.contains(name)) {
            needed.retain(|name| !names.defined.contains(name));
            needed.extend(names.needed());
            parts.push(&block.text);
        }
    }
    parts.reverse();
    join(&parts)
}

/// Joins the parts into one program. Python requires `from __future__` imports to come first.
fn join(parts: &[&str]) -> String {
    if let [only] = parts {
        return (*only).to_owned();
    }
    let is_future = |line: &&str| line.starts_with("from __future__ import ");
    let lines = || parts.iter().flat_map(|part| part.lines());
    let future = lines().filter(is_future);
    let rest = lines().filter(|line| !is_future(line));
    let all: Vec<&str> = future.chain(rest).collect();
    all.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn last_block(text: &str) -> Option<String> {
        of_answer(text, &["solve"])
    }

    #[test]
    fn without_an_entry_point_the_last_python_block_is_taken() {
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

    #[test]
    fn the_last_block_that_defines_an_entry_point_is_taken() {
        let program = "def solve():\n    return 1\n";
        let cases = [
            format!("```python\n{program}```\nUsage:\n```python\nprint(solve())\n```\n"),
            format!("```python\ndef solve(): return 0\n```\nBetter:\n```python\n{program}```\n"),
            // A draft that would raise an error if run, and one that does not compile.
            format!(
                "```python\nsolve = 1 / 0\n```\n```python\ndef solve(\n```\n```python\n{program}```"
            ),
            format!("```\n{program}```\n```python\nsolve()\n```"),
            format!("```text\n{program}```\n"),
            format!("```bash\npip install x\n```\n```python\n{program}```\n```\n1\n```"),
            format!("First:\n\n{program}\nThen run it:\n```python\nprint(solve())\n```"),
        ];
        for text in cases {
            let found = last_block(&text).unwrap();
            assert_eq!(found.trim_end(), program.trim_end(), "{text}");
        }
        let aliased = "def f():\n    return 1\nsolve = f\n";
        let text = format!("```python\n{aliased}```\n```python\nsolve()\n```");
        assert_eq!(last_block(&text).as_deref(), Some(aliased));
    }

    #[test]
    fn earlier_blocks_that_the_program_needs_are_included() {
        let text = "```python\nimport math\nfrom random import (\n    random as chance,\n)\n```\n\
                    A first draft:\n```python\ndef solve(): return unknown\nsolve()\n```\n\
                    ```python\nclass Cell:\n    side = 2\nRADIUS, LEFT = 1, 2\n```\n\
                    ```python\ndef area(r):\n    return math.pi * r * Cell.side\n```\n\
                    Nobody needs:\n```python\nr = 1 / 0\n```\n\
                    ```python\nfrom __future__ import annotations\ndef solve():\n    \
                    return f'{area(RADIUS)}' + chance()\n```\n```python\nsolve()\n```";
        let expected = "from __future__ import annotations\n\
                        import math\nfrom random import (\n    random as chance,\n)\n\
                        class Cell:\n    side = 2\nRADIUS, LEFT = 1, 2\n\
                        def area(r):\n    return math.pi * r * Cell.side\n\
                        def solve():\n    return f'{area(RADIUS)}' + chance()\n";
        assert_eq!(last_block(text).as_deref(), Some(expected));
    }

    #[test]
    fn byte_order_marks_and_carriage_returns_are_removed() {
        let text = "\u{feff}```python\r\n\u{feff}def solve():\r\n    return 1\r\n```\r\n";
        let program = "def solve():\n    return 1\n";
        assert_eq!(last_block(text).as_deref(), Some(program));
    }

    proptest! {
        #[test]
        fn every_line_of_the_program_occurs_in_the_text(text in "(```|~~~|python|\n|a| |ä|'|\"\"\"|def |solve|=|:|#|\\(){0,30}") {
            if let Some(program) = last_block(&text) {
                prop_assert!(program.lines().all(|line| text.contains(line)));
            }
        }

        #[test]
        fn a_fenced_program_is_found(lines in prop::collection::vec("[a-z =()]{1,12}", 1..5)) {
            let program = lines.join("\n") + "\n";
            prop_assume!(!program.starts_with(' ') && !program.trim().is_empty());
            let text = format!("Sure.\n```python\n{program}```\nDone.");
            prop_assert_eq!(last_block(&text), Some(program));
        }
    }
}
