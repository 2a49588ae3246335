//! Finds the model, on this machine or on a hub.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::ModelConfig;
use crate::engine::{self, ModelFile, Watch};
use crate::error::Result;
use crate::report::Console;

/// Finds the model or downloads it, with progress on the console. An interrupt stops it.
pub(crate) fn locate(
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
