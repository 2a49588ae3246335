//! Text that tracks which of its parts are message content, as opposed to text that the template
//! wrote.

use std::cell::Cell;
use std::ops::Range;

/// The budget of one rendering, for the bytes of text it produces and the steps it takes. It turns
/// a template that never ends, or that keeps doubling a string, into an error instead of a crash.
/// Smaller in tests, which exhaust it in unoptimized builds.
const BUDGET: usize = if cfg!(test) { 8 << 20 } else { 64 << 20 };

/// Additional budget per byte of message content.
const BUDGET_PER_BYTE: usize = 64;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(BUDGET) };
}

/// Resets this thread's budget for rendering `bytes` of message content.
pub(super) fn refill_budget(bytes: usize) {
    LEFT.set(bytes.saturating_mul(BUDGET_PER_BYTE).saturating_add(BUDGET));
}

/// Returns false if the budget is exhausted.
pub(super) fn spend(amount: usize) -> bool {
    let left = LEFT.get().checked_sub(amount);
    LEFT.set(left.unwrap_or(0));
    left.is_some()
}

#[derive(Debug, Clone, Default)]
pub(in crate::engine) struct Text {
    text: String,
    /// Byte ranges of content: sorted, disjoint, not adjacent, not empty.
    content: Vec<Range<usize>>,
    /// The budget ran out while this text was built, so part of it is missing.
    cut: bool,
}

impl Text {
    /// Text written by the template.
    pub(in crate::engine) fn plain(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..Self::default()
        }
    }

    /// Message content.
    pub(in crate::engine) fn content(text: impl Into<String>) -> Self {
        let text = text.into();
        let content = match text.len() {
            0 => Vec::new(),
            length => std::iter::once(0..length).collect(),
        };
        Self {
            text,
            content,
            cut: false,
        }
    }

    pub(in crate::engine) fn as_str(&self) -> &str {
        &self.text
    }

    /// The text, and the byte ranges of it that are content.
    pub(in crate::engine) fn into_parts(self) -> (String, Vec<Range<usize>>) {
        (self.text, self.content)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    fn has_content(&self) -> bool {
        !self.content.is_empty()
    }

    fn has_room(&mut self, length: usize) -> bool {
        let has_room = spend(length);
        self.cut |= !has_room;
        has_room
    }

    pub(super) fn push_plain(&mut self, text: &str) {
        if self.has_room(text.len()) {
            self.text.push_str(text);
        }
    }

    pub(super) fn push(&mut self, other: &Self) {
        self.push_slice(other, 0..other.text.len());
        self.cut |= other.cut;
    }

    /// Appends `other[range]`; the range must lie on character boundaries.
    pub(super) fn push_slice(&mut self, other: &Self, range: Range<usize>) {
        if range.is_empty() || !self.has_room(range.len()) {
            return;
        }
        let start = self.text.len();
        self.text.push_str(&other.text[range.clone()]);
        let first = (other.content).partition_point(|content| content.end <= range.start);
        for content in &other.content[first..] {
            if content.start >= range.end {
                break;
            }
            let from = content.start.max(range.start) - range.start;
            let to = content.end.min(range.end) - range.start;
            self.mark(start + from..start + to);
        }
    }

    /// Appends `text`, as content if `is_content`.
    pub(super) fn push_as(&mut self, text: &str, is_content: bool) {
        if !self.has_room(text.len()) {
            return;
        }
        let start = self.text.len();
        self.text.push_str(text);
        if is_content {
            self.mark(start..self.text.len());
        }
    }

    fn mark(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        match self.content.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.content.push(range),
        }
    }

    /// The range must lie on character boundaries.
    pub(super) fn slice(&self, range: Range<usize>) -> Self {
        let mut text = Self::default();
        text.push_slice(self, range);
        text.cut |= self.cut;
        text
    }

    /// `part` must be a slice of `self.as_str()`.
    pub(super) fn part(&self, part: &str) -> Self {
        let start = part.as_ptr().addr() - self.text.as_ptr().addr();
        self.slice(start..start + part.len())
    }

    /// Replaces each character with what `write` appends for it. The replacement of content is
    /// content.
    pub(super) fn map(&self, mut write: impl FnMut(char, &mut String)) -> Self {
        let mut mapped = Self {
            cut: self.cut || !spend(self.text.len()),
            ..Self::default()
        };
        if mapped.cut {
            return mapped;
        }
        mapped.text.reserve(self.text.len());
        let mut ranges = self.content.iter().peekable();
        for (at, c) in self.text.char_indices() {
            while ranges.peek().is_some_and(|range| range.end <= at) {
                ranges.next();
            }
            let start = mapped.text.len();
            write(c, &mut mapped.text);
            if ranges.peek().is_some_and(|range| range.start <= at) {
                mapped.mark(start..mapped.text.len());
            }
        }
        mapped
    }

    /// Wraps `text`, computed from this one in a way that cannot be tracked per character: it is
    /// all content if any of this text is.
    pub(super) fn derive(&self, text: String) -> Self {
        let mut derived = Self::default();
        derived.push_as(&text, self.has_content());
        derived.cut |= self.cut;
        derived
    }

    /// Replaces the text by one whose characters have the same byte lengths.
    pub(super) fn with_text(self, text: String) -> Self {
        debug_assert_eq!(self.text.len(), text.len());
        Self { text, ..self }
    }

    pub(super) fn repeat(&self, times: usize) -> Self {
        let mut text = Self::default();
        if self.text.is_empty() || self.text.len().saturating_mul(times) > LEFT.get() {
            text.cut = self.cut || !self.text.is_empty();
            return text;
        }
        if self.has_content() {
            for _ in 0..times {
                text.push(self);
            }
        } else {
            text.push_plain(&self.text.repeat(times));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(parts: &[(&str, bool)]) -> Text {
        let mut text = Text::default();
        for (part, is_content) in parts {
            text.push_as(part, *is_content);
        }
        text
    }

    #[test]
    fn what_is_content_stays_content() {
        refill_budget(0);
        let text = text(&[("<a>", false), ("één", true), ("b", true), ("</a>", false)]);
        assert_eq!(text.content, std::iter::once(3..9).collect::<Vec<_>>());
        let slice = text.slice(2..5);
        assert_eq!(slice.as_str(), ">é");
        assert_eq!(slice.content, std::iter::once(1..3).collect::<Vec<_>>());
        let upper = text.map(|c, to| to.extend(c.to_uppercase()));
        assert_eq!(upper.as_str(), "<A>ÉÉNB</A>");
        assert_eq!(upper.content, std::iter::once(3..9).collect::<Vec<_>>());
        let twice = slice.repeat(2);
        assert_eq!(twice.as_str(), ">é>é");
        assert_eq!(twice.content, [1..3, 4..6]);
        assert!(text.derive("x".to_owned()).has_content());
        assert!(!text.slice(0..3).has_content());
    }

    #[test]
    fn text_beyond_the_budget_is_cut() {
        refill_budget(0);
        let long = Text::plain("x".repeat(1 << 20)).repeat(1 << 20);
        assert!(long.is_cut());
        assert!(long.as_str().len() <= BUDGET);
        refill_budget(0);
    }
}
