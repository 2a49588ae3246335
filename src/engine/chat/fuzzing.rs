//! Laws of chat templates.

use super::{ChatTemplate, Message};
use crate::engine::{Conversation, Role};

/// Renders `content` by `source`. What is marked as content lies within the text and is sorted.
pub(in crate::engine) fn render(source: &str, content: &str) {
    let Ok(template) = ChatTemplate::compile(source, Some("<s>"), Some("</s>")) else {
        return;
    };
    let message = |role, content: &str| Message {
        role,
        content: content.into(),
    };
    let messages = [
        message(Role::System, "Be brief."),
        message(Role::User, content),
        message(Role::Assistant, content),
        message(Role::User, "Go on."),
    ];
    if let Ok(rendered) = template.render(&messages) {
        let mut end = 0;
        for range in &rendered.content {
            assert!(end <= range.start && range.start < range.end, "{range:?}");
            assert!(rendered.text.get(range.clone()).is_some(), "{range:?}");
            end = range.end;
        }
    }
    let _ = template.try_out(&[Conversation {
        has_system: true,
        turns: 2,
    }]);
}
