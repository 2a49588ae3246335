//! Checks the merges of a `tokenizer.json`, on which the library relies: it panics at a merge that is longer than
//! every token, or whose second part is shorter than the prefix of continued words.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The `model` of a `tokenizer.json`, whatever its kind.
#[derive(Debug, Default, serde::Deserialize)]
pub(super) struct Model {
    #[serde(default)]
    vocab: Longest,
    #[serde(default)]
    merges: Merges,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
}

/// Length of the longest key in bytes; 0 of anything but an object.
#[derive(Debug, Default)]
struct Longest(usize);

/// The length of the first part in bytes, and the second part. Empty for anything but a list.
#[derive(Debug, Default)]
struct Merges(Vec<(usize, String)>);

impl Model {
    /// The first merge that the library cannot take, by its number from 0 and its second part.
    pub(super) fn bad_merge(&self) -> Option<(usize, &str)> {
        let prefix = self
            .continuing_subword_prefix
            .as_ref()
            .map_or(0, String::len);
        let is_bad = |(first, second): &(usize, String)| {
            !second.is_char_boundary(prefix) || first + second.len() - prefix > self.vocab.0
        };
        let merges = self.merges.0.iter();
        let bad = merges.enumerate().find(|(_, merge)| is_bad(merge));
        bad.map(|(number, (_, second))| (number, second.as_str()))
    }
}

/// Visits any value; what is not overridden is ignored.
macro_rules! ignores_others {
    ($default:expr) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a part of a tokenizer")
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok($default)
        }

        fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
            Ok($default)
        }

        fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
            Ok($default)
        }

        fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
            Ok($default)
        }

        fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
            Ok($default)
        }
    };
}

impl<'de> Deserialize<'de> for Longest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Longest;

            ignores_others!(Longest(0));

            fn visit_str<E>(self, _: &str) -> Result<Longest, E> {
                Ok(Longest(0))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Longest, A::Error> {
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Longest(0))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Longest, A::Error> {
                let mut longest = 0;
                while let Some((key, _)) = members.next_entry::<Cow<'_, str>, IgnoredAny>()? {
                    longest = longest.max(key.len());
                }
                Ok(Longest(longest))
            }
        }
        deserializer.deserialize_any(Keys)
    }
}

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Merges;

            ignores_others!(Merges::default());

            fn visit_str<E>(self, _: &str) -> Result<Merges, E> {
                Ok(Merges::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Merges, A::Error> {
                let mut merges = Vec::new();
                while let Some(Merge(merge)) = items.next_element()? {
                    merges.extend(merge);
                }
                Ok(Merges(merges))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Merges, A::Error> {
                while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Merges::default())
            }
        }
        deserializer.deserialize_any(List)
    }
}

/// A merge, `"a b"` or `["a", "b"]`; `None` of anything else, which the library refuses.
struct Merge(Option<(usize, String)>);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Parts;
        impl<'de> Visitor<'de> for Parts {
            type Value = Merge;

            ignores_others!(Merge(None));

            fn visit_str<E>(self, text: &str) -> Result<Merge, E> {
                let parts = text.split_once(' ');
                Ok(Merge(
                    parts.map(|(first, second)| (first.len(), second.to_owned())),
                ))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Merge, A::Error> {
                let first: Option<serde_json::Value> = items.next_element()?;
                let second: Option<serde_json::Value> = items.next_element()?;
                while items.next_element::<IgnoredAny>()?.is_some() {}
                let merge = match (first, second) {
                    (
                        Some(serde_json::Value::String(first)),
                        Some(serde_json::Value::String(second)),
                    ) => Some((first.len(), second)),
                    _ => None,
                };
                Ok(Merge(merge))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Merge, A::Error> {
                while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Merge(None))
            }
        }
        deserializer.deserialize_any(Parts)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merges_on_which_the_library_panics_are_found() {
        let bad = |model: serde_json::Value| {
            let model: Model = serde_json::from_value(model).expect("any model");
            model
                .bad_merge()
                .map(|(number, second)| (number, second.to_owned()))
        };
        let vocab = json!({"a": 0, "b": 1, "ab": 2, "##é": 3});
        assert_eq!(
            bad(json!({"vocab": vocab, "merges": ["a b", ["a", "b"]]})),
            None
        );
        let second = |text: &str| Some((1, text.to_owned()));
        assert_eq!(
            bad(json!({"vocab": {"ab": 0}, "merges": ["a b", "a bcd"]})),
            second("bcd")
        );
        let prefixed = |second: &str| {
            bad(json!({"vocab": vocab, "merges": ["a ##é", ["a", second]],
                "continuing_subword_prefix": "##"}))
        };
        assert_eq!(prefixed("#"), second("#"));
        assert_eq!(prefixed("aé"), second("aé"));
        assert_eq!(prefixed("##"), None);
        for other in [
            json!({"vocab": [["a", -1.0]], "unk_id": 0}),
            json!({"vocab": 3, "merges": {"a": [1]}}),
            json!({"merges": [1, null, {"a": 2}, ["a"], [1, 2, 3], true, 1.5]}),
            json!({}),
        ] {
            assert_eq!(bad(other), None);
        }
    }
}
