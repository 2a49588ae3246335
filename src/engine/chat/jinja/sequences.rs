//! Filters over the items of a value.

use std::cmp::Ordering;

use super::arguments::{self, Arguments};
use super::text::Text;
use super::value::{Number, Value};
use super::{Failure, Outcome, checks, evaluate, filters, operators, print, strings};

pub(super) const NAMES: [&str; 20] = [
    "batch",
    "dictsort",
    "first",
    "groupby",
    "items",
    "join",
    "last",
    "list",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "reverse",
    "select",
    "selectattr",
    "slice",
    "sort",
    "sum",
    "unique",
];

pub(super) fn apply(name: &str, value: Value, arguments: Arguments) -> Outcome<Value> {
    match name {
        "list" => Value::list(value.items()?.to_vec()),
        "first" => {
            let items = value.items()?;
            Ok(items.first().cloned().unwrap_or_else(|| nothing("first")))
        }
        "last" => {
            let items = value.items()?;
            Ok(items.last().cloned().unwrap_or_else(|| nothing("last")))
        }
        "items" => match &value {
            Value::Undefined(_) => Value::stream(Vec::new()),
            Value::Dict(dict) => {
                let pair =
                    |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()]);
                Value::stream(dict.entries().iter().map(pair).collect::<Outcome<_>>()?)
            }
            _ => Err(Failure::new("Can only get item pairs from a mapping.")),
        },
        "reverse" => match &value {
            Value::Text(text) => {
                let mut reversed = Text::default();
                for (at, c) in text.as_str().char_indices().rev() {
                    reversed.push_slice(text, at..at + c.len_utf8());
                }
                Ok(Value::text(reversed))
            }
            value => Value::stream(value.items()?.iter().rev().cloned().collect()),
        },
        "join" => {
            let [separator, attribute] = arguments.bind(name, ["d", "attribute"])?;
            let separator = match separator {
                Some(separator) => print::string(&separator)?,
                None => Text::default(),
            };
            let mut joined = Text::default();
            for (index, item) in value.items()?.iter().enumerate() {
                if index > 0 {
                    joined.push(&separator);
                }
                let item = attribute_of(item, attribute.as_ref())?;
                print::push_string(&item, &mut joined)?;
            }
            Ok(Value::text(joined))
        }
        "select" | "reject" | "selectattr" | "rejectattr" => select(name, &value, arguments),
        "map" => map(&value, arguments),
        "sort" => {
            let names = ["reverse", "case_sensitive", "attribute"];
            let [reverse, sensitive, attribute] = arguments.bind(name, names)?;
            let sensitive = arguments::flag(sensitive, false);
            let reverse = arguments::flag(reverse, false);
            Value::list(sorted(&value, attribute.as_ref(), sensitive, reverse)?)
        }
        "unique" => {
            let [sensitive, attribute] = arguments.bind(name, ["case_sensitive", "attribute"])?;
            let sensitive = arguments::flag(sensitive, false);
            let mut keys: Vec<Value> = Vec::new();
            let mut kept = Vec::new();
            for item in value.items()?.iter() {
                let key = key_of(item, attribute.as_ref(), sensitive)?;
                if !keys.iter().any(|known| known.equals(&key)) {
                    keys.push(key);
                    kept.push(item.clone());
                }
            }
            Value::stream(kept)
        }
        "min" | "max" => {
            let [sensitive, attribute] = arguments.bind(name, ["case_sensitive", "attribute"])?;
            let sensitive = arguments::flag(sensitive, false);
            let items = sorted(&value, attribute.as_ref(), sensitive, name == "max")?;
            Ok(items.first().cloned().unwrap_or_else(|| nothing(name)))
        }
        "sum" => {
            let [attribute, start] = arguments.bind(name, ["attribute", "start"])?;
            let mut sum = start.unwrap_or(Value::Int(0));
            for item in value.items()?.iter() {
                let item = attribute_of(item, attribute.as_ref())?;
                sum = operators::arithmetic(super::ast::Operator::Add, &sum, &item)?;
            }
            Ok(sum)
        }
        "groupby" => group(&value, arguments),
        "dictsort" => dict_sorted(&value, arguments),
        "batch" | "slice" => parts(name, &value, arguments),
        _ => Err(Failure::new(format!("No filter named '{name}'."))),
    }
}

