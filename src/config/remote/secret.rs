//! Takes keys, header values and passwords out of texts before they are printed or kept.

/// Shorter texts are not replaced: they are no secrets, and are found everywhere.
const SHORTEST: usize = 4;

/// Shorter words of a value that has several are not replaced on their own (`Bearer`, `Basic`).
const SHORTEST_WORD: usize = 8;

/// Texts that must not be shown, and what stands in place of each.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secrets(Vec<(String, String)>);

impl Secrets {
    /// Adds a text, which is shown as `[name]`.
    pub fn add(&mut self, text: &str, name: &str) {
        if text.len() < SHORTEST || self.0.iter().any(|(known, _)| known == text) {
            return;
        }
        self.0.push((text.to_owned(), format!("[{name}]")));
        // The longest first: one secret may be part of another.
        self.0
            .sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    }

    /// Adds a value and the words in it: a server quotes the key of `Bearer KEY` alone.
    pub fn add_value(&mut self, value: &str, name: &str) {
        self.add(value, name);
        let words =
            value.split(|c: char| c.is_whitespace() || ['=', ',', ';', ':', '&'].contains(&c));
        for word in words.filter(|word| word.len() >= SHORTEST_WORD) {
            self.add(word, name);
        }
    }

    /// `text` without the secrets, nor the beginning of one where the text was shortened (`…`).
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

/// `text` without a beginning of the secret that stands before a `…`.
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
    fn secrets_are_replaced_whole_in_words_and_cut() {
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
            // What quotes a server shortens it.
            ("wrong key sk-can…", "wrong key [OTHER]…"),
            ("wrong key sk-…", "wrong key sk-…"),
            ("one… two tok-cana…", "one… two [AUTHORIZATION]…"),
        ] {
            assert_eq!(secrets.hide(text), hidden, "{text}");
        }
        assert!(!format!("{secrets:?}").contains("canary"));
    }
}
