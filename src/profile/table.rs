//! Formats the profile as text.

use std::fmt::Write;

use crate::record::profile::{DeviceTimes, Profile};

/// Both tables: the spans, and the stages with the idle time. Times are wall-clock seconds with
/// microsecond resolution; the layout suits `diff`.
pub fn text(profile: &Profile) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_tables(&mut text, profile);
    text
}

fn write_tables(out: &mut String, profile: &Profile) -> std::fmt::Result {
    let names = profile.rows.iter().map(|row| row.name.len());
    let stages = profile.stages.iter().map(|stage| stage.name.len());
    let width = names.chain(stages).max().unwrap_or(0).max(8);

    writeln!(
        out,
        "wall {:.6} s; all times are wall-clock seconds; ncall is calls/outermost calls for a span nested in itself",
        profile.wall_s
    )?;
    writeln!(
        out,
        "\n{:width$}  {:>11}  {:>12}  {:>12}  {:>12}",
        "name", "ncall", "tsub", "ttot", "tavg"
    )?;
    for row in &profile.rows {
        let ncall = if row.nprim == row.ncall {
            row.ncall.to_string()
        } else {
            format!("{}/{}", row.ncall, row.nprim)
        };
        writeln!(
            out,
            "{:width$}  {ncall:>11}  {:>12.6}  {:>12.6}  {:>12.6}",
            row.name, row.tsub_s, row.ttot_s, row.tavg_s
        )?;
    }

    writeln!(
        out,
        "\n{:width$}  {:>11}  {:>12}  {:>12}  {:>12}  {:>7}",
        "stage", "calls", "union", "exposed", "split", "share"
    )?;
    let share = |seconds: f64| match profile.wall_s {
        wall if wall > 0.0 => 100.0 * seconds / wall,
        _ => 0.0,
    };
    for stage in &profile.stages {
        writeln!(
            out,
            "{:width$}  {:>11}  {:>12.6}  {:>12.6}  {:>12.6}  {:>5.1} %",
            stage.name,
            stage.calls,
            stage.union_s,
            stage.exposed_s,
            stage.split_s,
            share(stage.split_s)
        )?;
    }
    writeln!(
        out,
        "{:width$}  {:>11}  {:>12}  {:>12}  {:>12.6}  {:>5.1} %",
        "idle",
        "",
        "",
        "",
        profile.idle_s,
        share(profile.idle_s)
    )?;
    match &profile.device {
        Some(device) => write_device(out, device, width),
        None => Ok(()),
    }
}

/// Device time by phase, and of the kernels of the passes in which they were timed.
fn write_device(out: &mut String, device: &DeviceTimes, width: usize) -> std::fmt::Result {
    writeln!(
        out,
        "\n{}: device seconds, from events in its stream",
        device.name
    )?;
    for phase in &device.phases {
        writeln!(
            out,
            "\n{:width$}  {:>11}  {:>12}  {:>12}  {:>12}  {:>7}",
            phase.phase, "ncall", "", "ttot", "tavg", "share"
        )?;
        let row = |name: &str, ncall: u64, ttot: f64| {
            let tavg = ttot / ncall.max(1) as f64;
            format!(
                "{name:width$}  {ncall:>11}  {:>12}  {ttot:>12.6}  {tavg:>12.6}",
                ""
            )
        };
        writeln!(out, "{}", row("passes", phase.passes, phase.total_s))?;
        if phase.timed_passes > 0 {
            let timed = row("by kernel", phase.timed_passes, phase.timed_s);
            writeln!(out, "{timed}")?;
        }
        for kernel in &phase.kernels {
            let row = row(&kernel.name, kernel.ncall, kernel.ttot_s);
            writeln!(out, "{row}  {:>5.1} %", 100.0 * kernel.share)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::profile::{DeviceKernel, DevicePhase, ProfileRow, StageShare};

    #[test]
    fn what_people_read() {
        let row = |name: &str, ncall, nprim, tsub_s, ttot_s| ProfileRow {
            name: name.to_owned(),
            ncall,
            nprim,
            tsub_s,
            ttot_s,
            tavg_s: ttot_s / ncall as f64,
        };
        let stage = |name: &str, calls, union_s, exposed_s, split_s| StageShare {
            name: name.to_owned(),
            calls,
            union_s,
            exposed_s,
            split_s,
        };
        let kernel = |name: &str, ncall, ttot_s| DeviceKernel {
            name: name.to_owned(),
            ncall,
            ttot_s,
            tavg_s: ttot_s / ncall as f64,
            share: ttot_s / 2.0,
        };
        let profile = Profile {
            wall_s: 36.25,
            rows: vec![
                row("run", 1, 1, 0.25, 36.25),
                row("forward", 3675, 3675, 0.5, 34.0),
                row("verify", 465, 1, 0.125, 2.0),
            ],
            stages: vec![
                stage("decode", 75, 30.0, 28.0, 29.0),
                stage("queue_wait", 75, 20.0, 0.0, 0.0),
            ],
            idle_s: 7.25,
            spans_dropped: 0,
            device: Some(DeviceTimes {
                name: "Simulated GPU".to_owned(),
                phases: vec![DevicePhase {
                    phase: "decode".to_owned(),
                    passes: 3000,
                    total_s: 30.0,
                    timed_passes: 188,
                    timed_s: 2.5,
                    kernels: vec![kernel("linear", 16_920, 1.5), kernel("norm", 11_468, 0.5)],
                }],
            }),
        };
        insta::assert_snapshot!(text(&profile));
    }

    #[test]
    fn an_empty_profile_is_a_table_without_rows() {
        assert_eq!(text(&Profile::default()).lines().count(), 6);
    }
}
