//! Chat templates: from a conversation to the text that a model reads, byte for byte what transformers renders.
//! Serving calls [`ChatTemplate::render`], training [`ChatTemplate::render_for_training`]; both go through the same
//! function, so a model is asked in the form in which it learned. The text holds whatever the template writes, often a
//! BOS too: tokenise it without adding special tokens.

mod builtin;
mod content_form;
mod engine;
mod generation_tags;
mod guard;
mod json_text;
mod limits;
mod products;
mod python_filters;
mod python_methods;
mod render;
mod scan;
mod spans;
mod special_tokens;
mod substitute;

use std::ops::Range;
use std::sync::Arc;

use jiff::civil::DateTime;
use serde_json::{Map, Value};

pub use builtin::CHATML;
pub use limits::{MAX_OUTPUT_BYTES, MAX_TEMPLATE_BYTES};
pub use special_tokens::SpecialTokens;

use crate::error::{RowError, TemplateError};
use crate::message::{ContentForm, Message};
use crate::tools::ToolFormat;
use engine::{Clock, Engine};
use render::Scene;

/// A model's chat template, compiled; cheap to share, since rendering takes `&self`.
pub struct ChatTemplate {
    variants: Vec<Variant>,
    tokens: SpecialTokens,
}

/// One of a model's templates. Most have one; some a second for requests with tools.
struct Variant {
    name: String,
    source: String,
    engine: Engine,
    form: ContentForm,
}

/// What a rendering is for. The default renders the messages and nothing else.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions<'a> {
    /// Definitions of the tools that the model may call; an empty list is none.
    pub tools: Option<&'a [Value]>,
    /// Ends the text with the head of an assistant's turn, so that the model answers.
    pub add_generation_prompt: bool,
    /// Leaves the last message open, so that the model goes on with it.
    pub continue_final_message: bool,
    /// Further variables of the template (`enable_thinking`, `documents`, …), which win over special tokens.
    pub extra: Map<String, Value>,
}

/// A conversation as text, with the parts that the assistant wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// What the model reads.
    pub text: String,
    /// What the loss is on: byte ranges of `text`, in order, apart from each other. With `{% generation %}` blocks,
    /// exactly what stands in them; else each turn from the end of the generation prompt up to and with its end token,
    /// without white space after that (in ChatML `answer<|im_end|>`).
    pub assistant: Vec<Range<usize>>,
    /// Whether the last of these ranges holds more than the message's own words, that is the end of a turn. Where it
    /// does not, the template writes no end token and the caller has to append one.
    pub learns_end: bool,
}

impl Rendered {
    /// The text in pieces, each with whether the loss is on it. Tokenising piece by piece gives the tokens of serving,
    /// where the answer begins at a token of its own; the whole text at once may merge across the border.
    pub fn pieces(&self) -> Vec<(&str, bool)> {
        let mut pieces = Vec::with_capacity(2 * self.assistant.len() + 1);
        let mut at = 0;
        for range in &self.assistant {
            pieces.push((&self.text[at..range.start], false));
            pieces.push((&self.text[range.clone()], true));
            at = range.end;
        }
        pieces.push((&self.text[at..], false));
        pieces.retain(|(text, _)| !text.is_empty());
        pieces
    }
}

impl ChatTemplate {
    /// Compiles a template. What is wrong with it is found here and not at the first request.
    pub fn new(source: &str, tokens: SpecialTokens) -> Result<Self, TemplateError> {
        Self::with_clock(vec![("default".to_owned(), source.to_owned())], tokens, local_time())
    }

    /// Compiles a model's named templates: `default`, and `tool_use` for requests with tools.
    pub fn named(templates: Vec<(String, String)>, tokens: SpecialTokens) -> Result<Self, TemplateError> {
        Self::with_clock(templates, tokens, local_time())
    }

