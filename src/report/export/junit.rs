//! JUnit XML: the run is a suite, named by the template, and each flow a case. It follows the schema of
//! Jenkins's xUnit plugin (`junit-10.xsd`), which has properties for suites only. The figures of a flow are
//! therefore lines `[[PROPERTY|name=value]]` of the case's standard output, as Testmo and TestRail read them.

use std::fmt::Write;

use super::metrics;
use crate::record::{RunRecord, Status, WorkflowRecord};

/// A case that has no flow: what is wrong with the run as a whole.
const RUN_CASE: &str = "run";

pub(super) fn text(run: &RunRecord) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut out, run);
    out
}

fn write(out: &mut String, run: &RunRecord) -> std::fmt::Result {
    let whole = whole_run(run);
    let failed = run.workflows.iter().filter(|flow| flow.error.is_some());
    let failures = failed.count();
    let errors = usize::from(whole.is_some());
    let tests = run.workflows.len() + errors;
    let template = attribute(&run.expansion.template);
    let total = run.totals.benchmark_total_ms.unwrap_or_else(|| {
        let times = run.workflows.iter().map(|flow| flow.workflow_ms);
        times.sum()
    });
    let counts = format!("tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\"");
    let time = seconds(total.seconds());
    // ISO 8601 without a zone, in UTC.
    let started = attribute(run.started_at.get(..19).unwrap_or(&run.started_at));

    writeln!(out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>")?;
    writeln!(
        out,
        "<testsuites name=\"flowbench\" {counts} time=\"{time}\">"
    )?;
    writeln!(
        out,
        "  <testsuite name=\"{template}\" {counts} skipped=\"0\" time=\"{time}\" timestamp=\"{started}\">"
    )?;
    writeln!(out, "    <properties>")?;
    for (name, value) in properties(run) {
        let (name, value) = (attribute(&name), attribute(&value));
        writeln!(out, "      <property name=\"{name}\" value=\"{value}\"/>")?;
    }
    writeln!(out, "    </properties>")?;
    if let Some(why) = whole {
        writeln!(
            out,
            "    <testcase classname=\"{template}\" name=\"{RUN_CASE}\" time=\"0\">"
        )?;
        problem(out, "error", "run", &why)?;
        writeln!(out, "    </testcase>")?;
    }
    for flow in &run.workflows {
        let name = attribute(&name(flow));
        let time = seconds(flow.workflow_ms.seconds());
        writeln!(
            out,
            "    <testcase classname=\"{template}\" name=\"{name}\" time=\"{time}\">"
        )?;
        if let Some(error) = &flow.error {
            problem(out, "failure", "workflow", error)?;
        }
        writeln!(out, "      <system-out>{}</system-out>", figures(flow))?;
        writeln!(out, "    </testcase>")?;
    }
    writeln!(out, "  </testsuite>\n</testsuites>")
}

/// Why the run as a whole proves nothing, or less than its flows: without it, a run that was stopped early
/// would pass.
fn whole_run(run: &RunRecord) -> Option<String> {
    let kept = || run.error.clone();
    match run.status {
        Status::Running => Some("the run has not ended, or was killed".to_owned()),
        Status::Incomplete => {
            Some(kept().unwrap_or_else(|| "the run was stopped early".to_owned()))
        }
        // Failed flows speak for themselves.
        Status::Failed if run.totals.workflows_failed == 0 => {
            Some(kept().unwrap_or_else(|| "the run failed".to_owned()))
        }
        _ if run.workflows.is_empty() => Some("no workflow ran".to_owned()),
        Status::Complete | Status::Failed => None,
    }
}

/// `flow 3: late-fees`; in `MODE=both` with the mode and the round.
fn name(flow: &WorkflowRecord) -> String {
    let round = match (&flow.mode, flow.round) {
        (Some(mode), Some(round)) => format!(" ({mode}, round {round})"),
        _ => String::new(),
    };
    format!("flow {}: {}{round}", flow.flow, flow.row)
}

fn properties(run: &RunRecord) -> Vec<(String, String)> {
    let environment = &run.environment;
    let texts = [
        ("run_id", run.run_id.as_str()),
        ("mode", metrics::mode(run)),
        ("model", metrics::model(run)),
        ("flowbench", &environment.flowbench),
        (
            "revision",
            environment.git_revision.as_deref().unwrap_or_default(),
        ),
        ("cpu", &environment.cpu),
    ];
    let known = texts.into_iter().filter(|(_, value)| !value.is_empty());
    let mut all: Vec<(String, String)> = known
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    for figure in metrics::of(run) {
        let subject = figure.subject("");
        let subject = subject.trim_start_matches('/');
        let slash = if subject.is_empty() { "" } else { "/" };
        let name = format!("{subject}{slash}{}", figure.metric.name);
        all.push((name.clone(), figure.value().to_string()));
        let deviation = figure.spread().and_then(|spread| spread.deviation);
        all.extend(deviation.map(|value| (format!("{name}.deviation"), value.to_string())));
    }
    all
}

fn figures(flow: &WorkflowRecord) -> String {
    let tokens = flow.tokens;
    let mut lines = vec![
        (metrics::WORKFLOW, flow.workflow_ms.0),
        (metrics::PROMPT, tokens.prompt as f64),
        (metrics::PREFILL, tokens.prefill as f64),
        (metrics::REUSED, tokens.reused as f64),
        (metrics::DECODE, tokens.decode as f64),
    ];
    lines.extend(flow.reward.map(|reward| (metrics::REWARD, reward)));
    let lines = lines
        .into_iter()
        .map(|(metric, value)| format!("[[PROPERTY|{}={value}]]\n", metric.name));
    format!("\n{}", lines.collect::<String>())
}

fn problem(out: &mut String, element: &str, kind: &str, why: &str) -> std::fmt::Result {
    let first = attribute(why.lines().next().unwrap_or_default());
    let all = content(why);
    writeln!(
        out,
        "      <{element} type=\"{kind}\" message=\"{first}\">{all}</{element}>"
    )
}

/// Seconds to a millisecond, which is all that Jenkins's schema allows. The sum of no times is −0, and is written without its sign.
fn seconds(seconds: f64) -> String {
    format!("{:.3}", seconds + 0.0)
}

/// Escapes text for an attribute. Line ends and tabs become references, since a parser turns them into spaces.
pub(super) fn attribute(text: &str) -> String {
    escaped(text, |character| match character {
        '"' => Some("&quot;"),
        '\n' => Some("&#10;"),
        '\t' => Some("&#9;"),
        _ => None,
    })
}

/// Escapes text between tags.
pub(super) fn content(text: &str) -> String {
    escaped(text, |_| None)
}

fn escaped(text: &str, more: impl Fn(char) -> Option<&'static str>) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            // `]]>` may not occur in text.
            '>' => safe.push_str("&gt;"),
            // A parser turns a carriage return into a line feed.
            '\r' => safe.push_str("&#13;"),
            other if !is_xml(other) => {
                safe.extend(['\\', 'u', '{']);
                safe.push_str(&format!("{:x}}}", u32::from(other)));
            }
            other => match more(other) {
                Some(reference) => safe.push_str(reference),
                None => safe.push(other),
            },
        }
    }
    safe
}

/// Whether XML 1.0 has the character at all, even as a reference (production 2, `Char`).
pub(super) fn is_xml(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}
