//! JSON lines: a template's suite, or a fixture made of rows.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use minijinja::Value;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::error::Result;
use crate::json_numbers::{Numbers, numbers};
use crate::text_file::line_without_mark;

use super::place::SourceFile;

/// Which row a flow takes: the rows in order, then all of them again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowOrder {
    /// Number of rows, at least 1.
    rows: usize,
}

impl RowOrder {
    pub fn new(rows: usize) -> Self {
        Self { rows: rows.max(1) }
    }

    /// Index of the row (from 0) of flow number `flow` (from 1).
    pub fn row(self, flow: usize) -> usize {
        (flow - 1) % self.rows
    }

    /// How many earlier flows took the same row.
    pub fn repeat(self, flow: usize) -> usize {
        (flow - 1) / self.rows
    }

    /// The inverse of [`Self::row`] and [`Self::repeat`].
    pub fn flow(self, row: usize, repeat: usize) -> usize {
        repeat * self.rows + row + 1
    }
}

/// A row of `--input` as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRow {
    /// Line in the file, from 1.
    pub line: usize,
    /// The JSON object, without white space around it.
    pub text: Arc<str>,
}

/// One row of a suite or an input, by which a flow differs from the others.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// Its `id`, or its number (from 1) if it has none.
    pub(super) id: String,
    /// Line in the file, from 1; 0 for the empty row of a template without a suite.
    pub(super) line: usize,
    /// The object, with its keys in the order of the file.
    pub(super) value: Value,
    /// As it was written, of the rows of an input.
    pub(super) text: Option<Arc<str>>,
}

impl Row {
    /// The single row of a template without a suite.
    pub(super) fn empty() -> Self {
        Self {
            id: "1".into(),
            line: 0,
            value: Value::from_pairs(Vec::<(Value, Value)>::new()),
            text: None,
        }
    }
}

/// The rows of a suite: at least one, with unique ids.
pub(super) fn suite(file: &SourceFile) -> Result<Vec<Row>> {
    let mut line_of: HashMap<String, usize> = HashMap::new();
    let mut rows = Vec::new();
    for Object {
        line,
        offset,
        value,
        ..
    } in objects(file)?
    {
        let given = value.get_attr("id").unwrap_or_default();
        let id = match given.as_str() {
            Some(id) if !id.trim().is_empty() => id.to_owned(),
            None if given.is_undefined() => (rows.len() + 1).to_string(),
            None if given.is_integer() => given.to_string(),
            _ => {
                return Err(file
                    .error(offset, "the row's `id` is neither text nor a whole number")
                    .hint("give each row an id such as \"id\": \"late-fees\", or none"));
            }
        };
        if let Some(first) = line_of.insert(id.clone(), line) {
            return Err(file
                .error(
                    offset,
                    format!("duplicate id `{id}`, first used in line {first}"),
                )
                .hint("row ids must be unique; a row without an id is named by its number"));
        }
        rows.push(Row {
            id,
            line,
            value,
            text: None,
        });
    }
    if rows.is_empty() {
        return Err(file
            .error(0, "the suite has no rows")
            .hint("write one JSON object per line, or leave `suite` out of the template"));
    }
    Ok(rows)
}

/// The first `limit` rows of an input file that was not made for flowbench. A row without a usable unique
/// `id` is named by its number.
pub(super) fn input(file: &SourceFile, limit: Option<usize>) -> Result<Vec<Row>> {
    let mut ids: HashSet<String> = HashSet::new();
    let mut rows = Vec::new();
    for Object {
        line, value, text, ..
    } in objects(file)?
    {
        if limit.is_some_and(|limit| rows.len() >= limit) {
            break;
        }
        let given = value.get_attr("id").unwrap_or_default();
        let number = (rows.len() + 1).to_string();
        let id = match given.as_str() {
            Some(id) if !id.trim().is_empty() => id.to_owned(),
            None if given.is_integer() => given.to_string(),
            _ => number.clone(),
        };
        let id = match ids.insert(id.clone()) {
            true => id,
            // The number of the row, with primes appended until it is unique.
            false => (0..)
                .map(|more| number.clone() + &"'".repeat(more))
                .find(|id| ids.insert(id.clone()))
                .unwrap_or(number),
        };
        rows.push(Row {
            id,
            line,
            value,
            text: Some(text.into()),
        });
    }
    if rows.is_empty() {
        return Err(file
            .error(0, "the input has no rows")
            .hint("write one JSON object per line"));
    }
    Ok(rows)
}