    /// Reads `chat_template` of tokenizer_config.json: a string, or a list of `{"name", "template"}`.
    pub fn from_config(value: &Value, tokens: SpecialTokens) -> Result<Self, TemplateError> {
        let Value::Array(items) = value else {
            let source = value.as_str().ok_or_else(|| {
                let expected = "a string, or a list of {\"name\", \"template\"}";
                TemplateError::Malformed(RowError::new("chat_template", value, expected))
            })?;
            return Self::new(source, tokens);
        };
        let mut templates = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            let text = |key: &str| item.get(key).and_then(Value::as_str).map(str::to_owned);
            match (text("name"), text("template")) {
                (Some(name), Some(template)) => templates.push((name, template)),
                _ => {
                    let path = format!("chat_template[{i}]");
                    let expected = "an object with the strings name and template";
                    return Err(TemplateError::Malformed(RowError::new(path, item, expected)));
                }
            }
        }
        Self::named(templates, tokens)
    }

    /// As [`ChatTemplate::named`], with the clock that `strftime_now` reads: tests and replays need a fixed one.
    pub fn with_clock(
        templates: Vec<(String, String)>,
        tokens: SpecialTokens,
        clock: impl Fn() -> DateTime + Send + Sync + 'static,
    ) -> Result<Self, TemplateError> {
        let clock: Clock = Arc::new(clock);
        let only = templates.len() == 1;
        let mut variants = Vec::with_capacity(templates.len());
        for (name, source) in templates {
            let engine = Engine::new(&source, if only { "" } else { &name }, Arc::clone(&clock))?;
            let form = content_form::of(&engine, &tokens)?;
            variants.push(Variant { name, source, engine, form });
        }
        let template = Self { variants, tokens };
        template.variant(false)?;
        Ok(template)
    }

    /// The template's source, for a request with or without tools.
    pub fn source(&self, with_tools: bool) -> &str {
        self.variant(with_tools).map_or("", |variant| &variant.source)
    }

    /// How the model spells calls of tools, if its template knows of any.
    pub fn tool_format(&self) -> Option<ToolFormat> {
        ToolFormat::of_template(self.source(true))
    }

    /// The special tokens that the template writes by name.
    pub fn tokens(&self) -> &SpecialTokens {
        &self.tokens
    }

    /// The text of a conversation.
    pub fn render(&self, messages: &[Message], options: &RenderOptions<'_>) -> Result<String, TemplateError> {
        self.with_scene(messages, options, |scene| {
            if options.continue_final_message {
                return scene.continued(messages, options.add_generation_prompt);
            }
            scene.render(&scene.messages, options.add_generation_prompt)
        })
    }

    /// The text of a conversation, and what of it is learned. `tools` and `extra` as in [`RenderOptions`].
    pub fn render_for_training(
        &self,
        messages: &[Message],
        tools: Option<&[Value]>,
        extra: &Map<String, Value>,
    ) -> Result<Rendered, TemplateError> {
        let options = RenderOptions { tools, extra: extra.clone(), ..RenderOptions::default() };
        self.with_scene(messages, &options, |scene| spans::rendered(scene, messages))
    }

    fn with_scene<T>(
        &self,
        messages: &[Message],
        options: &RenderOptions<'_>,
        work: impl FnOnce(&Scene<'_>) -> Result<T, TemplateError>,
    ) -> Result<T, TemplateError> {
        if messages.is_empty() {
            return Err(TemplateError::NoMessages);
        }
        let tools = options.tools.filter(|tools| !tools.is_empty());
        let variant = self.variant(tools.is_some())?;
        let scene = Scene::new(&variant.engine, variant.form, &self.tokens, messages, tools, &options.extra);
        // Templates that add texts without asking fail where a call has no content beside it; clients mean no words by it.
        if messages.iter().any(|message| message.content.is_none())
            && matches!(scene.render(&scene.messages, false), Err(TemplateError::Failed { .. }))
        {
            let worded: Vec<Message> = messages.iter().map(Message::with_words).collect();
            return work(&Scene::new(&variant.engine, variant.form, &self.tokens, &worded, tools, &options.extra));
        }
        work(&scene)
    }

    /// As transformers chooses: `tool_use` when there are tools and such a template, else `default`; and a single one
    /// serves for everything whatever its name.
    fn variant(&self, with_tools: bool) -> Result<&Variant, TemplateError> {
        let named = |name: &str| self.variants.iter().find(|variant| variant.name == name);
        if let [only] = self.variants.as_slice() {
            return Ok(only);
        }
        let chosen = if with_tools { named("tool_use") } else { None };
        chosen.or_else(|| named("default")).ok_or_else(|| {
            let names: Vec<&str> = self.variants.iter().map(|variant| variant.name.as_str()).collect();
            TemplateError::NoSuchTemplate {
                wanted: "\"default\"",
                present: if names.is_empty() { "nothing".to_owned() } else { names.join(", ") },
            }
        })
    }
}

fn local_time() -> impl Fn() -> DateTime + Send + Sync + 'static {
    || jiff::Timestamp::now().to_zoned_datetime(jiff::tz::TimeZone::system()).datetime()
}
