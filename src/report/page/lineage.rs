//! Chart of an evolution: trials by generation and score, connected to their parents.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;

use serde::Serialize;

use super::chart::{Mark, WIDTH, escaped, ticks_between, trimmed};
use super::judged;
use crate::record::evaluation::{EvolutionRecord, GenerationRecord, LineageRecord};
use crate::report::diagnose::seconds;
use crate::units::plural;

/// Upper bound on the evolutions that are drawn.
pub(super) const SHOWN: usize = 8;

/// In pixels: height of the score area, padding around it, and height of an outcome row.
const SCORES: f64 = 190.0;
const AROUND: f64 = 14.0;
const ROW: f64 = 24.0;

/// Longest best path whose trials are labelled.
const NAMED: usize = 12;

/// Upper bounds on trials and columns in a chart. Beyond them, columns are merged and trials are
/// sampled.
const DRAWN: usize = 1500;
const COLUMNS: usize = 250;

/// Upper bound on best-path trials in a sampled chart.
const ON_PATH: usize = 300;

/// Upper bound on labelled columns.
const LABELLED: usize = 40;

/// Approximate upper bound on the rows of the table.
const LISTED: usize = 200;

#[derive(Debug, Serialize)]
pub(super) struct Evolution {
    pub(super) title: String,
    pub(super) summary: String,
    svg: String,
    height: f64,
    /// Scores and outcomes, in pixels from the top.
    labels: Vec<Mark>,
    /// Generations, in percent from the left.
    columns: Vec<Mark>,
    /// Trials of the best path: percent from the left, pixels from the top.
    names: Vec<(f64, Mark)>,
    pub(super) generations: Vec<[String; 7]>,
    /// Note on omitted generations; empty if the table is complete.
    pub(super) listed: String,
    note: String,
}

/// A trial with its position in SVG units.
struct NodePlace<'a> {
    trial: &'a LineageRecord,
    x: f64,
    y: f64,
    failed: bool,
}

