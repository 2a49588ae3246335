//! The table of `MODE=both`. It formats a [`Comparison`] and computes nothing.

use crate::record::{Comparison, Metric, Sample};
use crate::units::plural;

/// The table: one row per quantity with the values of both modes and their ratio, then the
/// comparison of the outputs and the faster mode. Without a complete round, only the outputs.
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
        // Interrupted before both modes had computed one.
        _ if outputs.compared == 0 => "outputs: none to compare".to_owned(),
        0 => format!("outputs: equal in {}", plural(outputs.compared, "step")),
        differing => format!(
            "outputs: different in {differing} of {}",
            plural(outputs.compared, "step")
        ),
    });
    lines.extend(faster(comparison));
    lines
}

/// The faster mode and its speed-up, from the times of the rounds; `None` if no pair of rounds is
/// complete or the outputs differ.
pub fn faster(comparison: &Comparison) -> Option<String> {
    let total = |metric: &&Metric| metric.name == "total_ms";
    let ratio = &comparison.metrics.iter().find(total)?.ratio;
    if comparison.outputs.differing > 0 {
        return None;
    }
    let sum: f64 = ratio.values.iter().sum();
    let middle = ratio.median.unwrap_or(sum / ratio.values.len() as f64);
    let (low, high) = crate::statistics::range(&ratio.values)?;
    let pairs = plural(ratio.values.len(), "pair");
    let (fast, slow) = match middle < 1.0 {
        true => ("reuse", "standalone"),
        false => ("standalone", "reuse"),
    };
    // Speed-up of the faster mode.
    let speed = |ratio: f64| if middle < 1.0 { 1.0 / ratio } else { ratio };
    let (least, most) = match middle < 1.0 {
        true => (speed(high), speed(low)),
        false => (speed(low), speed(high)),
    };
    Some(if ratio.values.len() == 1 {
        format!(
            "{fast} was {:.2} times as fast as {slow} in one pair of rounds; use ROUNDS=3 for a range",
            speed(middle)
        )
    } else if low <= 1.0 && high >= 1.0 {
        format!(
            "neither mode is clearly faster: reuse took {low:.2} to {high:.2} times as long as \
             standalone in {pairs} of rounds"
        )
    } else {
        format!(
            "{fast} is {:.2} times as fast as {slow} ({least:.2} to {most:.2} times in {pairs} of rounds)",
            speed(middle)
        )
    })
}

/// Explains the cells of the table.
fn legend(comparison: &Comparison) -> String {
    let complete = |mode: &str| {
        let rounds = comparison.rounds.iter();
        rounds
            .filter(|round| round.complete && round.mode == mode)
            .count()
    };
    let (standalone, reuse) = (complete("standalone"), complete("reuse"));
    let rounds = if standalone == reuse {
        plural(standalone, "round")
    } else {
        format!("{standalone} and {}", plural(reuse, "round"))
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

/// `median [min–max]`, a single number if all values are equal, or the values themselves if there
/// are few.
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
    fn three_rounds_have_medians() {
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
            verdict: None,
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
                "reuse is 5.00 times as fast as standalone (4.83 to 5.26 times in 3 pairs of rounds)",
            ]
        );
    }

    #[test]
    fn an_interrupted_comparison_says_that_there_is_nothing_to_compare() {
        let lines = comparison(&Comparison::default());
        assert_eq!(lines, ["outputs: none to compare"]);
    }

    #[test]
    fn the_faster_mode_is_named() {
        let of = |ratios: &[f64]| {
            faster(&Comparison {
                metrics: vec![Metric {
                    name: "total_ms".to_owned(),
                    standalone: Sample::default(),
                    reuse: Sample::default(),
                    ratio: Sample {
                        median: crate::statistics::median(ratios).filter(|_| ratios.len() > 2),
                        ..sample(ratios, None)
                    },
                }],
                ..Comparison::default()
            })
        };
        assert_eq!(of(&[]), None);
        insta::assert_snapshot!(of(&[0.5]).expect("one"), @"reuse was 2.00 times as fast as standalone in one pair of rounds; use ROUNDS=3 for a range");
        insta::assert_snapshot!(of(&[0.5, 0.4]).expect("two"), @"reuse is 2.22 times as fast as standalone (2.00 to 2.50 times in 2 pairs of rounds)");
        insta::assert_snapshot!(of(&[1.2, 1.5, 1.25]).expect("three"), @"standalone is 1.25 times as fast as reuse (1.20 to 1.50 times in 3 pairs of rounds)");
        insta::assert_snapshot!(of(&[0.97, 1.01, 0.99]).expect("three"), @"neither mode is clearly faster: reuse took 0.97 to 1.01 times as long as standalone in 3 pairs of rounds");
        assert_eq!(faster(&Comparison::default()), None);
    }

    #[test]
    fn two_rounds_have_values_only() {
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
            verdict: None,
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
