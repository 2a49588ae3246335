//! Limits of template expressions, so that one that never ends or asks for a text of gigabytes is an error, as
//! minijinja has them for `range` and `*` only.

use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State};
use minijinja_contrib::pycompat;

/// Instructions of one rendering: about a second. A loop over all files of a large fixture takes a few thousand.
pub(super) const INSTRUCTIONS: u64 = 20_000_000;

/// Bytes of a text, and elements of a list, as minijinja has it for `*`.
const LARGEST: usize = 100_000_000;

/// The largest width, count or precision.
const WIDEST: i64 = 1_000_000;

type Check = fn(&[Value]) -> Option<&'static str>;

/// The filters whose result can be far larger than their arguments, by the name of the limited and the original
/// one, and what they refuse.
const FILTERS: [(&str, &str, Check); 6] = [
    ("batch", "batch unlimited", numbers),
    ("format", "format unlimited", widths),
    ("indent", "indent unlimited", indentation),
    ("join", "join unlimited", joined),
    ("replace", "replace unlimited", replaced),
    ("slice", "slice unlimited", numbers),
];

/// Sets the limits, and adds Python's methods.
pub(super) fn limit(environment: &mut Environment) {
    environment.set_fuel(Some(INSTRUCTIONS));
    environment.add_filter("batch unlimited", minijinja::filters::batch);
    environment.add_filter("format unlimited", minijinja::filters::format);
    environment.add_filter("indent unlimited", minijinja::filters::indent);
    environment.add_filter("join unlimited", minijinja::filters::join);
    environment.add_filter("replace unlimited", minijinja::filters::replace);
    environment.add_filter("slice unlimited", minijinja::filters::slice);
    environment.add_filter("tojson unlimited", minijinja::filters::tojson);
    for (name, original, check) in FILTERS {
        add(environment, name, original, check);
    }
    add(environment, "tojson", "tojson unlimited", numbers);
    environment.set_unknown_method_callback(|state, value, method, arguments| {
        let all: Vec<Value> = std::iter::once(value).chain(arguments).cloned().collect();
        let refused = match method {
            "format" => widths(&all),
            "replace" => replaced(&all),
            // The joiner comes first here.
            "join" => all
                .get(..2)
                .and_then(|of| joined(&[of[1].clone(), of[0].clone()])),
            _ => None,
        };
        match refused {
            Some(why) => Err(too_large(why)),
            None => pycompat::unknown_method_callback(state, value, method, arguments),
        }
    });
}

fn add(environment: &mut Environment, name: &'static str, original: &'static str, check: Check) {
    let filter = move |state: &mut State, arguments: Rest<ValueOrKwargs>| {
        let arguments = arguments.into_values();
        match check(&arguments) {
            Some(why) => Err(too_large(why)),
            None => state.apply_filter(original, &arguments),
        }
    };
    environment.add_filter(name, filter);
}

fn too_large(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, why)
}

/// No number among the arguments after the first, by position or by name, is too large.
fn numbers(arguments: &[Value]) -> Option<&'static str> {
    let is_large = |value: &Value| {
        value.kind() == ValueKind::Number && value.as_i64().is_none_or(|number| number > WIDEST)
    };
    let any = arguments.iter().skip(1).any(|value| {
        let named = || {
            let names = value.try_iter().into_iter().flatten();
            names
                .filter_map(|name| value.get_item(&name).ok())
                .any(|value| is_large(&value))
        };
        is_large(value) || (value.kind() == ValueKind::Map && named())
    });
    any.then_some("the number is too large")
}

/// No width or precision in a format, or among the arguments if it takes some from there, is too large.
fn widths(arguments: &[Value]) -> Option<&'static str> {
    let format = arguments.first()?.as_str()?;
    let digits = |word: &str| word.parse::<i64>().is_ok_and(|number| number <= WIDEST);
    let mut words = format.split(|c: char| !c.is_ascii_digit());
    let written = words.any(|word| !word.is_empty() && !digits(word));
    let taken = (format.contains('*') || format.contains(":{") || format.contains(".{"))
        && numbers(arguments).is_some();
    (written || taken).then_some("the width is too large")
}

fn indentation(arguments: &[Value]) -> Option<&'static str> {
    if let Some(why) = numbers(arguments) {
        return Some(why);
    }
    let text = arguments.first()?.as_str()?;
    let widest = arguments.iter().skip(1).filter_map(Value::as_usize).max();
    let width = widest.unwrap_or(WIDEST as usize);
    let bytes = (text.lines().count() + 1).saturating_mul(width);
    (widest.is_some() && bytes > LARGEST).then_some("the indented text is too large")
}

fn joined(arguments: &[Value]) -> Option<&'static str> {
    let [items, joiner, ..] = arguments else {
        return None;
    };
    let bytes = items.len()?.saturating_mul(joiner.as_str()?.len());
    (bytes > LARGEST).then_some("the joined text is too large")
}

fn replaced(arguments: &[Value]) -> Option<&'static str> {
    let [text, from, to, ..] = arguments else {
        return None;
    };
    let matches = text.as_str()?.matches(from.as_str()?).count();
    let bytes = matches.saturating_mul(to.as_str()?.len());
    (bytes > LARGEST).then_some("the text with replacements is too large")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluate(source: &str) -> Result<String, String> {
        let mut environment = Environment::new();
        limit(&mut environment);
        let rendered = environment.render_str(source, minijinja::context!(ten => "x".repeat(10)));
        rendered.map_err(|error| error.to_string())
    }

    #[test]
    fn filters_work_as_before() {
        for (source, expected) in [
            ("{{ 'a\nb' | indent(2) }}", "a\n  b"),
            ("{{ 'a\nb' | indent(width=1, first=true) }}", " a\n b"),
            ("{{ '%05d|%s' | format(12345678, 'x') }}", "12345678|x"),
            ("{{ '{:>4}'.format(1) }}", "   1"),
            ("{{ [1, 2, 3] | batch(2, 0) | list }}", "[[1, 2], [3, 0]]"),
            (
                "{{ [1, 2, 3] | join('-') }} {{ '-'.join(['a', 'b']) }}",
                "1-2-3 a-b",
            ),
            (
                "{{ 'aa' | replace('a', 'b') }} {{ 'aa'.replace('a', 'c') }}",
                "bb cc",
            ),
            ("{{ [1] | tojson(indent=1) }}", "[\n 1\n]"),
        ] {
            assert_eq!(evaluate(source).as_deref(), Ok(expected), "{source}");
        }
    }

    #[test]
    fn nothing_runs_or_grows_without_end() {
        for source in [
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "{{ '%9999999999d' | format(1) }}",
            "{{ '%*d' | format(9999999999, 1) }}",
            "{{ '{:>9999999999}'.format(1) }}",
            "{{ '{:>{}}'.format(1, 9999999999) }}",
            "{{ ten | indent(9999999999) }}",
            "{{ ten | indent(width=9999999999) }}",
            "{{ (ten * 100000) | indent(99999999) }}",
            "{{ [1] | batch(9999999999, 0) | list }}",
            "{{ [1] | slice(9999999999) | list }}",
            "{{ [1] | tojson(indent=9999999999) }}",
            "{{ range(100000) | list | join(ten * 1000) }}",
            "{{ (ten * 1000).join(range(100000) | list) }}",
            "{{ (ten * 1000) | replace('', ten * 10000) }}",
            "{{ (ten * 1000).replace('x', ten * 10000) }}",
            "{{ ten * 9999999999 }}",
        ] {
            assert!(evaluate(source).is_err(), "{source}");
        }
    }
}
