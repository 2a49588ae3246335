//! A diagnosis as Markdown.

use std::fmt::Write;

use super::{Cause, Diagnosis, DiagnosisVerdict, Source};
use crate::record::profile::DeviceTimes;
use crate::report::markdown::escaped;

/// Formats a time with three significant digits and a unit.
pub fn seconds(seconds: f64) -> String {
    match seconds.abs() {
        time if time >= 99.95 => format!("{seconds:.0} s"),
        time if time >= 9.995 => format!("{seconds:.1} s"),
        time if time >= 0.9995 => format!("{seconds:.2} s"),
        time if time >= 0.09995 => format!("{:.0} ms", seconds * 1e3),
        time if time >= 0.009_995 => format!("{:.1} ms", seconds * 1e3),
        time if time >= 0.000_099_95 => format!("{:.2} ms", seconds * 1e3),
        _ => format!("{:.1} µs", seconds * 1e6),
    }
}

/// A share: `12.3 %`.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

impl Cause {
    /// Current values of the related settings, as ` Now: MODE is standalone.`; may be empty.
    pub(in crate::report) fn now(&self) -> String {
        if self.settings.is_empty() {
            return String::new();
        }
        let settings: Vec<String> = self.settings.iter().map(ToString::to_string).collect();
        format!(" Now: {}.", settings.join(", "))
    }
}

/// Renders the diagnosis in the layout of `ROOT_CAUSE_ANALYSIS.md`.
pub fn markdown(diagnosis: &Diagnosis) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(&mut text, diagnosis);
    text
}

fn write(out: &mut String, diagnosis: &Diagnosis) -> std::fmt::Result {
    let wall = diagnosis.wall_s;
    let share = |time: f64| percent(if wall > 0.0 { time / wall } else { 0.0 });
    writeln!(out, "# Diagnosis of {}\n", escaped(&diagnosis.run_id))?;
    match diagnosis.causes.first() {
        Some(cause) => writeln!(
            out,
            "**{}**: removing it would save at most {} of {} ({}).\n",
            escaped(&cause.title),
            seconds(cause.saves_s),
            seconds(wall),
            share(cause.saves_s)
        )?,
        None => writeln!(
            out,
            "No known cause stands out in {}; the stages show where the time went.\n",
            seconds(wall)
        )?,
    }

    let source = match diagnosis.source {
        Source::Profile => "the profile",
        Source::Records => "the steps' times",
    };
    writeln!(out, "## Stages, from {source}\n")?;
    let mut rows =
        vec![["stage", "verdict", "share", "calls", "mean", "exposed"].map(str::to_owned)];
    rows.extend(diagnosis.stages.iter().map(|stage| {
        [
            escaped(&stage.stage),
            stage.verdict.label().to_owned(),
            percent(stage.share),
            stage.calls.to_string(),
            seconds(stage.mean_s),
            seconds(stage.exposed_s),
        ]
    }));
    rows.push([
        "idle".to_owned(),
        String::new(),
        share(diagnosis.idle_s),
        String::new(),
        String::new(),
        seconds(diagnosis.idle_s),
    ]);
    table(out, &rows)?;
    writeln!(
        out,
        "\nshare: of {}, split equally while several stages are active; exposed: time when only this \
         stage was active, an upper bound on what removing it could save.",
        seconds(wall)
    )?;

    if let Some(device) = &diagnosis.device {
        write_device(out, device, diagnosis)?;
    }
    if !diagnosis.causes.is_empty() {
        writeln!(out, "\n## What would help\n")?;
        for (number, cause) in diagnosis.causes.iter().enumerate() {
            writeln!(
                out,
                "{}. **{}** ({}; at most {}, {}). {}. {}{}",
                number + 1,
                escaped(&cause.title),
                escaped(cause.stage),
                seconds(cause.saves_s),
                share(cause.saves_s),
                escaped(&cause.evidence),
                escaped(&cause.advice),
                escaped(&cause.now())
            )?;
        }
    }
    let weighty = |stage: &&super::Finding| {
        stage.verdict != DiagnosisVerdict::NotABottleneck && !stage.advice.is_empty()
    };
    let weighty: Vec<_> = diagnosis.stages.iter().filter(weighty).collect();
    if !weighty.is_empty() {
        writeln!(out, "\n## Stage by stage\n")?;
        for stage in weighty {
            writeln!(
                out,
                "- {} ({}): {} At most {}.",
                escaped(&stage.stage),
                stage.verdict.label(),
                escaped(&stage.advice),
                seconds(stage.exposed_s)
            )?;
        }
    }
    if !diagnosis.warnings.is_empty() {
        writeln!(out, "\n## Warnings\n")?;
        for warning in &diagnosis.warnings {
            writeln!(out, "- {}.", escaped(&warning.to_string()))?;
        }
    }
    if !diagnosis.notes.is_empty() {
        writeln!(out, "\n## Notes\n")?;
        for note in &diagnosis.notes {
            writeln!(out, "- {}", escaped(note))?;
        }
    }
    Ok(())
}

/// Device time by kernel, and how busy each stage keeps the device.
fn write_device(out: &mut String, device: &DeviceTimes, diagnosis: &Diagnosis) -> std::fmt::Result {
    writeln!(out, "\n## Device time of {}\n", escaped(&device.name))?;
    for phase in &device.phases {
        let stage = (diagnosis.stages.iter()).find(|stage| stage.stage == phase.phase);
        let busy = stage
            .filter(|stage| stage.union_s > 0.0)
            .map_or_else(String::new, |stage| {
                let share = percent(phase.total_s / stage.union_s);
                format!(", {share} of the stage's {}", seconds(stage.union_s))
            });
        writeln!(
            out,
            "- {}: {} in {} passes{busy}; kernels timed in {} of them.",
            escaped(&phase.phase),
            seconds(phase.total_s),
            phase.passes,
            phase.timed_passes,
        )?;
    }
    let mut rows = vec![["kernels", "stage", "share", "launches", "mean"].map(str::to_owned)];
    for phase in &device.phases {
        rows.extend(phase.kernels.iter().map(|kernel| {
            [
                escaped(&kernel.name),
                escaped(&phase.phase),
                percent(kernel.share),
                kernel.ncall.to_string(),
                seconds(kernel.tavg_s),
            ]
        }));
    }
    writeln!(out)?;
    table(out, &rows)
}

/// Writes an aligned Markdown table; the first two columns are left-aligned.
pub(super) fn table<const N: usize>(out: &mut String, rows: &[[String; N]]) -> std::fmt::Result {
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0).max(3)
    };
    for (number, row) in rows.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            if column < 2 {
                write!(out, "| {cell:<width$} ")?;
            } else {
                write!(out, "| {cell:>width$} ")?;
            }
        }
        writeln!(out, "|")?;
        if number == 0 {
            for column in 0..N {
                let dashes = "-".repeat(width(column));
                let end = if column < 2 { '-' } else { ':' };
                write!(out, "|-{dashes}{end}")?;
            }
            writeln!(out, "|")?;
        }
    }
    Ok(())
}
