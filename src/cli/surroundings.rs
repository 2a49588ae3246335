//! The environment variables that have no flag.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::evaluate;

/// The environment variables that have no flag: those of the Hugging Face tools and of the
/// system, read once.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    home: Option<PathBuf>,
    xdg_cache_home: Option<PathBuf>,
    hf_home: Option<PathBuf>,
    hf_hub_cache: Option<PathBuf>,
    hf_endpoint: Option<String>,
    hf_token: Option<String>,
    hf_hub_offline: Option<String>,
    /// What Python needs to be found and to load its libraries.
    pub(super) python: Vec<(OsString, OsString)>,
    api_key: Option<Secret>,
}

/// A text that is not shown.
#[derive(Clone)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Surroundings {
    /// Reads them by `variable`; an empty one counts as unset, as those tools have it.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| set(name).map(PathBuf::from);
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().into_owned());
        Self {
            home: path("HOME"),
            xdg_cache_home: path("XDG_CACHE_HOME"),
            hf_home: path("HF_HOME"),
            hf_hub_cache: path("HF_HUB_CACHE"),
            hf_endpoint: text("HF_ENDPOINT"),
            hf_token: text("HF_TOKEN"),
            hf_hub_offline: text("HF_HUB_OFFLINE"),
            python: (evaluate::KEPT_VARIABLES.iter())
                .filter_map(|name| Some((OsString::from(name), variable(name)?)))
                .collect(),
            api_key: text("API_KEY").map(Secret),
        }
    }

    /// `API_KEY`.
    pub(super) fn api_key(&self) -> Option<&str> {
        self.api_key.as_ref().map(|key| key.0.as_str())
    }

    pub(super) fn model(&self, model: Option<String>, quiet: bool) -> Result<ModelConfig> {
        let cache = self
            .xdg_cache_home
            .clone()
            .or_else(|| Some(self.home.as_ref()?.join(".cache")))
            .unwrap_or_else(std::env::temp_dir);
        let offline = match self.hf_hub_offline.as_deref().map(str::to_ascii_lowercase) {
            None => false,
            Some(value) => match value.as_str() {
                "1" | "true" | "yes" | "on" => true,
                "0" | "false" | "no" | "off" => false,
                _ => {
                    return Err(Error::usage(format!(
                        "HF_HUB_OFFLINE is {value:?}; expected 0 or 1"
                    )));
                }
            },
        };
        Ok(ModelConfig {
            model,
            cache_dir: cache.join("flowbench"),
            hf_cache_dir: self.hf_hub_cache.clone().unwrap_or_else(|| {
                self.hf_home
                    .clone()
                    .unwrap_or_else(|| cache.join("huggingface"))
                    .join("hub")
            }),
            hf_endpoint: self.hf_endpoint.clone(),
            hf_token: self.hf_token.clone(),
            offline,
            quiet,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surroundings(set: &[(&str, &str)]) -> Surroundings {
        Surroundings::read(|name| {
            set.iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn caches_are_found_as_the_other_tools_find_them() {
        let model = |set: &[(&str, &str)]| surroundings(set).model(None, false);
        let home = model(&[("HOME", "/h")]).expect("sound");
        assert_eq!(home.cache_dir, PathBuf::from("/h/.cache/flowbench"));
        assert_eq!(
            home.hf_cache_dir,
            PathBuf::from("/h/.cache/huggingface/hub")
        );
        assert!(!home.offline);
        let moved = model(&[("HOME", "/h"), ("HF_HOME", "/hf"), ("HF_HUB_OFFLINE", "1")]);
        let moved = moved.expect("sound");
        assert_eq!(moved.hf_cache_dir, PathBuf::from("/hf/hub"));
        assert!(moved.offline);
        let odd = model(&[("HF_HUB_OFFLINE", "maybe")]).expect_err("neither 0 nor 1");
        assert_eq!(odd.exit(), crate::error::Exit::Usage);
    }
}
