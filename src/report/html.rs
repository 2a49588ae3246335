//! Renders self-contained HTML pages.

use minijinja::Environment;

use crate::error::{Context, Exit, Result};

/// What the pages of comparisons and histories have in common.
const STYLE: &str = include_str!("style.css");

/// Fills a page's template with `values`, which are escaped. It may include `style.css`.
///
/// # Errors
/// Exit code 110 if the template fails to render, which would be a bug.
pub(super) fn render(template: &str, values: &serde_json::Value) -> Result<String> {
    let broken = || "failed to make the page".to_owned();
    let mut environment = Environment::new();
    // minijinja escapes values in templates whose name ends in `.html`.
    environment
        .add_template("page.html", template)
        .and_then(|()| environment.add_template("style.css", STYLE))
        .or_exit(Exit::Output, broken)?;
    let page = environment
        .get_template("page.html")
        .or_exit(Exit::Output, broken)?;
    page.render(minijinja::value::Serde(values))
        .or_exit(Exit::Output, broken)
}
