//! The flags of `init`.

use std::path::PathBuf;

use clap::Args;

/// `flowbench init`.
#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    /// Folder to put the files into; it is created if it does not exist
    #[arg(default_value = ".")]
    pub dir: PathBuf,

    /// Copy this shipped template, with its suite, script and fixture, in place of the small example
    #[arg(long, value_name = "NAME")]
    pub template: Option<String>,

    /// Print the names and descriptions of the shipped templates, and write nothing
    #[arg(long, conflicts_with_all = ["dir", "template"])]
    pub list: bool,
}
