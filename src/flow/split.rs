//! Splits a prompt's source into literal text and the `${ … }` that are evaluated at run time.
//!
//! Splitting comes first, and text substituted into the literals is never split again: a fixture that
//! contains `${HOME}` or `{{x}}` stays text. `$${` is an escape for the text `${`.

/// A piece of a prompt's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// Text that is rendered during expansion.
    Literal(Literal),
    /// The trimmed content of a `${ … }`, and its byte offset in the source.
    Expr { source: String, offset: usize },
}

/// Literal text with its escapes resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Literal {
    pub(super) text: String,
    /// Byte offset in the source.
    offset: usize,
    /// Byte offsets in `text` of escaped `${`.
    escapes: Vec<usize>,
}

impl Literal {
    /// Maps byte `offset` of `text` to a byte offset in the source.
    pub(super) fn in_source(&self, offset: usize) -> usize {
        let escapes_before = self.escapes.iter().filter(|at| **at < offset).count();
        self.offset + offset + escapes_before
    }

    /// Whether rendering leaves the text unchanged.
    pub(super) fn is_plain(&self) -> bool {
        !["{{", "{%", "{#"].iter().any(|tag| self.text.contains(tag))
    }
}

/// The byte offset of a `${` without its `}`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unclosed(pub(super) usize);

/// Splits a source. No literal is empty, and no two literals are adjacent.
pub(super) fn split(source: &str) -> Result<Vec<Piece>, Unclosed> {
    let mut pieces = Vec::new();
    let mut literal = Literal {
        text: String::new(),
        offset: 0,
        escapes: Vec::new(),
    };
    let mut at = 0;
    while let Some(found) = source[at..].find('$') {
        literal.text.push_str(&source[at..at + found]);
        at += found;
        let rest = &source[at..];
        if rest.starts_with("$${") {
            literal.escapes.push(literal.text.len());
            literal.text.push_str("${");
            at += 3;
        } else if rest.starts_with("${") {
            let begin = at + 2;
            let end = begin + closing_brace(&source[begin..]).ok_or(Unclosed(at))?;
            let inside = &source[begin..end];
            let blanks = inside.len() - inside.trim_start().len();
            let next = Literal {
                text: String::new(),
                offset: end + 1,
                escapes: Vec::new(),
            };
            push(&mut pieces, std::mem::replace(&mut literal, next));
            pieces.push(Piece::Expr {
                source: inside.trim().to_owned(),
                offset: begin + blanks,
            });
            at = end + 1;
        } else {
            literal.text.push('$');
            at += 1;
        }
    }
    literal.text.push_str(&source[at..]);
    push(&mut pieces, literal);
    Ok(pieces)
}

fn push(pieces: &mut Vec<Piece>, literal: Literal) {
    if !literal.text.is_empty() {
        pieces.push(Piece::Literal(literal));
    }
}

