//! JSON of github-action-benchmark: `tool: customSmallerIsBetter` or `customBiggerIsBetter`. The action takes
//! one direction per file (<https://github.com/benchmark-action/github-action-benchmark>).

use serde::Serialize;

use super::metrics::{Better, Figure};
use super::{json, no_figure};
use crate::error::Result;
use crate::record::RunRecord;

/// An entry. The action identifies a series by its name.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    name: String,
    unit: &'static str,
    value: f64,
    /// Standard deviation. The action reads a number after `±`, of two characters at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    range: Option<String>,
    extra: Extra<'a>,
}

/// The tooltip of a point.
#[derive(Debug)]
struct Extra<'a>(&'a Figure<'a>);

impl Serialize for Extra<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = match self.0.spread() {
            None => self.0.metric.help.to_owned(),
            Some(spread) => {
                let what = if spread.median.is_some() {
                    "median"
                } else {
                    "mean"
                };
                let interval = spread.median_interval.map_or_else(String::new, |interval| {
                    format!(
                        "\n{:.0} % interval {:.3} to {:.3}",
                        100.0 * interval.coverage,
                        interval.low,
                        interval.high
                    )
                });
                format!(
                    "{}\n{what} of {}{interval}\nmin {:.3}, max {:.3}",
                    self.0.metric.help, spread.count, spread.min, spread.max
                )
            }
        };
        serializer.serialize_str(&text)
    }
}

/// The figures of one direction.
///
/// # Errors
/// Exit code 4 if there are none: the action would fail with a message that does not say why.
pub(super) fn text(figures: &[Figure<'_>], better: Better, run: &RunRecord) -> Result<String> {
    let template = &run.expansion.template;
    let entries: Vec<Entry<'_>> = (figures.iter())
        .filter(|figure| figure.metric.better == better)
        .map(|figure| Entry {
            name: format!("{}/{}", figure.subject(template), figure.metric.name),
            unit: figure.metric.unit,
            value: figure.value(),
            range: (figure.spread())
                .and_then(|spread| spread.deviation)
                .map(|deviation| format!("± {deviation:.3}")),
            extra: Extra(figure),
        })
        .collect();
    if entries.is_empty() {
        return Err(no_figure(run, "it has no figure of this direction"));
    }
    json(&entries)
}