fn nothing(name: &str) -> Value {
    Value::Undefined(format!("No {name} item, sequence was empty.").into())
}

/// Looks up a dotted path such as `a.b.0`. Without a path, returns the item itself.
fn attribute_of(item: &Value, path: Option<&Value>) -> Outcome<Value> {
    match path {
        None | Some(Value::None) => Ok(item.clone()),
        Some(Value::Text(path)) => {
            let mut value = item.clone();
            for part in path.as_str().split('.') {
                let index = part.parse().map_or_else(|_| Value::plain(part), Value::Int);
                value = evaluate::subscript(&value, &index)?;
            }
            Ok(value)
        }
        Some(index) => evaluate::subscript(item, index),
    }
}

/// The sort key of an item. Strings compare case-insensitively unless `sensitive`.
fn key_of(item: &Value, path: Option<&Value>, sensitive: bool) -> Outcome<Value> {
    let key = attribute_of(item, path)?;
    Ok(match key {
        Value::Text(text) if !sensitive => Value::text(strings::cased(&text, "lower")),
        key => key,
    })
}

fn sorted(
    value: &Value,
    path: Option<&Value>,
    sensitive: bool,
    reverse: bool,
) -> Outcome<Vec<Value>> {
    let keys_of = |item: &Value| -> Outcome<Vec<Value>> {
        match path {
            Some(Value::Text(paths)) if paths.as_str().contains(',') => {
                let paths = paths.as_str().split(',').map(Value::plain);
                paths
                    .map(|path| key_of(item, Some(&path), sensitive))
                    .collect()
            }
            path => Ok(vec![key_of(item, path, sensitive)?]),
        }
    };
    let mut keyed = Vec::new();
    for item in value.items()?.iter() {
        keyed.push((keys_of(item)?, item.clone()));
    }
    let mut failure = None;
    keyed.sort_by(|(left, _), (right, _)| {
        let mut ordering = Ordering::Equal;
        for (left, right) in left.iter().zip(right) {
            ordering = match operators::order(left, right) {
                Ok(ordering) => ordering.unwrap_or(Ordering::Equal),
                Err(error) => {
                    failure.get_or_insert(error);
                    Ordering::Equal
                }
            };
            if ordering.is_ne() {
                break;
            }
        }
        if reverse {
            ordering.reverse()
        } else {
            ordering
        }
    });
    match failure {
        Some(error) => Err(error),
        None => Ok(keyed.into_iter().map(|(_, item)| item).collect()),
    }
}

fn select(name: &str, value: &Value, mut arguments: Arguments) -> Outcome<Value> {
    let by_attribute = name.ends_with("attr");
    let mut given = std::mem::take(&mut arguments.positional).into_iter();
    let path = match by_attribute {
        true => Some(arguments::required(given.next(), name, "attribute")?),
        false => None,
    };
    let test = given.next();
    let others: Vec<Value> = given.collect();
    let wanted = name.starts_with("select");
    let mut kept = Vec::new();
    for item in value.items()?.iter() {
        let tested = attribute_of(item, path.as_ref())?;
        let passed = match &test {
            None => tested.is_true(),
            Some(test) => {
                let arguments = Arguments {
                    positional: others.clone(),
                    named: arguments.named.clone(),
                };
                checks::check(arguments::text(test)?.as_str(), &tested, arguments)?
            }
        };
        if passed == wanted {
            kept.push(item.clone());
        }
    }
    Value::stream(kept)
}

fn map(value: &Value, mut arguments: Arguments) -> Outcome<Value> {
    let mut mapped = Vec::new();
    if arguments.positional.is_empty() {
        let [attribute, default] = arguments.bind("map", ["attribute", "default"])?;
        let attribute = arguments::required(attribute, "map", "attribute")?;
        for item in value.items()?.iter() {
            let found = attribute_of(item, Some(&attribute))?;
            mapped.push(match (&found, &default) {
                (Value::Undefined(_), Some(default)) => default.clone(),
                _ => found,
            });
        }
        return Value::stream(mapped);
    }
    let filter = arguments.positional.remove(0);
    let filter = arguments::text(&filter)?.as_str();
    for item in value.items()?.iter() {
        let arguments = Arguments {
            positional: arguments.positional.clone(),
            named: arguments.named.clone(),
        };
        mapped.push(filters::apply(filter, item.clone(), arguments)?);
    }
    Value::stream(mapped)
}

