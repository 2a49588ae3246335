//! Checks the server of `MODE=remote`: whether and how it is reached, and whether it has the model.

use super::Check;
use crate::config::RemoteConfig;
use crate::engine::{self, ServerAnswer, ServerReport};

/// `wanted` is the model that a run would request.
pub(super) fn checks(config: &RemoteConfig, wanted: Option<&str>) -> Vec<Check> {
    match engine::probe_server(config) {
        Ok(report) => found(
            &config.server.endpoint.to_string(),
            &report,
            config.model(wanted),
        ),
        Err(error) => vec![Check::fail(
            "tls",
            error.chain(),
            error.hint_text().unwrap_or_default(),
        )],
    }
}

fn found(endpoint: &str, report: &ServerReport, wanted: Option<&str>) -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some(proxy) = &report.proxy {
        checks.push(Check::ok(
            "proxy",
            format!("{proxy} is used for {endpoint}"),
        ));
    }
    let answers = format!("{endpoint} answers ({} ms)", report.time);
    let trusted = |checks: &mut Vec<Check>| {
        checks.push(Check::ok("endpoint", &answers));
        if let Some(roots) = &report.roots {
            checks.push(Check::ok(
                "tls",
                format!("its certificate is trusted by {roots}"),
            ));
        }
    };
    match &report.answer {
        ServerAnswer::Failed(why, hint) => checks.push(Check::fail(
            "endpoint",
            why,
            hint.unwrap_or("is the server running, and is ENDPOINT its base URL?"),
        )),
        ServerAnswer::Starting(why) => checks.push(Check::fail(
            "endpoint",
            format!("{endpoint} is not ready: {why}"),
            "WAIT_READY=SECONDS lets a run wait for it",
        )),
        ServerAnswer::NoList(why, hint) => {
            trusted(&mut checks);
            checks.push(match wanted {
                Some(wanted) => Check::warn(
                    "model",
                    format!("{wanted} is not checked, since the server lists no models: {why}"),
                    hint.unwrap_or("the first request of a run tells whether it is there"),
                ),
                None => Check::fail(
                    "model",
                    format!("the server lists no models: {why}"),
                    match hint {
                        Some(hint) => format!("{hint}; or let MODEL (--model) name the model"),
                        None => "let MODEL (--model) name the model to ask for".to_owned(),
                    },
                ),
            });
        }
        ServerAnswer::Models(models) => {
            trusted(&mut checks);
            checks.push(model(models, wanted));
        }
    }
    checks
}

/// Whether the listed models include the wanted one.
fn model(models: &[String], wanted: Option<&str>) -> Check {
    const MOST: usize = 8;
    let mut names = models[..models.len().min(MOST)].join(", ");
    if models.len() > MOST {
        names.push_str(", …");
    }
    match (wanted, models) {
        (Some(wanted), models) if models.iter().any(|model| model == wanted) => Check::ok(
            "model",
            format!("{wanted}, one of {} that the server lists", models.len()),
        ),
        (Some(wanted), _) => Check::warn(
            "model",
            format!(
                "{wanted} is not listed; the server lists {}: {names}",
                models.len()
            ),
            "let MODEL (--model) be one of them, unless the server knows it by another name, too",
        ),
        (None, [only]) => Check::ok("model", format!("{only}, the only one of the server")),
        (None, []) => Check::fail(
            "model",
            "the server lists no model",
            "load a model there, or let MODEL (--model) name one",
        ),
        (None, _) => Check::fail(
            "model",
            format!("the server lists {} models: {names}", models.len()),
            "let MODEL (--model) name one of them",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::Level;
    use crate::units::Millis;
    use std::time::Duration;

    fn levels(answer: ServerAnswer, wanted: Option<&str>) -> Vec<(&'static str, Level)> {
        let report = ServerReport {
            proxy: None,
            roots: Some("the system's store".to_owned()),
            time: Millis::from(Duration::from_millis(3)),
            answer,
        };
        let checks = found("https://host/v1", &report, wanted);
        checks
            .iter()
            .map(|check| (check.subject, check.level))
            .collect()
    }

    #[test]
    fn a_server_is_as_good_as_its_model() {
        let models = |names: &[&str]| {
            ServerAnswer::Models(names.iter().map(|name| (*name).to_owned()).collect())
        };
        let reached = [("endpoint", Level::Ok), ("tls", Level::Ok)];
        let no_list = || ServerAnswer::NoList("403 Forbidden".to_owned(), None);
        for (answer, wanted, model) in [
            (models(&["a"]), None, Level::Ok),
            (models(&["a", "b"]), Some("b"), Level::Ok),
            (models(&["a", "b"]), Some("c"), Level::Warn),
            (models(&["a", "b"]), None, Level::Fail),
            (models(&[]), None, Level::Fail),
            (no_list(), Some("a"), Level::Warn),
            (no_list(), None, Level::Fail),
        ] {
            let levels = levels(answer.clone(), wanted);
            assert_eq!(levels[..2], reached);
            assert_eq!(levels[2..], [("model", model)], "{answer:?} {wanted:?}");
        }
        for answer in [
            ServerAnswer::Failed("refused".to_owned(), None),
            ServerAnswer::Starting("503".to_owned()),
        ] {
            assert_eq!(levels(answer, Some("a")), [("endpoint", Level::Fail)]);
        }
    }
}
