//! One conversation in front of one template: the variables that the template sees, made once and rendered as often as
//! the search for the assistant's turns needs, in whole, in part, or with a message changed.

use minijinja::Value;
use minijinja::value::Serde;
use serde_json::{Map, Value as Json};

use super::engine::{Context, Engine};
use super::special_tokens::SpecialTokens;
use crate::error::TemplateError;
use crate::message::{Content, ContentForm, Message};

/// A template with a conversation's variables.
pub(super) struct Scene<'a> {
    pub(super) engine: &'a Engine,
    /// The messages as the template sees them.
    pub(super) messages: Vec<Value>,
    form: ContentForm,
    variables: Vec<(String, Value)>,
    /// The size of what the template is given.
    bytes: usize,
}

/// What transformers puts behind the message that is to be continued, to find its place.
const CONTINUE_HERE: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

impl<'a> Scene<'a> {
    pub(super) fn new(
        engine: &'a Engine,
        form: ContentForm,
        tokens: &SpecialTokens,
        messages: &[Message],
        tools: Option<&[Json]>,
        extra: &Map<String, Json>,
    ) -> Self {
        // transformers passes both even where there are none, and templates ask `is not none`.
        let mut variables = vec![("tools".to_owned(), Value::from(())), ("documents".to_owned(), Value::from(()))];
        let mut set = |name: &str, value: Value| match variables.iter_mut().find(|(n, _)| n == name) {
            Some(found) => found.1 = value,
            None => variables.push((name.to_owned(), value)),
        };
        for (name, token) in tokens.named() {
            set(name, Value::from(token));
        }
        let mut bytes = 0;
        for (name, value) in extra {
            bytes += size(value);
            set(name, Value::from(Serde(value)));
        }
        if let Some(tools) = tools {
            bytes += tools.iter().map(size).sum::<usize>();
            set("tools", Value::from(Serde(tools)));
        }
        variables.retain(|(name, _)| name != "messages" && name != "add_generation_prompt");
        let messages: Vec<Json> = messages.iter().map(|message| message.for_template(form)).collect();
        bytes += messages.iter().map(size).sum::<usize>();
        let messages = messages.into_iter().map(|message| Value::from(Serde(message))).collect();
        Self { engine, messages, form, variables, bytes }
    }

    /// A message as the template sees it.
    pub(super) fn seen(&self, message: &Message) -> Value {
        Value::from(Serde(message.for_template(self.form)))
    }

    /// Renders these messages.
    pub(super) fn render(&self, messages: &[Value], add_generation_prompt: bool) -> Result<String, TemplateError> {
        self.engine.render(&self.context(messages, add_generation_prompt))
    }

    /// Renders them with marks around generation blocks.
    pub(super) fn render_marked(&self, messages: &[Value]) -> Result<String, TemplateError> {
        self.engine.render_marked(&self.context(messages, false))
    }

    fn context(&self, messages: &[Value], add_generation_prompt: bool) -> Context {
        let own = [
            ("messages".to_owned(), Value::from(messages.to_vec())),
            ("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)),
        ];
        let variables = Value::from_pairs(self.variables.iter().cloned().chain(own));
        Context { variables, bytes: self.bytes, messages: messages.len() }
    }

    /// Renders with the last message left open, found as transformers finds it: by a tag behind its words.
    pub(super) fn continued(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, TemplateError> {
        if add_generation_prompt {
            return Err(TemplateError::Continue("add_generation_prompt opens a new turn instead; ask for one of the two"));
        }
        let mut last = messages.last().ok_or(TemplateError::NoMessages)?.clone();
        let words = match &mut last.content {
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => parts.last_mut().ok_or(TemplateError::NoMessages)?,
            None => return Err(TemplateError::Continue("the last message has no content to go on with")),
        };
        let own = words.trim().to_owned();
        words.push_str(CONTINUE_HERE);
        let mut changed = self.messages.clone();
        changed.pop();
        changed.push(self.seen(&last));
        let text = self.render(&changed, false)?;
        let tag = CONTINUE_HERE.trim_end();
        let Some(at) = text.rfind(tag).filter(|_| text.contains(&own)) else {
            return Err(TemplateError::Continue("the chat template leaves out parts of the last message, so it cannot be gone on with"));
        };
        let open = &text[..at];
        let kept_spaces = text[at..].starts_with(CONTINUE_HERE);
        Ok(if kept_spaces { open } else { open.trim_end() }.to_owned())
    }
}

/// Bytes of the texts in a value, and some for every value.
fn size(value: &Json) -> usize {
    const EACH: usize = 16;
    EACH + match value {
        Json::String(text) => text.len(),
        Json::Array(items) => items.iter().map(size).sum(),
        Json::Object(map) => map.iter().map(|(key, value)| EACH + key.len() + size(value)).sum(),
        _ => 0,
    }
}
