//! Finds out how a template wants `content`: as a string, as a list of parts, or either. The formats cannot be told from
//! the source, so a small conversation is rendered in each form when the template is compiled.

use serde_json::Map;

use super::engine::Engine;
use super::render::Scene;
use super::special_tokens::SpecialTokens;
use crate::error::TemplateError;
use crate::message::{Content, ContentForm, Message, Role};

/// Words that stand in no template.
const WORDS: [&str; 6] = ["qzvwa", "qzvwb", "qzvwc", "qzvwd", "qzvwe", "qzvwf"];

/// The form that `engine`'s template wants.
///
/// # Errors
/// If the template uses more than it may on a few words: such a model is refused when it is loaded.
pub(super) fn of(engine: &Engine, tokens: &SpecialTokens) -> Result<ContentForm, TemplateError> {
    for system in [true, false] {
        let render = |messages: &[Message], form| {
            let scene = Scene::new(engine, form, tokens, messages, None, &Map::new());
            match scene.render(&scene.messages, false) {
                Err(limit @ TemplateError::Limit(_)) => Err(limit),
                other => Ok(other.ok()),
            }
        };
        let single = talk(system, 1);
        let whole = |text: Option<String>, words: usize| {
            let expected = talk(system, words);
            text.filter(|text| expected.iter().all(|message| said(message).all(|word| text.contains(word))))
        };
        let text = whole(render(&single, ContentForm::Text)?, 1);
        let parts = whole(render(&single, ContentForm::Parts)?, 1);
        match (text, parts) {
            (None, None) => {}
            (None, Some(_)) => return Ok(ContentForm::Parts),
            (Some(text), Some(parts)) if text == parts => {
                let double = talk(system, 2);
                let double = whole(render(&double, ContentForm::Parts)?, 2);
                return Ok(if double.is_some() { ContentForm::AsGiven } else { ContentForm::Text });
            }
            (Some(_), _) => return Ok(ContentForm::Text),
        }
    }
    Ok(ContentForm::Text)
}

fn said(message: &Message) -> impl Iterator<Item = &str> {
    let parts = match &message.content {
        Some(Content::Parts(parts)) => parts.as_slice(),
        _ => &[],
    };
    parts.iter().map(String::as_str)
}

/// A conversation whose messages have this many parts; the system's has one, since templates that read lists often take
/// the first of its parts only (`for_template` hands such messages on as one string).
fn talk(system: bool, parts: usize) -> Vec<Message> {
    [Role::System, Role::User, Role::Assistant]
        .into_iter()
        .zip(WORDS.chunks(2))
        .filter(|(role, _)| system || *role != Role::System)
        .map(|(role, words)| {
            let taken = if role == Role::System { 1 } else { parts };
            let mut message = Message::new(role, "");
            let texts = words.iter().take(taken).map(|&word| word.to_owned());
            message.content = Some(Content::Parts(texts.collect()));
            message
        })
        .collect()
}
