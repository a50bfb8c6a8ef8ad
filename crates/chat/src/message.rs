//! One message of a conversation, in the form that everything behind the edge works with.
//! Rows of data sets and requests become these through `read_message`; the template engine takes them through
//! [`Message::for_template`]; [`serde::Serialize`] writes OpenAI's form.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::read_message::read_message;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Instructions for the whole conversation; OpenAI's newer name `developer` is read as this.
    System,
    /// The person.
    User,
    /// The model: what it says is what is learned.
    Assistant,
    /// The result of a tool call.
    Tool,
}

impl Role {
    /// The name that templates and OpenAI's objects use.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
        }
    }

    /// The role of a name, `developer` included.
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "system" | "developer" => Some(Role::System),
            "user" => Some(Role::User),
            "assistant" => Some(Role::Assistant),
            "tool" => Some(Role::Tool),
            _ => None,
        }
    }
}

/// What a message says: a string, or OpenAI's list of text parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A plain string.
    Text(String),
    /// The texts of a list of `{"type": "text", "text": …}`, never empty.
    Parts(Vec<String>),
}

impl Content {
    /// The content as one string; parts are put on lines of their own, as vLLM and llama.cpp do.
    pub fn text(&self) -> String {
        match self {
            Content::Text(text) => text.clone(),
            Content::Parts(parts) => parts.join("\n"),
        }
    }

    /// Whether there is no character in it.
    pub fn is_empty(&self) -> bool {
        match self {
            Content::Text(text) => text.is_empty(),
            Content::Parts(parts) => parts.iter().all(String::is_empty),
        }
    }
}

/// A call of a function that an assistant asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    /// Ties the result's `tool_call_id` to the call. Data sets often leave it out.
    pub id: Option<String>,
    /// The function's name.
    pub name: String,
    /// Its arguments as JSON text, as OpenAI writes them.
    pub arguments: String,
}

impl ToolCall {
    fn for_template(&self) -> Value {
        // Templates of today's models print `arguments | tojson`, so they need the object and not its text.
        let arguments = match serde_json::from_str::<Value>(&self.arguments) {
            Ok(object @ Value::Object(_)) => object,
            _ => Value::String(self.arguments.clone()),
        };
        let mut call = Map::new();
        if let Some(id) = &self.id {
            call.insert("id".to_owned(), json!(id));
        }
        call.insert("type".to_owned(), json!("function"));
        call.insert("function".to_owned(), json!({"name": self.name, "arguments": arguments}));
        Value::Object(call)
    }
}

impl Serialize for ToolCall {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut call = Map::new();
        if let Some(id) = &self.id {
            call.insert("id".to_owned(), json!(id));
        }
        call.insert("type".to_owned(), json!("function"));
        call.insert("function".to_owned(), json!({"name": self.name, "arguments": self.arguments}));
        call.serialize(serializer)
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said; `None` only for an assistant that calls tools.
    pub content: Option<Content>,
    /// A thinking model's reasoning, where it is kept apart (`reasoning_content`, `reasoning` or `thinking`).
    pub reasoning: Option<String>,
    /// The tools that the assistant called.
    pub tool_calls: Vec<ToolCall>,
    /// Which call a tool's message answers.
    pub tool_call_id: Option<String>,
    /// The speaker's or the tool's name.
    pub name: Option<String>,
    /// OpenAI's training weight of an assistant's message: 0 leaves it out of the loss, 1 or absent learns it.
    pub weight: Option<f32>,
}

impl Message {
    /// A message that says `text` and nothing else.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            content: Some(Content::Text(text.into())),
            reasoning: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
            name: None,
            weight: None,
        }
    }

    /// The same message, saying nothing in words where it had no content.
    pub(crate) fn with_words(&self) -> Self {
        let content = self.content.clone().or_else(|| Some(Content::Text(String::new())));
        Self { content, ..self.clone() }
    }

    /// Whether training learns this message: an assistant's whose weight is not 0.
    pub fn is_learned(&self) -> bool {
        self.role == Role::Assistant && self.weight != Some(0.0)
    }

    /// The content as one string, empty where there is none.
    pub fn text(&self) -> String {
        self.content.as_ref().map(Content::text).unwrap_or_default()
    }

    /// The dictionary that a chat template sees. As in transformers, absent fields are left out rather than null, and
    /// the reasoning stands under both names that templates read.
    pub(crate) fn for_template(&self, form: ContentForm) -> Value {
        let mut map = Map::new();
        map.insert("role".to_owned(), json!(self.role.as_str()));
        if let Some(reasoning) = &self.reasoning {
            map.insert("thinking".to_owned(), json!(reasoning));
        }
        if let Some(content) = &self.content {
            let many = matches!(content, Content::Parts(parts) if parts.len() > 1);
            let form = match form {
                ContentForm::AsGiven if many && self.role == Role::System => ContentForm::Text,
                form => form,
            };
            map.insert("content".to_owned(), content_value(content, form));
        }
        if let Some(name) = &self.name {
            map.insert("name".to_owned(), json!(name));
        }
        if !self.tool_calls.is_empty() {
            let calls = self.tool_calls.iter().map(ToolCall::for_template).collect();
            map.insert("tool_calls".to_owned(), Value::Array(calls));
        }
        if let Some(id) = &self.tool_call_id {
            map.insert("tool_call_id".to_owned(), json!(id));
        }
        if let Some(reasoning) = &self.reasoning {
            map.insert("reasoning_content".to_owned(), json!(reasoning));
        }
        Value::Object(map)
    }
}

/// How a template wants `content`; found out by trying when the template is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentForm {
    /// Always one string.
    Text,
    /// Always a list of parts (templates of models that also see pictures).
    Parts,
    /// Either: what came is handed on, except that several parts of a system message become one string.
    AsGiven,
}

fn content_value(content: &Content, form: ContentForm) -> Value {
    let part = |text: &str| json!({"type": "text", "text": text});
    match (content, form) {
        (Content::Text(text), ContentForm::Parts) => json!([part(text)]),
        (Content::Parts(parts), ContentForm::Parts | ContentForm::AsGiven) => Value::Array(parts.iter().map(|text| part(text)).collect()),
        (content, _) => Value::String(content.text()),
    }
}

impl Serialize for Message {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = Map::new();
        map.insert("role".to_owned(), json!(self.role.as_str()));
        let content = match &self.content {
            Some(content) => content_value(content, ContentForm::AsGiven),
            None => Value::Null,
        };
        map.insert("content".to_owned(), content);
        for (key, value) in [("reasoning_content", &self.reasoning), ("tool_call_id", &self.tool_call_id), ("name", &self.name)] {
            if let Some(value) = value {
                map.insert(key.to_owned(), json!(value));
            }
        }
        if !self.tool_calls.is_empty() {
            map.insert("tool_calls".to_owned(), json!(self.tool_calls));
        }
        if let Some(weight) = self.weight {
            map.insert("weight".to_owned(), json!(weight));
        }
        map.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        read_message(&value, "").map_err(serde::de::Error::custom)
    }
}
