//! Redacts keys, header values and passwords from text that is printed or stored.

/// Shorter strings are not redacted: they are not secret, and occur everywhere.
const SHORTEST: usize = 4;

/// In a value of several words, shorter words (`Bearer`, `Basic`) are not redacted on their own.
const SHORTEST_WORD: usize = 8;

/// Secret strings, each with its replacement.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets(Vec<(String, String)>);

impl Secrets {
    /// Adds a secret, which is shown as `[name]`.
    pub fn add(&mut self, text: &str, name: &str) {
        if text.len() < SHORTEST || self.0.iter().any(|(known, _)| known == text) {
            return;
        }
        self.0.push((text.to_owned(), format!("[{name}]")));
        // Longest first: one secret may be part of another.
        self.0
            .sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    }

    /// Adds a value and its words: a server may quote only the key of `Bearer KEY`.
    pub fn add_value(&mut self, value: &str, name: &str) {
        self.add(value, name);
        let words =
            value.split(|c: char| c.is_whitespace() || ['=', ',', ';', ':', '&'].contains(&c));
        for word in words.filter(|word| word.len() >= SHORTEST_WORD) {
            self.add(word, name);
        }
    }

    /// Redacts the secrets in `text`, including a prefix of one where the text was truncated (`…`).
    pub fn hide(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (secret, name) in &self.0 {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), name);
            }
            text = hide_cut(&text, secret, name);
        }
        text
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secrets({})", self.0.len())
    }
}

/// Redacts a prefix of the secret that is followed by `…`.
fn hide_cut(text: &str, secret: &str, name: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    for piece in text.split_inclusive('…') {
        let shown = piece.strip_suffix('…').and_then(|before| {
            let lengths = (SHORTEST..secret.len()).rev();
            let cut = lengths
                .filter_map(|length| secret.get(..length))
                .find(|start| before.ends_with(start))?;
            Some(format!("{}{name}…", &before[..before.len() - cut.len()]))
        });
        kept.push_str(shown.as_deref().unwrap_or(piece));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_redacted_whole_by_word_and_truncated() {
        let mut secrets = Secrets::default();
        secrets.add("sk-canary-1", "API_KEY");
        secrets.add("sk-canary-1-long", "OTHER");
        secrets.add_value("Bearer tok-canary", "AUTHORIZATION");
        secrets.add("eu", "REGION");
        for (text, hidden) in [
            ("no sk-canary-1 here", "no [API_KEY] here"),
            ("sk-canary-1-long", "[OTHER]"),
            (
                "Bearer tok-canary, tok-canary",
                "[AUTHORIZATION], [AUTHORIZATION]",
            ),
            ("a Bearer of eu news", "a Bearer of eu news"),
            // Servers truncate what they quote.
            ("wrong key sk-can…", "wrong key [OTHER]…"),
            ("wrong key sk-…", "wrong key sk-…"),
            ("one… two tok-cana…", "one… two [AUTHORIZATION]…"),
        ] {
            assert_eq!(secrets.hide(text), hidden, "{text}");
        }
        assert!(!format!("{secrets:?}").contains("canary"));
    }
}