/// Groups trials into columns, in trial order: one per generation of a loop, and one per run of
/// consecutive trials outside a loop.
fn columns(lineage: &[LineageRecord]) -> Vec<(String, Vec<&LineageRecord>)> {
    let mut columns: Vec<((usize, usize), Vec<&LineageRecord>)> = Vec::new();
    let mut places: HashMap<(usize, usize), usize> = HashMap::new();
    for trial in lineage {
        let key = (trial.r#loop, trial.generation);
        let same = match trial.generation {
            0 => columns.last_mut().filter(|(known, _)| *known == key),
            _ => places.get(&key).and_then(|place| columns.get_mut(*place)),
        };
        match same {
            Some((_, trials)) => trials.push(trial),
            None => {
                places.insert(key, columns.len());
                columns.push((key, vec![trial]));
            }
        }
    }
    let name = |(index, ((of_loop, generation), trials)): (usize, ((usize, usize), Vec<_>))| {
        let name = match generation {
            0 if index == 0 => "root".to_owned(),
            0 => "after".to_owned(),
            _ => numbered(of_loop, generation),
        };
        (name, trials)
    };
    columns.into_iter().enumerate().map(name).collect()
}

/// Number of a generation, prefixed with the loop number from the second loop on.
fn numbered(of_loop: usize, generation: usize) -> String {
    match of_loop {
        0 | 1 => generation.to_string(),
        _ => format!("{of_loop}.{generation}"),
    }
}

/// The best trial and its ancestors, best trial first.
fn best_path(record: &EvolutionRecord) -> Vec<usize> {
    let parents: HashMap<usize, Option<usize>> = (record.lineage.iter())
        .map(|trial| (trial.trial, trial.parent))
        .collect();
    let mut path = Vec::new();
    let mut seen = BTreeSet::new();
    let mut at = record.best_trial;
    // Also terminates on a cyclic record.
    while let Some(trial) = at.filter(|trial| seen.insert(*trial)) {
        path.push(trial);
        at = parents.get(&trial).copied().flatten();
    }
    path
}

/// Stride that keeps at most `most` of `count` items.
fn every(count: usize, most: usize) -> usize {
    count.div_ceil(most).max(1)
}

/// Reduces columns and path to the chart limits. The returned note says so, and is empty if nothing
/// was dropped.
fn thinned<'a>(
    columns: Vec<(String, Vec<&'a LineageRecord>)>,
    path: &mut Vec<usize>,
) -> (Vec<(String, Vec<&'a LineageRecord>)>, String) {
    let trials: usize = columns.iter().map(|(_, trials)| trials.len()).sum();
    if trials <= DRAWN && columns.len() <= COLUMNS {
        return (columns, String::new());
    }
    let step = every(path.len(), ON_PATH);
    *path = path.iter().copied().step_by(step).collect();
    let on_path: BTreeSet<usize> = path.iter().copied().collect();
    let joined = every(columns.len(), COLUMNS);
    let most = (DRAWN / columns.len().div_ceil(joined)).max(1);
    let mut drawn = 0;
    let thinned = columns.chunks(joined).map(|columns| {
        let name = match columns {
            [(first, _), .., (last, _)] => format!("{first}–{last}"),
            [(only, _)] => only.clone(),
            [] => String::new(),
        };
        let all: Vec<&LineageRecord> = (columns.iter())
            .flat_map(|(_, trials)| trials.iter().copied())
            .collect();
        let scored = all
            .iter()
            .filter_map(|trial| Some((trial.score?, trial.trial)));
        let best = scored.reduce(|best, next| if next.0 > best.0 { next } else { best });
        let step = every(all.len(), most);
        let kept = all.iter().enumerate().filter(|(number, trial)| {
            number % step == 0
                || on_path.contains(&trial.trial)
                || best.is_some_and(|(_, best)| best == trial.trial)
        });
        let kept: Vec<&LineageRecord> = kept.map(|(_, trial)| *trial).collect();
        drawn += kept.len();
        (name, kept)
    });
    let thinned: Vec<_> = thinned.collect();
    let together = match joined {
        1 => String::new(),
        joined => format!(", {joined} generations per column"),
    };
    let note = format!(
        " {drawn} of {} are drawn{together}: the best of each column, some of the best path, and a \
         sample of the others.",
        plural(trials, "trial")
    );
    (thinned, note)
}

/// Failed outcomes; each gets a row.
fn failures(lineage: &[LineageRecord]) -> Vec<&str> {
    let failed = lineage.iter().filter(|trial| trial.score.is_none());
    let names: BTreeSet<&str> = failed.map(|trial| trial.outcome.as_str()).collect();
    names.into_iter().collect()
}

fn scale(lineage: &[LineageRecord]) -> (f64, f64) {
    let scores = lineage.iter().filter_map(|trial| trial.score);
    let (low, high) = scores.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), score| {
        (low.min(score), high.max(score))
    });
    match high - low {
        range if range > 0.0 && range.is_finite() => (low, high),
        // A single score, or none.
        _ if low.is_finite() => {
            let margin = 0.5 * low.abs().max(1.0);
            (low - margin, low + margin)
        }
        _ => (0.0, 1.0),
    }
}

