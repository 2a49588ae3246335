//! The history as a self-contained HTML page with a chart.

use serde_json::{Value, json};

use super::{figure, percent, plain_percent, title};
use crate::error::Result;
use crate::record::trend::{Level, Trend, TrendRun};
use crate::report::html::render;

/// The chart's size in SVG units.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 260.0;

/// Space above and below the values, as a share of their range.
const MARGIN: f64 = 0.12;

/// Half the width of a level's band, in standard deviations.
const BAND: f64 = 2.0;

/// Renders the page.
///
/// # Errors
/// Exit code 110 if the template fails to render, which would be a bug.
pub fn html(trend: &Trend) -> Result<String> {
    let chart = Chart::new(trend);
    let values = json!({
        "title": title(trend),
        "template": trend.template,
        "mode": trend.mode,
        "earlier": trend.earlier_runs,
        "other": trend.other_runs,
        "chart": chart.as_ref().map(|chart| chart.values(trend)),
        "levels": trend.levels.iter().map(|level| self::level(trend, level)).collect::<Vec<Value>>(),
        "runs": trend.runs.iter().rev().map(run).collect::<Vec<Value>>(),
        "version": env!("CARGO_PKG_VERSION"),
    });
    render(include_str!("page.html"), &values)
}

fn run(run: &TrendRun) -> Value {
    json!({
        "id": run.run_id,
        "value": run.value.map(figure),
        "flows": run.flows,
        "invalid": run.invalid.join(", "),
        "labels": run.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>(),
        "kept": run.kept,
    })
}

fn level(trend: &Trend, level: &Level) -> Value {
    let name = |index: usize| trend.runs.get(index).map(|run| run.run_id.clone());
    json!({
        "from": name(level.first),
        "mean": figure(level.mean),
        "noise": level.deviation.map(plain_percent),
        "change": level.change.map(percent),
        "worse": level.change.is_some_and(|change| change > 0.0),
        "differs": level.differs,
        "causes": level.causes.iter().map(|cause| {
            json!({"part": percent(cause.part), "step": cause.step, "term": cause.term, "why": cause.why})
        }).collect::<Vec<Value>>(),
    })
}

/// Places of runs and values.
struct Chart {
    count: usize,
    low: f64,
    high: f64,
}

impl Chart {
    fn new(trend: &Trend) -> Option<Self> {
        let values: Vec<f64> = trend.runs.iter().filter_map(|run| run.value).collect();
        let (low, high) = crate::statistics::range(&values)?;
        // A flat line has a range, too.
        let margin = ((high - low) * MARGIN).max(high.abs() * 0.01);
        Some(Self {
            count: trend.runs.len(),
            low: low - margin,
            high: high + margin,
        })
    }

    fn x(&self, index: f64) -> f64 {
        (index + 0.5) / self.count as f64 * WIDTH
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low);
        HEIGHT * (1.0 - share.clamp(0.0, 1.0))
    }

    fn values(&self, trend: &Trend) -> Value {
        let point = |(index, run): (usize, &TrendRun)| {
            let value = run.value?;
            Some(json!({
                "x": self.x(index as f64),
                "y": self.y(value),
                "invalid": !run.invalid.is_empty(),
                "title": format!("{}: {}", run.run_id, figure(value)),
            }))
        };
        let level = |level: &Level| {
            let band = (level.deviation.unwrap_or(0.0) * BAND).exp();
            let (top, bottom) = (self.y(level.mean * band), self.y(level.mean / band));
            let (left, right) = (
                self.x(level.first as f64 - 0.4),
                self.x(level.last as f64 + 0.4),
            );
            json!({
                "x": left,
                "width": right - left,
                "top": top,
                "height": (bottom - top).max(1.0),
                "mean": self.y(level.mean),
                "changed": level.change.is_some(),
            })
        };
        json!({
            "width": WIDTH,
            "height": HEIGHT,
            "points": trend.runs.iter().enumerate().filter_map(point).collect::<Vec<Value>>(),
            "levels": trend.levels.iter().map(level).collect::<Vec<Value>>(),
            "high": figure(self.high),
            "low": figure(self.low),
            "first": trend.runs.first().map(|run| run.started_at.get(..10)),
            "last": trend.runs.last().map(|run| run.started_at.get(..10)),
        })
    }
}