/// The offset of the `}` that ends the expression at the start of `source`. Braces in the expression must be
/// balanced, except in strings.
pub(super) fn closing_brace(source: &str) -> Option<usize> {
    let mut depth = 0usize;
    let mut quote = None;
    let mut bytes = source.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match (quote, byte) {
            (Some(_), b'\\') => {
                bytes.next();
            }
            (Some(open), _) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'{') => depth += 1,
            (None, b'}') if depth == 0 => return Some(at),
            (None, b'}') => depth -= 1,
            (None, _) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Literals as they are, expressions as `<expr>`.
    fn shown(source: &str) -> Vec<String> {
        let pieces = split(source).expect("every ${ is closed");
        pieces
            .into_iter()
            .map(|piece| match piece {
                Piece::Literal(literal) => literal.text,
                Piece::Expr { source, .. } => format!("<{source}>"),
            })
            .collect()
    }

    #[test]
    fn text_and_expressions() {
        assert_eq!(shown(""), [""; 0]);
        assert_eq!(shown("a"), ["a"]);
        assert_eq!(shown("a ${ x } b${y}"), ["a ", "<x>", " b", "<y>"]);
        assert_eq!(shown("${x}${y}"), ["<x>", "<y>"]);
        assert_eq!(shown("costs 5$ {x} $x"), ["costs 5$ {x} $x"]);
    }

    #[test]
    fn braces_and_strings_inside_an_expression() {
        assert_eq!(shown("${ {'a': {}}.a }!"), ["<{'a': {}}.a>", "!"]);
        assert_eq!(shown("${ x ~ '}' }!"), ["<x ~ '}'>", "!"]);
        assert_eq!(shown(r#"${ "\"}" ~ '{' }!"#), [r#"<"\"}" ~ '{'>"#, "!"]);
        assert_eq!(shown("${ 'ä}' }ö"), ["<'ä}'>", "ö"]);
    }

    #[test]
    fn escapes() {
        assert_eq!(shown("$${HOME}"), ["${HOME}"]);
        assert_eq!(
            shown("a $${ {{ row.x }} } ${y}"),
            ["a ${ {{ row.x }} } ", "<y>"]
        );
        assert_eq!(shown("$$${x}"), ["$${x}"]);
        assert_eq!(shown("$$x"), ["$$x"]);
    }

    #[test]
    fn the_offset_of_an_unclosed_expression_is_reported() {
        assert_eq!(split("ab ${ x"), Err(Unclosed(3)));
        assert_eq!(split("${a} ${ it's }"), Err(Unclosed(5)));
        assert_eq!(split("${ { }"), Err(Unclosed(0)));
    }

    #[test]
    fn offsets_are_mapped_to_the_source() {
        let source = "$${a} b ${ x } c $${d}e";
        let pieces = split(source).expect("closed");
        let Piece::Literal(first) = &pieces[0] else {
            panic!("text first")
        };
        assert_eq!(first.in_source(0), 0);
        assert_eq!(
            &source[first.in_source(first.text.find('b').expect("b"))..][..1],
            "b"
        );
        let Piece::Expr { offset, .. } = &pieces[1] else {
            panic!("then the expression")
        };
        assert_eq!(&source[*offset..][..1], "x");
        let Piece::Literal(last) = &pieces[2] else {
            panic!("then text")
        };
        assert_eq!(
            &source[last.in_source(last.text.find('e').expect("e"))..],
            "e"
        );
    }

    proptest! {
        #[test]
        fn text_without_expressions_is_unchanged(text in r"[^$]{0,40}|(\$?[a-z{} \n]){0,20}\$?") {
            prop_assume!(!text.contains("${"));
            let joined: String = shown(&text).concat();
            prop_assert_eq!(joined, text);
        }

        #[test]
        fn escaped_text_is_restored(text in r"([$]{0,3}[{}a]{0,2}|.){0,20}") {
            let joined: String = shown(&text.replace("${", "$${")).concat();
            prop_assert_eq!(joined, text);
        }

        #[test]
        fn expressions_are_unchanged(
            parts in proptest::collection::vec((r"[^$]{0,8}", r"[a-z.]{1,8}"), 0..6),
        ) {
            let source: String = parts.iter().map(|(text, expr)| format!("{text}${{{expr}}}")).collect();
            let expected: Vec<String> = parts
                .iter()
                .flat_map(|(text, expr)| [text.clone(), format!("<{expr}>")])
                .filter(|piece| !piece.is_empty())
                .collect();
            prop_assert_eq!(shown(&source), expected);
        }

        #[test]
        fn garbage_never_panics(source in r#"([${}'"\\]|.){0,60}"#) {
            if let Ok(pieces) = split(&source) {
                for piece in pieces {
                    match piece {
                        Piece::Literal(literal) => {
                            prop_assert!(!literal.text.is_empty());
                            prop_assert!(literal.in_source(literal.text.len()) <= source.len());
                        }
                        Piece::Expr { source: inside, offset } => {
                            prop_assert!(source[offset..].starts_with(&inside));
                        }
                    }
                }
            }
        }
    }
}