pub(super) struct Object<'f> {
    pub(super) line: usize,
    /// As it was written, without white space around it.
    text: &'f str,
    /// Byte offset of the line.
    offset: usize,
    pub(super) value: Value,
}

/// The objects of a file of JSON lines. Blank lines are skipped.
pub(super) fn objects(file: &SourceFile) -> Result<Vec<Object<'_>>> {
    let mut objects = Vec::new();
    let mut offset = 0;
    for (index, line) in file.text().split_inclusive('\n').enumerate() {
        let row = line_without_mark(line);
        if !row.trim().is_empty() {
            let value = object(file, offset + line.len() - row.len(), row.trim_end())?;
            objects.push(Object {
                line: index + 1,
                text: row.trim(),
                offset,
                value,
            });
        }
        offset += line.len();
    }
    Ok(objects)
}

fn object(file: &SourceFile, offset: usize, line: &str) -> Result<Value> {
    let Numbers { strict, texts } = numbers(line);
    let mut texts = texts.into_iter();
    let mut deserializer = serde_json::Deserializer::from_str(&strict);
    let read = Json(&mut texts).deserialize(&mut deserializer);
    let read = read.and_then(|value| deserializer.end().map(|()| value));
    let value = read.map_err(|error| {
        let text = error.to_string();
        // Drop the position in the line; the error has the position in the file.
        let what = text.split(" at line ").next().unwrap_or(&text);
        file.error(
            offset + error.column().saturating_sub(1).min(line.len()),
            format!("invalid JSON: {what}"),
        )
        .hint("each line is one JSON object, such as {\"id\": \"late-fees\", \"task\": \"…\"}")
    })?;
    if value.kind() != minijinja::value::ValueKind::Map {
        return Err(file
            .error(
                offset,
                format!("the row is {}, not an object", article(&value)),
            )
            .hint(
                "each line is one JSON object, such as {\"id\": \"late-fees\", \"task\": \"…\"}",
            ));
    }
    Ok(value)
}

fn article(value: &Value) -> String {
    use minijinja::value::ValueKind;
    match value.kind() {
        ValueKind::None => "null".into(),
        ValueKind::Seq => "an array".into(),
        kind => format!("a {kind}"),
    }
}

/// Deserializes a JSON value for templates. A custom visitor, because it must keep the keys in the order of
/// the file whatever features serde_json is built with (the expanded bytes depend on it), reject duplicate
/// keys, and take each number from its source text. The iterator yields one text per number.
struct Json<'n, 't>(&'n mut std::vec::IntoIter<&'t str>);

impl Json<'_, '_> {
    /// The next number. `read` is the parser's value, used if the texts run out.
    fn number(self, read: impl Into<Value>) -> Value {
        self.0.next().map_or_else(|| read.into(), exact)
    }
}

/// A number with all of its digits. A number that minijinja cannot represent (integers of more than 128 bits,
/// 1e400, NaN) becomes its text.
fn exact(text: &str) -> Value {
    if let Ok(value) = text.parse::<i64>() {
        return value.into();
    }
    if let Ok(value) = text.parse::<i128>() {
        return value.into();
    }
    if let Ok(value) = text.parse::<u128>() {
        return value.into();
    }
    let is_decimal = text.contains(['.', 'e', 'E']);
    match text.parse::<f64>() {
        Ok(value) if is_decimal && value.is_finite() => value.into(),
        _ => text.into(),
    }
}