pub(super) fn evolution(record: &EvolutionRecord) -> Evolution {
    let lineage = &record.lineage;
    let whole_path = best_path(record);
    let mut path = whole_path.clone();
    let (columns, thinned) = thinned(columns(lineage), &mut path);
    let failures = failures(lineage);
    let has_scores = record.valid > 0;
    let (low, high) = scale(lineage);
    let scores_height = if has_scores { SCORES } else { 0.0 };
    let top_of_failures = scores_height + if has_scores { 2.0 * AROUND } else { 0.0 };
    let height = top_of_failures + ROW * failures.len() as f64;
    let y_of = |score: f64| AROUND + scores_height * (1.0 - (score - low) / (high - low));
    let row_of = |number: usize| top_of_failures + ROW * (number as f64 + 0.5);

    let width = WIDTH / columns.len().max(1) as f64;
    let mut places: BTreeMap<usize, NodePlace> = BTreeMap::new();
    for (number, (_, trials)) in columns.iter().enumerate() {
        for (index, trial) in trials.iter().enumerate() {
            let within = 0.15 + 0.7 * (index as f64 + 0.5) / trials.len() as f64;
            let failed = failures.iter().position(|name| *name == trial.outcome);
            let (y, failed) = match (trial.score, failed) {
                (Some(score), _) => (y_of(score), false),
                (None, row) => (row_of(row.unwrap_or(0)), true),
            };
            let x = width * (number as f64 + within);
            places.insert(
                trial.trial,
                NodePlace {
                    trial,
                    x,
                    y,
                    failed,
                },
            );
        }
    }

    let on_best_path: BTreeSet<usize> = whole_path.iter().copied().collect();
    let mut svg = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" preserveAspectRatio=\"none\" style=\"height:{height}px\" \
         role=\"img\" aria-label=\"Lineage of {}\">",
        plural(lineage.len(), "trial")
    );
    let mut labels = Vec::new();
    let mut line = |class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64), title: &str| {
        let _ = write!(
            svg,
            "<line class=\"{class}\" x1=\"{x1:.2}\" y1=\"{y1:.2}\" x2=\"{x2:.2}\" y2=\"{y2:.2}\">"
        );
        if !title.is_empty() {
            let _ = write!(svg, "<title>{}</title>", escaped(title));
        }
        svg.push_str("</line>");
    };
    if has_scores {
        for tick in ticks_between(low, high, 4.0) {
            let y = y_of(tick);
            line("grid", (0.0, y), (WIDTH, y), "");
            labels.push(Mark {
                at: y,
                text: trimmed(tick),
                class: "",
            });
        }
    }
    for (number, name) in failures.iter().enumerate() {
        let y = row_of(number);
        line("grid", (0.0, y - ROW / 2.0), (WIDTH, y - ROW / 2.0), "");
        labels.push(Mark {
            at: y,
            text: (*name).to_owned(),
            class: "",
        });
    }
    for place in places.values() {
        if on_best_path.contains(&place.trial.trial) {
            continue;
        }
        if let Some(parent) = place.trial.parent.and_then(|parent| places.get(&parent)) {
            let class = match place.failed {
                true => "edge failed",
                false => "edge",
            };
            line(class, (parent.x, parent.y), (place.x, place.y), "");
        }
    }
    // Draw the best path last, on top of the other edges. It skips ancestors that were not drawn.
    let drawn_path: Vec<&NodePlace> = path.iter().filter_map(|trial| places.get(trial)).collect();
    for pair in drawn_path.windows(2).rev() {
        let (place, before) = (pair[0], pair[1]);
        line("edge best", (before.x, before.y), (place.x, place.y), "");
    }
    for place in places.values() {
        let class = match judged::class(&place.trial.outcome) {
            _ if on_best_path.contains(&place.trial.trial) => "trial best",
            "open" if place.failed => "trial open",
            _ if place.failed => "trial failed",
            _ => "trial",
        };
        // Round line caps draw a dot at any aspect ratio.
        let at = (place.x, place.y);
        line(class, at, (place.x + 0.01, place.y), &title(place.trial));
    }
    svg.push_str("</svg>");

    let named = whole_path.len() <= NAMED;
    // In trial order.
    path.sort_unstable();
    let every_label = every(columns.len(), LABELLED);
    let every_row = every(record.generations.len(), LISTED);
    let name = |trial: &usize| {
        let place = places.get(trial)?;
        let score = place
            .trial
            .score
            .map(|score| format!(": {}", trimmed(score)));
        let text = match record.best_trial == Some(*trial) {
            true => format!("{trial}{}", score.unwrap_or_default()),
            false => trial.to_string(),
        };
        let class = if place.x > 0.9 * WIDTH { "last" } else { "" };
        Some((
            100.0 * place.x / WIDTH,
            Mark {
                at: place.y,
                text,
                class,
            },
        ))
    };
    Evolution {
        title: format!("Evolution of flow {}", record.flow),
        summary: summary(record),
        svg,
        height,
        labels,
        columns: (columns.iter().enumerate().step_by(every_label))
            .map(|(number, (name, _))| Mark {
                at: 100.0 * width * (number as f64 + 0.5) / WIDTH,
                text: name.clone(),
                class: "",
            })
            .collect(),
        names: path.iter().filter(|_| named).filter_map(name).collect(),
        generations: generations(&record.generations, every_row),
        listed: match every_row {
            1 => String::new(),
            every => format!(
                "One in {every} generations, and the last, are listed; all {} are in the run's folder.",
                record.generations.len()
            ),
        },
        note: "Each dot is a trial, placed by generation and score; a line connects it to its parent, \
               the trial that its prompt was based on. Trials without a score are below, by \
               outcome. The best trial and its ancestors are green."
            .to_owned()
            + &thinned,
    }
}

