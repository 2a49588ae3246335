//! Environment variables without a matching flag.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use super::workflows::switch;
use crate::config::{ModelConfig, Trust};
use crate::error::{Error, Result};
use crate::evaluate;

/// Environment variables without a matching flag: those of the Hugging Face tools and of the
/// system, read once.
#[derive(Debug, Clone, Default)]
pub struct ProcessEnv {
    home: Option<PathBuf>,
    xdg_cache_home: Option<PathBuf>,
    hf_home: Option<PathBuf>,
    hf_hub_cache: Option<PathBuf>,
    hf_endpoint: Option<String>,
    hf_token: Option<String>,
    hf_hub_offline: Option<String>,
    /// Variables that Python needs to start and to load its libraries.
    pub(super) python: Vec<(OsString, OsString)>,
    /// `GITHUB_SHA`.
    pub(super) commit: Option<String>,
    api_key: Option<Secret>,
    ssl_cert_file: Option<PathBuf>,
    ssl_cert_dir: Option<OsString>,
    /// `GITHUB_STEP_SUMMARY`: the file that GitHub Actions shows as the summary of a step.
    pub step_summary: Option<PathBuf>,
    variables: Lookup,
}

/// Looks up the variables that a setting refers to, and the proxy variables.
#[derive(Clone)]
struct Lookup(Arc<Variables>);

type Variables = dyn Fn(&str) -> Option<OsString> + Send + Sync;

impl Default for Lookup {
    fn default() -> Self {
        Self(Arc::new(|_| None))
    }
}

impl std::fmt::Debug for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lookup(…)")
    }
}

/// A string that `Debug` does not print.
#[derive(Clone)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl ProcessEnv {
    /// Reads them through `variable`. An empty value counts as unset, as in the Hugging Face tools.
    pub fn read(variable: impl Fn(&str) -> Option<OsString> + Send + Sync + 'static) -> Self {
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
            commit: text("GITHUB_SHA"),
            api_key: text("API_KEY").map(Secret),
            ssl_cert_file: path("SSL_CERT_FILE"),
            ssl_cert_dir: set("SSL_CERT_DIR"),
            step_summary: path("GITHUB_STEP_SUMMARY"),
            variables: Lookup(Arc::new(variable)),
        }
    }

    /// Any variable; an empty value counts as unset.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        let value = (self.variables.0)(name).filter(|value| !value.is_empty())?;
        Some(value.to_string_lossy().into_owned())
    }

    /// `SSL_CERT_FILE` and `SSL_CERT_DIR`.
    pub(super) fn trust(&self) -> Trust {
        let folders = self.ssl_cert_dir.iter().flat_map(std::env::split_paths);
        Trust {
            file: self.ssl_cert_file.clone(),
            folders: folders
                .filter(|path| !path.as_os_str().is_empty())
                .collect(),
        }
    }

    /// `ROLLOUT_RESUME`: `--resume` without a run.
    pub(super) fn resumes_rows(&self) -> Result<bool> {
        is_on("ROLLOUT_RESUME", self.text("ROLLOUT_RESUME").as_deref())
    }

    /// `API_KEY`.
    pub(super) fn api_key(&self) -> Option<&str> {
        self.api_key.as_ref().map(|key| key.0.as_str())
    }

    pub(super) fn model(&self, model: Option<String>) -> Result<ModelConfig> {
        let cache = self
            .xdg_cache_home
            .clone()
            .or_else(|| Some(self.home.as_ref()?.join(".cache")))
            .unwrap_or_else(std::env::temp_dir);
        let offline = is_on("HF_HUB_OFFLINE", self.hf_hub_offline.as_deref())?;
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
        })
    }
}

/// Whether a variable is 1; by default it is not.
fn is_on(name: &str, value: Option<&str>) -> Result<bool> {
    let Some(value) = value else {
        return Ok(false);
    };
    switch(value).ok_or_else(|| Error::usage(format!("{name} is {value:?}; expected 0 or 1")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(set: &[(&str, &str)]) -> ProcessEnv {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let set: Vec<(String, String)> = set.iter().map(own).collect();
        ProcessEnv::read(move |name| {
            set.iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn certificate_paths_follow_openssl() {
        let trust =
            environment(&[("SSL_CERT_FILE", "/ca.pem"), ("SSL_CERT_DIR", "/a::/b")]).trust();
        assert_eq!(trust.file, Some(PathBuf::from("/ca.pem")));
        assert_eq!(trust.folders, [PathBuf::from("/a"), PathBuf::from("/b")]);
        assert_eq!(
            environment(&[("SSL_CERT_FILE", "")]).trust(),
            Trust::default()
        );
        assert_eq!(environment(&[("KEY", "")]).text("KEY"), None);
        assert_eq!(
            environment(&[("KEY", "x")]).text("KEY").as_deref(),
            Some("x")
        );
    }

    #[test]
    fn cache_folders_follow_xdg_and_hugging_face() {
        let model = |set: &[(&str, &str)]| environment(set).model(None);
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