impl<'de> DeserializeSeed<'de> for Json<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Json<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::from(()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(self.number(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(self.number(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(self.number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(Json(self.0))? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut pairs: Vec<(String, Value)> = Vec::new();
        while let Some(key) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(Json(self.0))?;
            if pairs.iter().any(|(known, _)| *known == key) {
                return Err(de::Error::custom(format_args!("duplicate key `{key}`")));
            }
            pairs.push((key, value));
        }
        Ok(Value::from_pairs(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Result<Vec<Row>> {
        suite(&SourceFile::of("x.suite.jsonl", text))
    }

    fn failure(text: &str) -> String {
        rows(text).expect_err("the suite is wrong").report()
    }

    #[test]
    fn rows_keep_their_ids_lines_and_key_order() {
        let rows = rows(
            "{\"id\":\"b\",\"z\":1,\"a\":[null,true,1.5,-2]}\r\n\n  {\"task\":\"t\"}\n{\"id\":7}",
        )
        .expect("the suite is right");
        let seen: Vec<_> = rows.iter().map(|row| (row.id.as_str(), row.line)).collect();
        assert_eq!(seen, [("b", 1), ("2", 3), ("7", 4)]);
        assert_eq!(
            rows[0].value.to_string(),
            "{'id': 'b', 'z': 1, 'a': [None, True, 1.5, -2]}"
        );
    }

    #[test]
    fn flows_take_the_rows_in_turn() {
        let order = RowOrder::new(3);
        for flow in 1..=7 {
            assert_eq!(order.flow(order.row(flow), order.repeat(flow)), flow);
        }
        assert_eq!((order.row(5), order.repeat(5)), (1, 1));
    }

    #[test]
    fn numbers_keep_their_digits() {
        let long = "9".repeat(60);
        let text = format!(
            "{{\"a\": 12345678901234567890123, \"b\": [-12345678901234567890, 1.0, 1e400, 0.1], \
             \"c\": {{\"d\": NaN, \"e\": 18446744073709551615, \"f\": -Infinity}}, \"g\": {long}}}"
        );
        let row = &rows(&text).expect("the suite is right")[0];
        assert_eq!(
            row.value.to_string(),
            format!(
                "{{'a': 12345678901234567890123, 'b': [-12345678901234567890, 1.0, '1e400', 0.1], \
                 'c': {{'d': 'NaN', 'e': 18446744073709551615, 'f': '-Infinity'}}, 'g': '{long}'}}"
            )
        );
        let id = &rows("{\"id\": 12345678901234567890123}").expect("right")[0].id;
        assert_eq!(id, "12345678901234567890123");
        insta::assert_snapshot!(failure("{\"a\": NaN, \"b\": 007}"), @r#"
        error: x.suite.jsonl:1:18: invalid JSON: invalid number
        hint: each line is one JSON object, such as {"id": "late-fees", "task": "…"}
        "#);
    }

    #[test]
    fn a_byte_order_mark_at_the_start_of_a_line_is_skipped() {
        let rows = rows("{\"id\": \"a\"}\n\u{feff}{\"id\": \"b\"}\r\n\u{feff}\n").expect("right");
        let ids: Vec<&str> = rows.iter().map(|row| row.id.as_str()).collect();
        assert_eq!(ids, ["a", "b"]);
    }

    #[test]
    fn errors_have_a_position() {
        insta::assert_snapshot!(failure("{\"id\": 1}\n{\"id\": 2,}\n"), @r#"
        error: x.suite.jsonl:2:10: invalid JSON: trailing comma
        hint: each line is one JSON object, such as {"id": "late-fees", "task": "…"}
        "#);
        insta::assert_snapshot!(failure("{\"task\": \"a\""), @r#"
        error: x.suite.jsonl:1:12: invalid JSON: EOF while parsing an object
        hint: each line is one JSON object, such as {"id": "late-fees", "task": "…"}
        "#);
        insta::assert_snapshot!(failure("{\"a\": 1, \"a\": 2}"), @r#"
        error: x.suite.jsonl:1:16: invalid JSON: duplicate key `a`
        hint: each line is one JSON object, such as {"id": "late-fees", "task": "…"}
        "#);
        insta::assert_snapshot!(failure("{} {}"), @r#"
        error: x.suite.jsonl:1:4: invalid JSON: trailing characters
        hint: each line is one JSON object, such as {"id": "late-fees", "task": "…"}
        "#);
        insta::assert_snapshot!(failure("{}\n[1]"), @r#"
        error: x.suite.jsonl:2:1: the row is an array, not an object
        hint: each line is one JSON object, such as {"id": "late-fees", "task": "…"}
        "#);
        insta::assert_snapshot!(failure("\n \n"), @"
        error: x.suite.jsonl:1:1: the suite has no rows
        hint: write one JSON object per line, or leave `suite` out of the template
        ");
        insta::assert_snapshot!(failure("{\"id\": [1]}"), @r#"
        error: x.suite.jsonl:1:1: the row's `id` is neither text nor a whole number
        hint: give each row an id such as "id": "late-fees", or none
        "#);
        insta::assert_snapshot!(failure("{\"id\": \"a\"}\n\n{\"id\": \"a\"}"), @"
        error: x.suite.jsonl:3:1: duplicate id `a`, first used in line 1
        hint: row ids must be unique; a row without an id is named by its number
        ");
        insta::assert_snapshot!(failure("{}\n{\"id\": 1}"), @"
        error: x.suite.jsonl:2:1: duplicate id `1`, first used in line 1
        hint: row ids must be unique; a row without an id is named by its number
        ");
    }
}
