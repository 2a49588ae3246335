//! `flowbench model`: find or fetch a model, or print what its file says of itself.

use std::sync::atomic::AtomicBool;

use crate::config::ModelConfig;
use crate::engine;
use crate::error::{Exit, Result};
use crate::report::Console;

/// Finds the model or fetches it, and prints its path.
///
/// # Errors
/// Exit code 3 where it cannot be had, 106 where it was interrupted.
pub(crate) fn fetch(
    config: &ModelConfig,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<Exit> {
    let model = engine::locate_model(config, interrupted)?;
    console.progress(&format!("Model from the {}", model.source));
    console.result(&model.path.display().to_string())?;
    Ok(Exit::Done)
}

/// Prints what the model file says of itself.
///
/// # Errors
/// Exit code 3 where it cannot be had or read.
pub(crate) fn inspect(
    config: &ModelConfig,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<Exit> {
    let model = engine::locate_model(config, interrupted)?;
    for (key, value) in engine::inspect_model(&model)? {
        console.result(&format!("{key:<16}  {value}"))?;
    }
    Ok(Exit::Done)
}
