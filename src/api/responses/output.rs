//! A model's text as it becomes the items of a response: messages, and the calls that are written in it.
//!
//! Answers with and without a stream are built by it, so that a stream's last event and a whole answer cannot differ.

use serde_json::{Value, json};
use tunesmith_chat::{StreamPiece, ToolStream};

use super::transcript::Transcript;
use crate::api::text::tokens::ChatToken;

/// Reads a model's text into a transcript.
pub struct Output {
    tools: Option<ToolStream>,
    /// Whether to tell log-probabilities.
    logprobs: bool,
    /// Those of tokens whose text is not certain yet.
    pending: Vec<Value>,
}

impl Output {
    /// Reads calls too, where there are `tools`.
    pub fn new(tools: Option<ToolStream>, logprobs: bool) -> Self {
        Self { tools, logprobs, pending: Vec::new() }
    }

    /// Takes text of the model in, with the token that it ends with.
    pub fn push(&mut self, transcript: &mut Transcript, text: &str, token: Option<ChatToken>) {
        self.pending.extend(token.map(|t| json!(t)));
        let pieces = match &mut self.tools {
            Some(tools) => tools.push(text),
            None => vec![StreamPiece::Text(text.to_owned())],
        };
        pieces.into_iter().for_each(|piece| self.piece(transcript, piece));
    }

    /// Ends the output; `status` is `completed` or `incomplete`. An answer of no text is an empty message.
    pub fn finish(&mut self, transcript: &mut Transcript, rest: &str, status: &str) {
        self.push(transcript, rest, None);
        let held_back = self.tools.as_mut().map(ToolStream::finish).unwrap_or_default();
        held_back.into_iter().for_each(|piece| self.piece(transcript, piece));
        if transcript.is_empty() {
            transcript.text("", Vec::new());
        }
        transcript.close(status);
    }

    fn piece(&mut self, transcript: &mut Transcript, piece: StreamPiece) {
        match piece {
            StreamPiece::Text(text) if text.is_empty() => {}
            StreamPiece::Text(text) => {
                let logprobs = if self.logprobs { std::mem::take(&mut self.pending) } else { Vec::new() };
                transcript.text(&text, logprobs);
            }
            StreamPiece::Call { id, name } => transcript.call(id, name),
            StreamPiece::Arguments(part) => transcript.arguments(&part),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tunesmith_chat::ToolFormat;

    #[test]
    fn text_is_one_message() {
        let (mut output, mut transcript) = (Output::new(None, false), Transcript::new(json!({})));
        output.push(&mut transcript, "Hello", None);
        output.push(&mut transcript, "", None);
        assert_eq!(transcript.output(), json!([]));
        output.finish(&mut transcript, " world", "incomplete");
        let items = transcript.output();
        assert_eq!((&items[0]["content"][0]["text"], &items[0]["status"]), (&json!("Hello world"), &json!("incomplete")));
        assert_eq!(transcript.pieces(), json!([[[5, 0], [6, 0]]]));
    }

    #[test]
    fn calls_are_items_of_their_own_and_an_empty_answer_is_an_empty_message() {
        let mut output = Output::new(Some(ToolStream::new(ToolFormat::Hermes)), false);
        let mut transcript = Transcript::new(json!({}));
        output.push(&mut transcript, "I look.<tool_call>{\"name\":\"f\",\"arguments\":{\"a\":1}}</tool_call>", None);
        output.finish(&mut transcript, "", "completed");
        let items = transcript.output();
        assert_eq!((items[0]["type"].as_str(), items[1]["type"].as_str()), (Some("message"), Some("function_call")));
        assert_eq!(serde_json::from_str::<Value>(items[1]["arguments"].as_str().unwrap()).unwrap(), json!({"a": 1}));
        let mut empty = Transcript::new(json!({}));
        Output::new(None, false).finish(&mut empty, "", "completed");
        assert_eq!(empty.output()[0]["content"][0]["text"], "");
    }
}
