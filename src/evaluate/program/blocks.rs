//! Fenced code blocks of Markdown (CommonMark 0.31, section 4.5), and models' deviations from them.

use super::loose;
use super::source::State;

/// A text split into fenced blocks and the rest.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    pub(super) blocks: Vec<Block>,
    pub(super) prose: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) language: Language,
    /// The content without its common indentation.
    pub(super) text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Language {
    Python,
    Unnamed,
    Other,
}

impl Language {
    /// `python`, `py`, `Python3`, `python3.12`, `{python}`, `python:main.py`, `main.py`.
    fn of_info(info: &str) -> (Self, &str) {
        let info = info.trim();
        let named = info.trim_start_matches(['{', '.', ' ']);
        let is_part = |letter: char| letter.is_alphanumeric() || "._+#-/".contains(letter);
        let end = named.find(|letter| !is_part(letter)).unwrap_or(named.len());
        let (word, rest) = named.split_at(end);
        let word = word.to_ascii_lowercase();
        let version = (word.strip_prefix("python"))
            .or_else(|| word.strip_prefix("ipython"))
            .or_else(|| word.strip_prefix("py"));
        let is_version = |text: &str| text.chars().all(|one| one.is_ascii_digit() || one == '.');
        let language = match version {
            Some(version) if is_version(version) => Self::Python,
            _ if word.ends_with(".py") => Self::Python,
            _ if info.is_empty() => Self::Unnamed,
            _ => Self::Other,
        };
        (language, rest.trim_start())
    }

    pub(super) fn may_be_python(self) -> bool {
        self != Self::Other
    }
}

/// Splits a text. An unclosed block extends to the end of the text.
pub(super) fn read(text: &str) -> Blocks {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut read = Blocks::default();
    let mut at = 0;
    while at < lines.len() {
        let Some(fence) = Fence::opens(lines[at]) else {
            read.prose.push_str(lines[at]);
            at += 1;
            continue;
        };
        let end = fence.end(&lines, at + 1);
        let mut content = String::new();
        if let Some(line) = fence.first_line {
            content = format!("{line}\n");
        }
        for line in &lines[at + 1..end.content] {
            content.push_str(fence.without_indent(line));
        }
        content.push_str(fence.without_indent(end.last));
        let mut text = dedented(content);
        let is_closed = end.next > end.content;
        if !is_closed && fence.language == Language::Python {
            text.truncate(loose::end_of_code(&text));
        }
        read.blocks.push(Block {
            language: fence.language,
            text,
        });
        at = end.next;
    }
    read
}

/// A line that opens or closes a block.
#[derive(Debug, Clone, Copy)]
struct Fence<'a> {
    mark: char,
    length: usize,
    /// Bytes of white space before it.
    indent: usize,
    language: Language,
    /// Code on the same line, after the language.
    first_line: Option<&'a str>,
}

struct End<'a> {
    /// Index of the line after its last complete line.
    content: usize,
    /// A last line of code that is followed by the fence on the same line.
    last: &'a str,
    /// Index of the line at which to continue.
    next: usize,
}

impl<'a> Fence<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let indented = line.trim_start_matches([' ', '\t']);
        let mark = indented
            .chars()
            .next()
            .filter(|mark| "`~".contains(*mark))?;
        let length = indented.chars().take_while(|next| *next == mark).count();
        let info = &indented[length..];
        if length < 3 || (mark == '`' && info.contains('`')) {
            return None;
        }
        let (language, rest) = Language::of_info(info);
        let is_code = ["import ", "from ", "def ", "class ", "@", "#"]
            .iter()
            .any(|start| rest.starts_with(start));
        Some(Self {
            mark,
            length,
            indent: line.len() - indented.len(),
            language,
            first_line: Some(rest).filter(|_| is_code && language == Language::Python),
        })
    }

    /// A fence at the start of the line, or a Python fence at its end: "Sure! ```python".
    fn opens(line: &'a str) -> Option<Self> {
        Self::read(line).or_else(|| {
            let at = line.find("```")?;
            let fence = Self::read(&line[at..])?;
            (fence.language == Language::Python).then_some(fence)
        })
    }

    /// Finds the fence that closes this one, starting at line `from`. In Python, a fence inside a
    /// multi-line string closes nothing, provided that the string is terminated.
    fn end(&self, lines: &[&'a str], from: usize) -> End<'a> {
        let mut state = State::default();
        let mut if_strings_are_broken = None;
        for (at, line) in lines.iter().enumerate().skip(from) {
            if let Some(end) = self.end_at(line, at, state) {
                if !state.is_in_string() {
                    return end;
                }
                if_strings_are_broken.get_or_insert(end);
            }
            if self.language.may_be_python() {
                state.read(line);
            }
        }
        let cut_off = End {
            content: lines.len(),
            last: "",
            next: lines.len(),
        };
        if_strings_are_broken
            .filter(|_| state.is_in_string())
            .unwrap_or(cut_off)
    }

    fn end_at(&self, line: &'a str, at: usize, state: State) -> Option<End<'a>> {
        let end = |last, next| {
            let content = at;
            Some(End {
                content,
                last,
                next,
            })
        };
        match Self::read(line).filter(|fence| fence.mark == self.mark) {
            // The block was not closed before the next one was opened.
            Some(fence) if fence.language == Language::Python => end("", at),
            Some(fence) if fence.length < self.length => None,
            Some(fence) if fence.language == Language::Unnamed => end("", at + 1),
            // No line of Python starts with a fence, so it closes the block, whatever follows it.
            Some(_) if self.language == Language::Python => end("", at + 1),
            Some(_) => None,
            None if self.language.may_be_python() => {
                let code = line.trim_end();
                let last = code.trim_end_matches(self.mark);
                let marks = code.len() - last.len();
                let is_code = |mut state: State| state.read(code).trim_end().ends_with(self.mark);
                let closes = marks >= self.length && !last.trim().is_empty();
                if closes && is_code(state) {
                    end(last, at + 1)
                } else {
                    None
                }
            }
            None => None,
        }
    }

    fn without_indent<'b>(&self, line: &'b str) -> &'b str {
        without_space(line, self.indent)
    }
}

