//! The table of `MODE=both`. It reads [`Comparison`] and computes nothing.

use crate::record::{Comparison, Metric, Sample};

/// The lines of the table: a row a quantity, with the values of both modes and their ratio, then
/// how the outputs compare. Without a complete round there is nothing but the outputs.
pub fn comparison(comparison: &Comparison) -> Vec<String> {
    let mut rows = vec![[
        "per round".to_owned(),
        "standalone".to_owned(),
        "reuse".to_owned(),
        "reuse/standalone".to_owned(),
    ]];
    rows.extend(comparison.metrics.iter().map(row));
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths = [width(0), width(1), width(2), width(3)];
    let mut lines = Vec::new();
    if !comparison.metrics.is_empty() {
        lines.push(String::new());
        lines.extend(rows.iter().map(|[name, standalone, reuse, ratio]| {
            format!(
                "{name:<0$}  {standalone:>1$}  {reuse:>2$}  {ratio:>3$}",
                widths[0], widths[1], widths[2], widths[3]
            )
        }));
        lines.push(legend(comparison));
    }
    let outputs = &comparison.outputs;
    lines.push(match outputs.differing {
        0 => format!("outputs: equal in {} steps", outputs.compared),
        differing => format!(
            "outputs: different in {differing} of {} steps",
            outputs.compared
        ),
    });
    lines
}

/// What the cells of the table are.
fn legend(comparison: &Comparison) -> String {
    let complete = |mode: &str| {
        let rounds = comparison.rounds.iter();
        rounds
            .filter(|round| round.complete && round.mode == mode)
            .count()
    };
    let (standalone, reuse) = (complete("standalone"), complete("reuse"));
    let rounds = if standalone == reuse {
        format!("{standalone} rounds")
    } else {
        format!("{standalone} and {reuse} rounds")
    };
    match comparison.range_coverage {
        Some(coverage) => format!(
            "median of {rounds} [min–max]; a range covers the true median with probability {:.1} %",
            100.0 * coverage
        ),
        None => format!("values of {rounds}; a median takes 3"),
    }
}

fn row(metric: &Metric) -> [String; 4] {
    let decimals = if metric.name.ends_with("_tokens") {
        0
    } else {
        2
    };
    [
        metric.name.clone(),
        cell(&metric.standalone, decimals),
        cell(&metric.reuse, decimals),
        cell(&metric.ratio, 3),
    ]
}

/// `median [min–max]`, one number where they are the same, or the values where they are few.
fn cell(sample: &Sample, decimals: usize) -> String {
    match (sample.median, sample.min, sample.max) {
        (Some(median), Some(min), Some(max)) if min < max => {
            format!("{median:.decimals$} [{min:.decimals$}–{max:.decimals$}]")
        }
        (Some(median), ..) => format!("{median:.decimals$}"),
        _ if sample.values.is_empty() => "-".to_owned(),
        _ => {
            let values: Vec<String> = (sample.values.iter())
                .map(|value| format!("{value:.decimals$}"))
                .collect();
            values.join(", ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{OutputComparison, RoundRecord};

    fn sample(values: &[f64], spread: Option<(f64, f64, f64)>) -> Sample {
        Sample {
            values: values.to_vec(),
            median: spread.map(|(median, ..)| median),
            min: spread.map(|(_, min, _)| min),
            max: spread.map(|(.., max)| max),
        }
    }

    fn rounds(count: usize) -> Vec<RoundRecord> {
        let of = |mode: &str| RoundRecord {
            mode: mode.to_owned(),
            complete: true,
            ..RoundRecord::default()
        };
        (0..count)
            .flat_map(|_| [of("standalone"), of("reuse")])
            .collect()
    }

    #[test]
    fn three_rounds_give_medians() {
        let three =
            |median: f64, min: f64, max: f64| sample(&[min, median, max], Some((median, min, max)));
        let table = Comparison {
            rounds: rounds(3),
            metrics: vec![
                Metric {
                    name: "reused_tokens".to_owned(),
                    standalone: three(0.0, 0.0, 0.0),
                    reuse: three(38_204.0, 38_204.0, 38_204.0),
                    ratio: Sample::default(),
                },
                Metric {
                    name: "total_ms".to_owned(),
                    standalone: three(20_011.5, 19_800.25, 21_000.0),
                    reuse: three(4_002.5, 3_990.0, 4_100.125),
                    ratio: three(0.2, 0.19, 0.207),
                },
            ],
            range_coverage: Some(0.75),
            outputs: OutputComparison {
                compared: 75,
                ..OutputComparison::default()
            },
        };
        assert_eq!(
            comparison(&table),
            [
                "",
                "per round                        standalone                      reuse     reuse/standalone",
                "reused_tokens                             0                      38204                    -",
                "total_ms       20011.50 [19800.25–21000.00]  4002.50 [3990.00–4100.12]  0.200 [0.190–0.207]",
                "median of 3 rounds [min–max]; a range covers the true median with probability 75.0 %",
                "outputs: equal in 75 steps",
            ]
        );
    }

    #[test]
    fn two_rounds_give_values_only() {
        let table = Comparison {
            rounds: rounds(2),
            metrics: vec![Metric {
                name: "total_ms".to_owned(),
                standalone: sample(&[100.0, 110.0], None),
                reuse: sample(&[50.0, 44.0], None),
                ratio: sample(&[0.5, 0.4], None),
            }],
            range_coverage: None,
            outputs: OutputComparison {
                compared: 6,
                differing: 2,
                first: None,
            },
        };
        assert_eq!(
            comparison(&table),
            [
                "",
                "per round      standalone         reuse  reuse/standalone",
                "total_ms   100.00, 110.00  50.00, 44.00      0.500, 0.400",
                "values of 2 rounds; a median takes 3",
                "outputs: different in 2 of 6 steps",
            ]
        );
    }
}