fn group(value: &Value, arguments: Arguments) -> Outcome<Value> {
    let names = ["attribute", "default", "case_sensitive"];
    let [attribute, default, sensitive] = arguments.bind("groupby", names)?;
    let attribute = arguments::required(attribute, "groupby", "attribute")?;
    let sensitive = arguments::flag(sensitive, false);
    let key = |item: &Value| -> Outcome<Value> {
        let found = attribute_of(item, Some(&attribute))?;
        Ok(match (&found, &default) {
            (Value::Undefined(_), Some(default)) => default.clone(),
            _ => found,
        })
    };
    let mut keyed = Vec::new();
    for item in value.items()?.iter() {
        keyed.push(Value::tuple(vec![key(item)?, item.clone()])?);
    }
    let keyed = Value::list(keyed)?;
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for pair in sorted(&keyed, Some(&Value::Int(0)), sensitive, false)? {
        let (name, item) = (
            evaluate::subscript(&pair, &Value::Int(0))?,
            pair.items()?[1].clone(),
        );
        let same = |last: &Value| -> Outcome<bool> {
            Ok(key_of(last, None, sensitive)?.equals(&key_of(&name, None, sensitive)?))
        };
        match groups.last_mut() {
            Some((last, items)) if same(last)? => items.push(item),
            _ => groups.push((name, vec![item])),
        }
    }
    let group = |(name, items)| Value::tuple(vec![name, Value::list(items)?]);
    Value::list(groups.into_iter().map(group).collect::<Outcome<_>>()?)
}

fn dict_sorted(value: &Value, arguments: Arguments) -> Outcome<Value> {
    let names = ["case_sensitive", "by", "reverse"];
    let [sensitive, by, reverse] = arguments.bind("dictsort", names)?;
    let Value::Dict(dict) = value else {
        let what = format!("dictsort takes a dictionary, not '{}'", value.type_name());
        return Err(Failure::new(what));
    };
    let place = match &by {
        None => 0,
        Some(by) => match arguments::text(by)?.as_str() {
            "key" => 0,
            "value" => 1,
            _ => {
                let what = "You can only sort by either \"key\" or \"value\"";
                return Err(Failure::new(what));
            }
        },
    };
    let pair = |(key, value): &(Value, Value)| Value::tuple(vec![key.clone(), value.clone()]);
    let pairs = Value::list(dict.entries().iter().map(pair).collect::<Outcome<_>>()?)?;
    let sensitive = arguments::flag(sensitive, false);
    let reverse = arguments::flag(reverse, false);
    Value::list(sorted(
        &pairs,
        Some(&Value::Int(place)),
        sensitive,
        reverse,
    )?)
}

/// `batch` makes lists of `count` items, `slice` makes `count` lists.
fn parts(name: &str, value: &Value, arguments: Arguments) -> Outcome<Value> {
    let [count, fill] = arguments.bind(name, ["count", "fill_with"])?;
    let count = arguments::required(count, name, "count")?;
    let count = match count.number() {
        Some(Number::Int(count)) => usize::try_from(count).ok().filter(|count| *count > 0),
        _ => None,
    };
    let count = count.filter(|count| *count <= 1_000_000);
    let Some(count) = count else {
        return Err(Failure::new(format!(
            "{name} takes a count from 1 to 1000000"
        )));
    };
    let items = value.items()?;
    let fill = arguments::given(fill);
    let mut lists = Vec::new();
    if name == "batch" {
        for batch in items.chunks(count) {
            let mut batch = batch.to_vec();
            if let Some(fill) = &fill {
                batch.resize(count, fill.clone());
            }
            lists.push(Value::list(batch)?);
        }
        return Value::stream(lists);
    }
    let (least, longer) = (items.len() / count, items.len() % count);
    let mut start = 0;
    for index in 0..count {
        let end = start + least + usize::from(index < longer);
        let mut slice = items[start..end].to_vec();
        if let Some(fill) = fill.as_ref().filter(|_| index >= longer) {
            slice.push(fill.clone());
        }
        lists.push(Value::list(slice)?);
        start = end;
    }
    Value::stream(lists)
}