fn without_space(line: &str, most: usize) -> &str {
    let space = line.len() - line.trim_start_matches([' ', '\t']).len();
    &line[space.min(most)..]
}

/// Removes the common indentation of all lines, ignoring lines inside strings.
fn dedented(code: String) -> String {
    let mut state = State::default();
    let mut least = usize::MAX;
    for line in code.lines() {
        if !state.is_in_string() && !line.trim().is_empty() {
            least = least.min(line.len() - line.trim_start_matches([' ', '\t']).len());
        }
        state.read(line);
    }
    if least == 0 || least == usize::MAX {
        return code;
    }
    let lines = code.split_inclusive('\n');
    lines.map(|line| without_space(line, least)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROGRAM: &str = "def solve():\n    return 1";

    fn pythons(text: &str) -> Vec<String> {
        let blocks = read(text).blocks.into_iter();
        let python = blocks.filter(|block| block.language == Language::Python);
        python
            .map(|block| block.text.trim_end().to_owned())
            .collect()
    }

    #[test]
    fn fences_are_parsed_as_models_write_them() {
        for (open, close) in [
            ("```python\n", "\n```"),
            ("```python\n", "```"),
            ("```python\n", "```\nIt works.\n"),
            ("```python\n", "  ```  \n"),
            ("```python\n", ""),
            ("```{python}\n", "\n```"),
            ("```{.python .numberLines}\n", "\n```"),
            ("```python:main.py\n", "\n```"),
            ("```python title=\"main.py\"\n", "\n```"),
            ("```py\n", "\n```"),
            ("```Python3\n", "\n```"),
            ("```python3.12\n", "\n```"),
            ("``` python\n", "\n```"),
            ("```main.py\n", "\n```"),
            ("Sure! ```python\n", "\n```"),
            ("```python ", "\n```"),
            ("~~~python\n", "\n~~~"),
            ("````python\n", "\n````"),
            ("````python\n", "\n`````"),
            ("```markdown\n```python\n", "\n```\n```"),
            ("```python\n", "\n``` and it works.\n"),
            ("~~~\n```\n~~~\n```python\n", "\n```"),
        ] {
            let text = format!("{open}{PROGRAM}{close}");
            assert_eq!(pythons(&text), [PROGRAM], "{text}");
        }
    }

    #[test]
    fn a_missing_closing_fence_is_tolerated() {
        let text = format!("```python\nx = 1\n\n```python\n{PROGRAM}\n```");
        assert_eq!(pythons(&text), ["x = 1", PROGRAM]);
        let prose = "This places the circles on a grid.\n\nIt is not the best.\n";
        for text in [
            format!("```python\n{PROGRAM}\n\n{prose}"),
            format!("```python\n{PROGRAM}\n{prose}```python\nx = 1\n```"),
        ] {
            assert_eq!(pythons(&text)[0], PROGRAM, "{text}");
        }
        // What was cut off is left as it is.
        for code in ["x = '''\nText in it.", "def solve():\n    return [\n1,"] {
            let text = format!("```python\n{code}");
            assert_eq!(pythons(&text), [code], "{text}");
        }
    }

    #[test]
    fn fences_in_strings_and_comments_are_code() {
        for code in [
            format!("\"\"\"\n```\nexample\n```\n\"\"\"\n{PROGRAM}"),
            format!("'''Use it:\n\n```python\nsolve()\n```\n'''\n{PROGRAM}"),
            format!("# call it as in ```\n{PROGRAM}"),
            format!("x = '```'\ny = 'it''s' # ```\n{PROGRAM}"),
            format!("{PROGRAM}  # \"\"\" and '''"),
        ] {
            let text = format!("```python\n{code}\n```\nDone.");
            assert_eq!(pythons(&text), [code.as_str()], "{text}");
        }
    }

    #[test]
    fn an_unterminated_string_ends_with_its_block() {
        let text = format!("```python\nx = '''\n```\nThen:\n```python\n{PROGRAM}\n```");
        assert_eq!(pythons(&text), ["x = '''", PROGRAM]);
    }

    #[test]
    fn common_indentation_is_removed() {
        let indented = PROGRAM.replace('\n', "\n    ");
        for text in [
            format!("- so:\n    ```python\n    {indented}\n    ```"),
            format!("```python\n    {indented}\n```"),
            format!("```python\n\t{}\n```", PROGRAM.replace('\n', "\n\t")),
        ] {
            assert_eq!(pythons(&text), [PROGRAM], "{text}");
        }
        let with_string = "    x = '''\na\n'''\n    y = 1";
        let text = format!("```python\n{with_string}\n```");
        assert_eq!(pythons(&text), ["x = '''\na\n'''\ny = 1"]);
    }

    #[test]
    fn other_languages_are_not_python() {
        for info in ["json", "pycon", "python-repl", "pyproject", "text", "bash"] {
            let text = format!("```{info}\nx\n```");
            assert_eq!(pythons(&text), [""; 0], "{info}");
            assert_eq!(read(&text).blocks.len(), 1, "{info}");
        }
        let two = read("a\n```\nx\n```\nb\n");
        assert_eq!(two.prose, "a\nb\n");
        assert_eq!(two.blocks[0].language, Language::Unnamed);
    }
}
