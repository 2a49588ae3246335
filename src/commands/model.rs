//! `flowbench model`: downloads a model, or prints the metadata of its file.

use std::sync::atomic::AtomicBool;

use crate::config::ModelConfig;
use crate::engine;
use crate::error::{Exit, Result};
use crate::report::Console;
use crate::session::model::locate;

/// Finds the model or downloads it, and prints its path.
///
/// # Errors
/// Exit code 3 if it is not available, 106 if the download was interrupted.
pub(crate) fn fetch(
    config: &ModelConfig,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<Exit> {
    let model = locate(config, console, interrupted)?;
    console.data(&model.path.display().to_string())?;
    Ok(Exit::Done)
}

/// Prints the metadata of the model's file.
///
/// # Errors
/// Exit code 3 if it is not available or cannot be read.
pub(crate) fn inspect(
    config: &ModelConfig,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<Exit> {
    let model = locate(config, console, interrupted)?;
    let facts = engine::inspect_model(&model)?;
    let digest = engine::digest(config, &model)?;
    console.result(&format!("{:<14}{}", "file", model.path.display()))?;
    if let Some(digest) = digest {
        console.result(&format!("{:<14}{digest}", "sha256"))?;
    }
    for (name, value) in facts {
        console.result(&format!("{name:<14}{value}"))?;
    }
    Ok(Exit::Done)
}