fn title(trial: &LineageRecord) -> String {
    let found = match trial.score {
        Some(score) => format!("score {}", trimmed(score)),
        None => trial.outcome.clone(),
    };
    let from = trial.parent.map(|parent| format!(", from trial {parent}"));
    format!(
        "trial {}, generation {}: {found}{}",
        trial.trial,
        numbered(trial.r#loop, trial.generation),
        from.unwrap_or_default()
    )
}

fn summary(record: &EvolutionRecord) -> String {
    let rate = record
        .validity_rate
        .map(|rate| format!(" ({:.0} %)", 100.0 * rate));
    let best = match (record.best_score, record.best_trial) {
        (Some(score), Some(trial)) => format!("best score {} (trial {trial})", trimmed(score)),
        _ => "no score".to_owned(),
    };
    let unfinished = if record.complete { "" } else { "; not ended" };
    format!(
        "{}, {} with a score{}, {best}; {}{unfinished}",
        plural(record.trials, "trial"),
        record.valid,
        rate.unwrap_or_default(),
        judged::outcomes(&record.outcomes)
    )
}

/// Table rows: every `every`-th generation, and the last one.
fn generations(records: &[GenerationRecord], every: usize) -> Vec<[String; 7]> {
    let last = records.len().saturating_sub(1);
    let listed = records.iter().enumerate();
    let listed = listed.filter(|(number, _)| number % every == 0 || *number == last);
    listed.map(|(_, record)| generation(record)).collect()
}

fn generation(record: &GenerationRecord) -> [String; 7] {
    let score = |score: Option<f64>| score.map_or_else(|| "–".to_owned(), trimmed);
    [
        numbered(record.r#loop, record.generation),
        record.trials.to_string(),
        judged::outcomes(&record.outcomes),
        score(record.best_score),
        score(record.mean_score),
        match record.selected {
            Some(trial) => format!("{} (trial {trial})", score(record.selected_score)),
            None => "–".to_owned(),
        },
        seconds(record.end_ms.seconds()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trial(number: usize, parent: usize, generation: usize, score: Option<f64>) -> LineageRecord {
        LineageRecord {
            trial: number,
            parent: (parent > 0).then_some(parent),
            generation,
            outcome: if score.is_some() { "ok" } else { "time<out" }.to_owned(),
            score,
            ..LineageRecord::default()
        }
    }

    fn record(lineage: Vec<LineageRecord>) -> EvolutionRecord {
        let scored = lineage.iter().filter(|trial| trial.score.is_some());
        let best = scored
            .clone()
            .max_by(|a, b| a.score.partial_cmp(&b.score).expect("finite"));
        EvolutionRecord {
            flow: 1,
            trials: lineage.len(),
            valid: scored.count(),
            best_trial: best.map(|trial| trial.trial),
            best_score: best.and_then(|trial| trial.score),
            lineage,
            ..EvolutionRecord::default()
        }
    }

    #[test]
    fn each_trial_has_a_dot_and_an_edge_to_its_parent() {
        let record = record(vec![
            trial(1, 0, 0, Some(1.0)),
            trial(2, 1, 1, Some(2.0)),
            trial(3, 1, 1, None),
            trial(4, 2, 2, Some(1.5)),
            trial(5, 2, 2, Some(3.0)),
        ]);
        assert_eq!(best_path(&record), [5, 2, 1]);
        let drawn = evolution(&record);
        let count = |class: &str| {
            drawn
                .svg
                .matches(&format!("<line class=\"{class}\""))
                .count()
        };
        assert_eq!(
            (count("trial"), count("trial best"), count("trial failed")),
            (1, 3, 1)
        );
        assert_eq!(
            (count("edge"), count("edge best"), count("edge failed")),
            (1, 2, 1)
        );
        assert!(
            drawn
                .svg
                .contains("<title>trial 3, generation 1: time&lt;out, from trial 1</title>")
        );
        let names: Vec<&str> = drawn
            .names
            .iter()
            .map(|(_, mark)| mark.text.as_str())
            .collect();
        assert_eq!(names, ["1", "2", "5: 3"]);
        let columns: Vec<&str> = drawn
            .columns
            .iter()
            .map(|mark| mark.text.as_str())
            .collect();
        assert_eq!(columns, ["root", "1", "2"]);
        // Higher scores are at the top, failures at the bottom.
        let y = |trial: usize| {
            drawn
                .names
                .iter()
                .find(|(_, mark)| mark.text.starts_with(&trial.to_string()))
        };
        assert!(y(5).expect("named").1.at < y(2).expect("named").1.at);
        assert_eq!(drawn.labels.last().expect("labels").text, "time<out");
    }

    #[test]
    fn trials_after_a_loop_get_a_column_after_it() {
        let record = record(vec![trial(1, 0, 1, None), trial(2, 1, 0, Some(1.0))]);
        let drawn = evolution(&record);
        let columns: Vec<&str> = drawn
            .columns
            .iter()
            .map(|mark| mark.text.as_str())
            .collect();
        assert_eq!(columns, ["1", "after"]);
    }

    #[test]
    fn generations_of_a_second_loop_are_labelled_with_the_loop() {
        let mut trials = vec![
            trial(1, 0, 1, Some(1.0)),
            trial(2, 1, 2, Some(2.0)),
            trial(3, 2, 1, Some(3.0)),
        ];
        for (trial, of_loop) in trials.iter_mut().zip([1, 1, 2]) {
            trial.r#loop = of_loop;
        }
        let drawn = evolution(&record(trials));
        let columns: Vec<&str> = drawn
            .columns
            .iter()
            .map(|mark| mark.text.as_str())
            .collect();
        assert_eq!(columns, ["1", "2", "2.1"]);
    }

    #[test]
    fn charts_of_long_evolutions_are_bounded() {
        // Each generation improves on the previous one, so all are on the best path.
        let trials =
            (1..=20_000).map(|number| trial(number, number - 1, number / 2, Some(number as f64)));
        let mut record = record(trials.collect());
        record.generations = vec![GenerationRecord::default(); 10_000];
        let drawn = evolution(&record);
        assert!(drawn.svg.contains("aria-label=\"Lineage of 20000 trials\""));
        let lines = drawn.svg.matches("<line").count();
        assert!((1000..6000).contains(&lines), "{lines}");
        assert!(
            drawn.svg.contains("trial 20000, generation 10000"),
            "the best"
        );
        assert!(drawn.columns.len() <= LABELLED && drawn.columns[1].text.contains('–'));
        assert!(drawn.generations.len() <= LISTED + 1 && !drawn.listed.is_empty());
        assert!(
            drawn
                .note
                .contains("of 20000 trials are drawn, 41 generations per column"),
            "{}",
            drawn.note
        );
        let edges = drawn.svg.matches("edge best").count();
        assert!(edges > 100 && edges < ON_PATH, "{edges}");
    }

    proptest! {
        #[test]
        fn every_lineage_can_be_drawn(
            trials in prop::collection::vec((0usize..6, 0usize..4, prop::option::of(-1e300f64..1e300)), 0..12),
        ) {
            // Later parents and cycles must not break the drawing.
            let lineage = (1..).zip(trials);
            let lineage = lineage.map(|(number, (parent, generation, score))| trial(number, parent, generation, score));
            let drawn = evolution(&record(lineage.collect()));
            prop_assert!(!drawn.svg.contains("NaN") && !drawn.svg.contains("inf"));
            prop_assert_eq!(drawn.svg.matches("<line").count(), drawn.svg.matches("</line>").count());
        }
    }
}
