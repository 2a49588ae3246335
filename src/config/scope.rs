//! What a setting belongs to. A type that holds settings belongs to one scope as a whole, so that
//! comparability of runs follows from types.

use super::remote::Server;
use super::{
    Gates, Layout, MachineSettings, ModelConfig, PresentationSettings, ProfileConfig, RolloutFiles,
};
#[cfg(test)]
use super::{JobSettings, RolloutRows};

/// What a setting belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// What is measured. Runs that differ here are not comparable.
    Job,
    /// Where and by what means: paths, servers, Python.
    Machine,
    /// What is shown and kept.
    Presentation,
}

impl Scope {
    /// The scope of the setting that records keep under `name`. A setting that is not known, of another
    /// version perhaps, is taken to be the job's.
    pub fn of(name: &str) -> Self {
        let is_in = |types: &[&[&str]]| types.iter().any(|names| names.contains(&name));
        if is_in(MACHINE) {
            Self::Machine
        } else if is_in(PRESENTATION) {
            Self::Presentation
        } else {
            Self::Job
        }
    }
}

const MACHINE: &[&[&str]] = &[
    MachineSettings::NAMES,
    ModelConfig::NAMES,
    Layout::NAMES,
    Server::NAMES,
    RolloutFiles::NAMES,
];

const PRESENTATION: &[&[&str]] = &[
    PresentationSettings::NAMES,
    ProfileConfig::NAMES,
    Gates::NAMES,
];

/// Settings of the job that have a type of their own; others are found to be the job's by default.
#[cfg(test)]
const JOB: &[&[&str]] = &[JobSettings::NAMES, RolloutRows::NAMES];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_setting_belongs_to_two_scopes() {
        let names = |types: &[&[&'static str]]| -> Vec<&'static str> { types.concat() };
        let (machine, presentation) = (names(MACHINE), names(PRESENTATION));
        assert!(!machine.iter().any(|name| presentation.contains(name)));
        for name in names(JOB) {
            assert_eq!(Scope::of(name), Scope::Job, "{name}");
        }
    }

    #[test]
    fn settings_have_the_scope_of_their_type() {
        for (name, scope) in [
            ("seed", Scope::Job),
            ("max_tokens_total", Scope::Job),
            ("limit", Scope::Job),
            ("endpoint_api", Scope::Job),
            ("cache_dir", Scope::Machine),
            ("endpoint", Scope::Machine),
            ("input", Scope::Machine),
            ("root", Scope::Machine),
            ("wait_ready_s", Scope::Machine),
            ("quiet", Scope::Presentation),
            ("profile_dir", Scope::Presentation),
            ("of a later version", Scope::Job),
        ] {
            assert_eq!(Scope::of(name), scope, "{name}");
        }
    }
}
