//! `flowbench model`: find or fetch a model, or print what its file says of itself.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::ModelConfig;
use crate::engine::{self, ModelFile, Watch};
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
    let model = locate(config, console, interrupted)?;
    console.data(&model.path.display().to_string())?;
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

/// Finds the model or fetches it; tells what is going on, and stops on an interrupt.
pub(super) fn locate(
    config: &ModelConfig,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<ModelFile> {
    engine::locate(
        config,
        &mut Watch {
            say: &mut |line| console.progress(line),
            cancelled: &|| interrupted.load(Ordering::Relaxed),
        },
    )
}
