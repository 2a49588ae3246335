//! What runs leave on disk, and how it is read back: a run's folder, evolutions, rollouts, recordings,
//! profiles, names of runs and baselines, and the merge of runs.

mod amend;
pub mod baselines;
mod comparable;
mod evolution;
mod files;
pub mod history;
mod identity;
mod leftovers;
mod measured;
pub mod merge;
mod names;
pub mod outputs;
mod profile;
mod reading;
mod recording;
mod reopened;
mod rollouts;
mod run_folder;
pub mod runs;
mod saved;

pub use comparable::{circumstances, obstacle};
pub use evolution::EvolutionFolder;
pub use files::{append_summary, ordinary, replace, replace_named};
pub use identity::{Identity, common, explains_outputs, segments, subject, undisturbed};
pub use measured::{read_all, read_measured};
pub use names::run_name;
pub use profile::{ProfileFiles, write_pending};
pub use reading::record as read_record;
pub use recording::Recording;
pub use reopened::Reopened;
pub use rollouts::{Existing, Rollout, RolloutFile, Usage};
pub use run_folder::RunFolder;
pub use saved::SavedRun;
