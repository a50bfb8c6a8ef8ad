//! The output of a response as it grows: items, and the typed events that a stream tells of them.
//!
//! Whole answers are built by it too, so that a stream's last event and an answer without a stream cannot differ.

use serde_json::{Value, json};
use tunesmith_chat::{StreamPiece, ToolCall, ToolStream};

use super::items::new_id;
use crate::api::text::tokens::ChatToken;
use crate::api::text::tools::new_call_id;

/// Items and events in the making.
pub struct Output {
    items: Vec<Value>,
    open: Option<OpenMessage>,
    tools: Option<ToolStream>,
    events: Vec<Value>,
    sequence: u64,
    /// Whether to tell log-probabilities.
    logprobs: bool,
    /// Those of tokens whose text is not certain yet.
    pending: Vec<Value>,
}

/// A message that still grows.
struct OpenMessage {
    id: String,
    text: String,
    logprobs: Vec<Value>,
}

impl Output {
    /// An empty output.
    pub fn new(tools: Option<ToolStream>, logprobs: bool) -> Self {
        Self { items: Vec::new(), open: None, tools, events: Vec::new(), sequence: 0, logprobs, pending: Vec::new() }
    }

    /// Adds an event; its number is its place in the stream.
    pub fn event(&mut self, kind: &str, mut fields: Value) {
        fields["type"] = json!(kind);
        fields["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        self.events.push(fields);
    }

    /// The events since the last time.
    pub fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events)
    }

    /// The items that are whole.
    pub fn items(&self) -> &[Value] {
        &self.items
    }

    /// Takes text of the model in, with the token that it ends with.
    pub fn push(&mut self, text: &str, token: Option<ChatToken>) {
        self.pending.extend(token.map(|t| json!(t)));
        let pieces = match &mut self.tools {
            Some(tools) => tools.push(text),
            None => vec![StreamPiece::Text(text.to_owned())],
        };
        pieces.into_iter().for_each(|piece| self.piece(piece));
    }

    /// Ends the output; `status` is `completed` or `incomplete`.
    pub fn finish(&mut self, rest: &str, status: &str) {
        self.push(rest, None);
        let held_back = self.tools.as_mut().map(ToolStream::finish).unwrap_or_default();
        held_back.into_iter().for_each(|piece| self.piece(piece));
        if self.items.is_empty() && self.open.is_none() {
            self.open_message();
        }
        self.close_message(status);
    }

    fn piece(&mut self, piece: StreamPiece) {
        match piece {
            StreamPiece::Text(text) if text.is_empty() => {}
            StreamPiece::Text(text) => self.text(text),
            StreamPiece::Call(call) => {
                self.close_message("completed");
                self.call(call);
            }
        }
    }

    fn open_message(&mut self) -> &mut OpenMessage {
        let index = self.items.len();
        if self.open.is_none() {
            let id = new_id("msg");
            let item = json!({"id": id, "type": "message", "role": "assistant", "status": "in_progress", "content": []});
            self.event("response.output_item.added", json!({"output_index": index, "item": item}));
            let part = json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []});
            let fields = json!({"item_id": id, "output_index": index, "content_index": 0, "part": part});
            self.event("response.content_part.added", fields);
            self.open = Some(OpenMessage { id, text: String::new(), logprobs: Vec::new() });
        }
        self.open.get_or_insert_with(|| OpenMessage { id: String::new(), text: String::new(), logprobs: Vec::new() })
    }

    fn text(&mut self, text: String) {
        let logprobs = if self.logprobs { std::mem::take(&mut self.pending) } else { Vec::new() };
        let message = self.open_message();
        message.text.push_str(&text);
        message.logprobs.extend(logprobs.iter().cloned());
        let fields =
            json!({"item_id": message.id, "output_index": self.items.len(), "content_index": 0, "delta": text, "logprobs": logprobs});
        self.event("response.output_text.delta", fields);
    }

    fn close_message(&mut self, status: &str) {
        let Some(OpenMessage { id, text, logprobs }) = self.open.take() else { return };
        let index = self.items.len();
        let at = json!({"item_id": id, "output_index": index, "content_index": 0});
        let with = |name: &str, value: Value| {
            let mut fields = at.clone();
            fields[name] = value;
            fields
        };
        let mut done = with("text", json!(text));
        done["logprobs"] = json!(logprobs);
        self.event("response.output_text.done", done);
        let part = json!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs});
        self.event("response.content_part.done", with("part", part.clone()));
        let item = json!({"id": id, "type": "message", "role": "assistant", "status": status, "content": [part]});
        self.item_done(index, item);
    }

    fn call(&mut self, call: ToolCall) {
        let (index, id, call_id) = (self.items.len(), new_id("fc"), call.id.unwrap_or_else(new_call_id));
        let item = |arguments: &str, status: &str| json!({"id": id, "type": "function_call", "status": status, "call_id": call_id, "name": call.name, "arguments": arguments});
        self.event("response.output_item.added", json!({"output_index": index, "item": item("", "in_progress")}));
        let fields = json!({"item_id": id, "output_index": index, "delta": call.arguments});
        self.event("response.function_call_arguments.delta", fields);
        let fields = json!({"item_id": id, "output_index": index, "name": call.name, "arguments": call.arguments});
        self.event("response.function_call_arguments.done", fields);
        self.item_done(index, item(&call.arguments, "completed"));
    }

    fn item_done(&mut self, index: usize, item: Value) {
        self.event("response.output_item.done", json!({"output_index": index, "item": item}));
        self.items.push(item);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tunesmith_chat::ToolFormat;

    fn kinds(output: &mut Output) -> Vec<String> {
        let events = output.take_events();
        assert!(events.iter().enumerate().all(|(i, e)| e["sequence_number"] == json!(i)));
        events.iter().map(|e| e["type"].as_str().unwrap().trim_start_matches("response.").to_owned()).collect()
    }

    #[test]
    fn a_message_opens_grows_and_closes_in_openais_order() {
        let mut output = Output::new(None, false);
        output.push("Hello", None);
        output.push("", None);
        output.finish(" world", "incomplete");
        assert_eq!(
            kinds(&mut output),
            [
                "output_item.added",
                "content_part.added",
                "output_text.delta",
                "output_text.delta",
                "output_text.done",
                "content_part.done",
                "output_item.done"
            ]
        );
        assert_eq!(output.items()[0]["content"][0]["text"], "Hello world");
        assert_eq!(output.items()[0]["status"], "incomplete");
    }

    #[test]
    fn calls_are_items_of_their_own_and_an_empty_answer_is_an_empty_message() {
        let mut output = Output::new(Some(ToolStream::new(ToolFormat::Hermes)), false);
        output.push("I look.<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1}}</tool_call>", None);
        output.finish("", "completed");
        let items = output.items();
        assert_eq!((items[0]["type"].as_str(), items[1]["type"].as_str()), (Some("message"), Some("function_call")));
        assert_eq!(serde_json::from_str::<Value>(items[1]["arguments"].as_str().unwrap()).unwrap(), json!({"a": 1}));
        assert!(kinds(&mut output).ends_with(&["function_call_arguments.done".to_owned(), "output_item.done".to_owned()]));
        let mut empty = Output::new(None, false);
        empty.finish("", "completed");
        assert_eq!(empty.items()[0]["content"][0]["text"], "");
    }
}
