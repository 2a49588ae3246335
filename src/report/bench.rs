//! Output of `bench-engine`: a Markdown table for people, JSON and CSV for programs.

use serde_json::{Map, Value, json};

use crate::config::BenchFormat;
use crate::error::{Context, Exit, Result};
use crate::record::bench::{BenchRecord, TestRecord};
use crate::report::markdown::escaped;
use crate::units::plural;

/// Formats the record; every line ends in a newline.
///
/// # Errors
/// Exit code 110 if a value is not representable in JSON.
pub fn text(record: &BenchRecord, format: BenchFormat) -> Result<String> {
    let broken = || "failed to write the figures as JSON".to_owned();
    Ok(match format {
        BenchFormat::Md => markdown(record),
        BenchFormat::Json => {
            serde_json::to_string_pretty(record).or_exit(Exit::Output, broken)? + "\n"
        }
        BenchFormat::Jsonl => rows(record)
            .map(|row| Value::Object(row.into_iter().collect::<Map<_, _>>()).to_string() + "\n")
            .collect(),
        BenchFormat::Csv => csv(record),
    })
}

/// The environment as a list, and the tests as a table that is also aligned on a terminal.
fn markdown(record: &BenchRecord) -> String {
    let environment = &record.environment;
    let revision = environment.git_revision.as_deref().unwrap_or("unknown");
    let features = environment.cpu_features.join(" ");
    let mut lines = vec![
        format!(
            "- flowbench {} ({}), revision {revision}, {}",
            environment.flowbench, environment.build, record.started_at
        ),
        format!(
            "- model: {}, {}, backend {} on {}",
            escaped(&record.model),
            escaped(record.weights.as_deref().unwrap_or("weights unknown")),
            record.backend,
            escaped(&record.device_name)
        ),
        format!(
            "- processor: {}, {}, {features}; load average {}",
            escaped(&environment.cpu),
            plural(environment.cpu_threads, "thread"),
            number(record.load_average, 2)
        ),
        format!("- engine init: {} ms", record.engine_init_ms),
    ];
    if let Some(ceilings) = &record.ceilings {
        lines.push(format!(
            "- ceilings: {:.1} GB/s read from memory, {:.0} GMAC/s int8 ({}, {})",
            ceilings.read_gb_s,
            ceilings.int8_gmac_s,
            ceilings.instructions,
            plural(
                ceilings.threads,
                match record.device.as_str() {
                    "cpu" => "thread",
                    _ => "multiprocessor",
                }
            )
        ));
    }
    if !record.complete {
        lines.push("- interrupted: repetitions are missing".to_owned());
    }
    lines.push(String::new());

    let head = [
        "test", "batch", "context", "t/s", "best", "GB/s", "of read", "GMAC/s", "of int8",
    ];
    let mut table = vec![head.map(str::to_owned)];
    table.extend(record.tests.iter().map(|test| {
        let deviation = test.deviation.map(|value| format!(" ± {value:.1}"));
        [
            test.name.clone(),
            test.test.batch.to_string(),
            test.test.context.to_string(),
            format!(
                "{:.1}{}",
                test.tokens_per_second,
                deviation.unwrap_or_default()
            ),
            format!("{:.1}", test.best),
            number(test.gb_s, 2),
            percent(test.read_share),
            number(test.gmac_s, 1),
            percent(test.int8_share),
        ]
    }));
    let width = |column: usize| {
        let cells = table.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for (index, row) in table.iter().enumerate() {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        lines.push(format!("| {} |", cells.join(" | ")));
        if index == 0 {
            let rules: Vec<String> = widths
                .iter()
                .enumerate()
                .map(|(column, width)| match column {
                    0 => "-".repeat(*width),
                    _ => "-".repeat(width - 1) + ":",
                })
                .collect();
            lines.push(format!("| {} |", rules.join(" | ")));
        }
    }
    lines.join("\n") + "\n"
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.decimals$}"))
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "–".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

fn csv(record: &BenchRecord) -> String {
    let mut text = String::new();
    for (index, row) in rows(record).enumerate() {
        let line = |cells: Vec<String>| cells.join(",") + "\n";
        if index == 0 {
            text += &line(row.iter().map(|(name, _)| name.clone()).collect());
        }
        text += &line(row.iter().map(|(_, value)| field(value)).collect());
    }
    text
}

/// Formats a value as a CSV field (RFC 4180): empty if unknown.
fn field(value: &Value) -> String {
    let text = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

/// The fields of each test, preceded by those of the environment.
fn rows(record: &BenchRecord) -> impl Iterator<Item = Vec<(String, Value)>> {
    record.tests.iter().map(|test| row(record, test))
}

fn row(record: &BenchRecord, test: &TestRecord) -> Vec<(String, Value)> {
    let environment = &record.environment;
    let ceilings = record.ceilings.as_ref();
    let samples: Vec<String> = test.samples_ms.iter().map(ToString::to_string).collect();
    [
        ("schema", json!(record.schema)),
        ("started_at", json!(record.started_at)),
        ("flowbench", json!(environment.flowbench)),
        ("git_revision", json!(environment.git_revision)),
        ("build", json!(environment.build)),
        ("os", json!(environment.os)),
        ("cpu", json!(environment.cpu)),
        ("cpu_threads", json!(environment.cpu_threads)),
        ("cpu_features", json!(environment.cpu_features.join(" "))),
        ("load_average", json!(record.load_average)),
        ("model", json!(record.model)),
        ("model_sha256", json!(record.model_sha256)),
        ("weights", json!(record.weights)),
        ("backend", json!(record.backend)),
        ("device", json!(record.device)),
        ("device_name", json!(record.device_name)),
        ("engine_init_ms", json!(record.engine_init_ms)),
        ("ceiling_gb_s", json!(ceilings.map(|c| c.read_gb_s))),
        ("ceiling_gmac_s", json!(ceilings.map(|c| c.int8_gmac_s))),
        ("name", json!(test.name)),
        ("phase", json!(test.test.phase)),
        ("tokens", json!(test.test.tokens)),
        ("batch", json!(test.test.batch)),
        ("context", json!(test.test.context)),
        ("tokens_per_second", json!(test.tokens_per_second)),
        ("deviation", json!(test.deviation)),
        ("best", json!(test.best)),
        ("gb_s", json!(test.gb_s)),
        ("read_share", json!(test.read_share)),
        ("gmac_s", json!(test.gmac_s)),
        ("int8_share", json!(test.int8_share)),
        ("samples_ms", json!(samples.join(" "))),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Environment;
    use crate::record::bench::{Ceilings, Phase, Test, Work};
    use crate::units::Millis;

    fn record() -> BenchRecord {
        let ceilings = Ceilings {
            threads: 2,
            instructions: "avx512".to_owned(),
            read_gb_s: 40.0,
            int8_gmac_s: 900.0,
        };
        let test = |phase, tokens, batch, context, work, samples: &[f64]| {
            let test = Test {
                phase,
                tokens,
                batch,
                context,
            };
            let samples = samples.iter().copied().map(Millis).collect();
            TestRecord::new(test, work, samples, Some(&ceilings)).expect("samples")
        };
        BenchRecord {
            schema: 1,
            started_at: "2026-01-02T03:04:05Z".to_owned(),
            complete: true,
            environment: Environment {
                flowbench: "0.1.0".to_owned(),
                git_revision: None,
                os: "Linux 6.1.0 x86_64".to_owned(),
                cpu: "A \"fast\" one, of 2 cores".to_owned(),
                cpu_threads: 2,
                cpu_features: vec!["avx2".to_owned(), "fma".to_owned()],
                memory_bytes: 1 << 33,
                build: "cpu".to_owned(),
                ..Environment::default()
            },
            load_average: Some(0.25),
            model: "Tiny".to_owned(),
            model_sha256: None,
            weights: Some("Q4_1 with int8 activations".to_owned()),
            backend: "native".to_owned(),
            device: "cpu".to_owned(),
            device_name: "A fast one".to_owned(),
            engine_init_ms: Millis(93.1),
            tests: vec![
                test(
                    Phase::Prefill,
                    512,
                    1,
                    0,
                    Work {
                        bytes: Some(100_000_000),
                        macs: Some(50_000_000_000),
                    },
                    &[100.0, 128.0, 200.0],
                ),
                test(
                    Phase::Decode,
                    128,
                    25,
                    400,
                    Work {
                        bytes: None,
                        macs: None,
                    },
                    &[1000.0],
                ),
            ],
            ceilings: Some(ceilings),
        }
    }

    fn printed(record: &BenchRecord, format: BenchFormat) -> String {
        text(record, format).expect("numbers")
    }

    #[test]
    fn a_table_for_people() {
        insta::assert_snapshot!(printed(&record(), BenchFormat::Md));
        let partial = BenchRecord {
            complete: false,
            ceilings: None,
            ..record()
        };
        let partial = printed(&partial, BenchFormat::Md);
        assert!(partial.contains("interrupted") && !partial.contains("ceilings"));
    }

    #[test]
    fn fields_for_programs() {
        let record = record();
        insta::assert_snapshot!(printed(&record, BenchFormat::Csv));
        let lines = printed(&record, BenchFormat::Jsonl);
        let lines: Vec<Value> = lines
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["name"], "tg128");
        assert_eq!(lines[1]["gb_s"], Value::Null);
        assert_eq!(lines[0]["tokens"], 512);
        let whole: BenchRecord =
            serde_json::from_str(&printed(&record, BenchFormat::Json)).expect("JSON");
        assert_eq!(whole, record);
    }
}
