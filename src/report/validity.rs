//! What was watched while a run went on, and its energy, in words.

use std::collections::BTreeMap;

use crate::record::validity::Taint;
use crate::record::{Energy, RunRecord};
use crate::units::plural;

/// Reasons with the number of steps: `steal 3, sw_power_cap 12`.
pub(super) fn reasons(tainted: &BTreeMap<Taint, usize>) -> String {
    let each = tainted
        .iter()
        .map(|(reason, steps)| format!("{} {steps}", reason.as_str()));
    each.collect::<Vec<_>>().join(", ")
}

/// Measured energy in a line; `None` if it is not measured.
pub fn energy_line(run: &RunRecord) -> Option<String> {
    let energy = run.totals.energy.as_ref()?;
    if energy.source == "assumed" {
        return None;
    }
    let mut parts = vec![
        format!("{} J", digits(energy.joules)),
        format!("{} W on average by {}", digits(energy.watts), energy.source),
    ];
    parts.extend(rates(energy));
    Some(format!("Energy: {}", parts.join(", ")))
}

/// Energy per token and per correct answer, as far as there are any.
pub(super) fn rates(energy: &Energy) -> Vec<String> {
    let rates = [
        (energy.joules_per_token, "token"),
        (energy.joules_per_correct, "correct answer"),
    ];
    let rates = rates.into_iter();
    rates
        .filter_map(|(joules, of)| Some(format!("{} J per {of}", digits(joules?))))
        .collect()
}

/// Three digits or more, without an exponent.
pub(super) fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// The facts by name.
pub(super) fn facts(run: &RunRecord) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    let totals = &run.totals;
    if totals.steps_tainted > 0 {
        let steps = format!(
            "{} of {}: {}",
            totals.steps_tainted,
            totals.steps_done,
            reasons(&totals.tainted)
        );
        facts.push(("tainted steps", steps));
    }
    if !run.discarded.is_empty() {
        let flows = plural(run.discarded.len(), "flow");
        facts.push(("run again", flows));
    }
    if let Some(joules) = totals.energy.as_ref().and_then(|of| of.processors_joules) {
        facts.push(("processors' energy", format!("{} J", digits(joules))));
    }
    if let Some(validity) = &run.validity {
        let readings = plural(validity.samples, "reading");
        let cost = validity.cost_share.map_or_else(String::new, |share| {
            format!(", {:.2} % of a processor", 100.0 * share)
        });
        facts.push(("watched", format!("{readings}{cost}")));
    }
    facts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::validity::ValidityRecord;
    use crate::report::testing;

    #[test]
    fn energy_in_a_line() {
        let (mut run, _) = testing::run(2, 0.0, 3.0, 2.0);
        assert_eq!(energy_line(&run), None);
        run.totals.energy = Some(Energy {
            source: "rapl".to_owned(),
            watts: 45.25,
            joules: 1234.5,
            joules_per_token: Some(0.01234),
            joules_per_correct: Some(1.5),
            ..Energy::default()
        });
        insta::assert_snapshot!(energy_line(&run).expect("known"), @"Energy: 1234 J, 45.2 W on average by rapl, 0.0123 J per token, 1.50 J per correct answer");
        run.totals.energy = Some(Energy {
            source: "assumed".to_owned(),
            watts: 300.0,
            joules: 3.0,
            ..Energy::default()
        });
        assert_eq!(energy_line(&run), None);
    }

    #[test]
    fn the_facts_of_a_watched_run() {
        let (mut run, _) = testing::run(2, 0.0, 3.0, 2.0);
        assert_eq!(facts(&run), []);
        run.totals.steps_tainted = 4;
        run.totals.tainted = [(Taint::Steal, 3), (Taint::SwPowerCap, 2)].into();
        run.discarded = vec![run.workflows[0].clone()];
        run.validity = Some(ValidityRecord {
            samples: 350,
            cost_share: Some(0.0004),
            ..ValidityRecord::default()
        });
        let lines = facts(&run).into_iter();
        let lines: Vec<String> = lines
            .map(|(name, text)| format!("{name}: {text}"))
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @r"
        tainted steps: 4 of 6: steal 3, sw_power_cap 2
        run again: 1 flow
        watched: 350 readings, 0.04 % of a processor
        ");
    }
}
