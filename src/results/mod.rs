//! What runs leave on disk, and how it is read back: a run's folder, evolutions, rollouts, recordings,
//! profiles, and the merge of runs.

mod evolution;
mod files;
mod leftovers;
pub mod merge;
mod names;
pub mod outputs;
mod profile;
mod recording;
mod rollouts;
mod run_folder;
mod saved;

pub use evolution::EvolutionFolder;
pub use files::replace;
pub use names::run_name;
pub use profile::{ProfileFiles, write_pending};
pub use recording::Recording;
pub use rollouts::{Rollout, RolloutFile, Usage};
pub use run_folder::RunFolder;
pub use saved::SavedRun;
