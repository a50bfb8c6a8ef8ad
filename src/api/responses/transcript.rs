//! What has happened in a response so far, and the typed events that tell it.
//!
//! A live stream, a stream that is picked up again and the replay of a kept response are the same walk ([`Cursor`]) over the same
//! record, so they cannot differ. Events are made when they are read and never kept: the record is the text and 8 bytes a piece,
//! and the text is bounded by the model's context.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::items::new_id;
use crate::api::text::tools::new_call_id;

/// How much of a message one event told: bytes of text, and log-probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece(u32, u32);

/// A response so far.
#[derive(Debug)]
pub struct Transcript {
    /// The response as its first events tell it.
    beginning: Value,
    /// Items that are whole.
    items: Vec<Item>,
    /// The item that grows.
    open: Option<Item>,
    /// The response as its last event tells it.
    ending: Option<Value>,
}

#[derive(Debug)]
enum Item {
    Message(Message),
    Call(Call),
}

impl Item {
    fn whole(&self) -> Value {
        match self {
            Item::Message(message) => message.whole(),
            Item::Call(call) => call.told(&call.arguments),
        }
    }
}

/// A function call.
#[derive(Debug, Default)]
struct Call {
    id: String,
    call_id: String,
    name: String,
    arguments: String,
    pieces: Vec<Piece>,
    /// Absent as long as it grows.
    status: Option<String>,
}

#[derive(Debug, Default)]
struct Message {
    id: String,
    text: String,
    logprobs: Vec<Value>,
    pieces: Vec<Piece>,
    /// Absent as long as it grows.
    status: Option<String>,
}

impl Transcript {
    /// A response whose beginning is told like this.
    pub fn new(beginning: Value) -> Self {
        Self { beginning, items: Vec::new(), open: None, ending: None }
    }

    /// A response that was kept with its pieces. A message whose pieces are not known is one piece.
    pub fn kept(body: Value, pieces: &Value) -> Self {
        let mut beginning = body.clone();
        beginning["status"] = json!("in_progress");
        beginning["output"] = json!([]);
        for absent in ["usage", "error", "incomplete_details", "completed_at"] {
            beginning[absent] = Value::Null;
        }
        let output = body["output"].as_array().map(Vec::as_slice).unwrap_or_default();
        let item = |(i, item): (usize, &Value)| match item["type"].as_str() {
            Some("function_call") => Item::Call(Call::kept(item, &pieces[i])),
            _ => Item::Message(Message::kept(item, &pieces[i])),
        };
        let items = output.iter().enumerate().map(item).collect();
        Self { beginning, items, open: None, ending: Some(body) }
    }

    /// The response as its first events tell it.
    pub fn beginning(&self) -> &Value {
        &self.beginning
    }

    /// Adds text to the message that grows, or begins one; it ends a call before it.
    pub fn text(&mut self, text: &str, logprobs: Vec<Value>) {
        if !matches!(self.open, Some(Item::Message(_))) {
            self.close("completed");
            self.open = Some(Item::Message(Message { id: new_id("msg"), ..Message::default() }));
        }
        let Some(Item::Message(message)) = &mut self.open else { return };
        message.text.push_str(text);
        if !text.is_empty() {
            message.pieces.push(Piece(count(text.len()), count(logprobs.len())));
        }
        message.logprobs.extend(logprobs);
    }

    /// Begins a call; it ends the item before it.
    pub fn call(&mut self, call_id: Option<String>, name: String) {
        self.close("completed");
        let call_id = call_id.unwrap_or_else(new_call_id);
        self.open = Some(Item::Call(Call { id: new_id("fc"), call_id, name, ..Call::default() }));
    }

    /// Adds to the arguments of the call that grows.
    pub fn arguments(&mut self, part: &str) {
        if let Some(Item::Call(call)) = self.open.as_mut().filter(|_| !part.is_empty()) {
            call.arguments.push_str(part);
            call.pieces.push(Piece(count(part.len()), 0));
        }
    }

    /// Ends the item that grows.
    pub fn close(&mut self, status: &str) {
        let status = Some(status.to_owned());
        match self.open.take() {
            None => {}
            Some(Item::Message(message)) => self.items.push(Item::Message(Message { status, ..message })),
            Some(Item::Call(call)) => self.items.push(Item::Call(Call { status, ..call })),
        }
    }

    /// Ends the response as it is told from now on.
    pub fn end(&mut self, body: Value) {
        self.ending = Some(body);
    }

    /// Whether the response has ended.
    pub fn has_ended(&self) -> bool {
        self.ending.is_some()
    }

    /// Whether nothing was said yet.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty() && self.open.is_none()
    }

    /// The output: items that are whole.
    pub fn output(&self) -> Value {
        self.items.iter().map(Item::whole).collect()
    }

    /// The pieces of each item, for [`Self::kept`].
    pub fn pieces(&self) -> Value {
        let pieces = |item: &Item| match item {
            Item::Message(message) => json!(message.pieces),
            Item::Call(call) => json!(call.pieces),
        };
        self.items.iter().map(pieces).collect()
    }
}

/// Tokens and bytes of one answer are far fewer than 2³².
fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn field(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The pieces of a text that were kept with it, or all of it as one where none fit.
fn kept_pieces(pieces: &Value, text: &str, logprobs: usize) -> Vec<Piece> {
    let pieces: Vec<Piece> = Deserialize::deserialize(pieces).unwrap_or_default();
    let mut at = 0;
    let fits = pieces.iter().all(|p| {
        at += p.0 as usize;
        p.0 > 0 && text.is_char_boundary(at)
    });
    let tokens: usize = pieces.iter().map(|p| p.1 as usize).sum();
    match (fits && at == text.len() && tokens <= logprobs, text.is_empty()) {
        (true, _) => pieces,
        (false, true) => Vec::new(),
        (false, false) => vec![Piece(count(text.len()), count(logprobs))],
    }
}

impl Call {
    fn kept(item: &Value, pieces: &Value) -> Self {
        let arguments = field(&item["arguments"]);
        let pieces = kept_pieces(pieces, &arguments, 0);
        let (id, call_id, name) = (field(&item["id"]), field(&item["call_id"]), field(&item["name"]));
        Self { id, call_id, name, arguments, pieces, status: Some(field(&item["status"])) }
    }

    fn told(&self, arguments: &str) -> Value {
        let status = if arguments.is_empty() { None } else { self.status.as_deref() }.unwrap_or("in_progress");
        json!({"id": self.id, "type": "function_call", "status": status, "call_id": self.call_id, "name": self.name, "arguments": arguments})
    }
}

impl Message {
    fn kept(item: &Value, pieces: &Value) -> Self {
        let part = &item["content"][0];
        let (text, logprobs) = (field(&part["text"]), part["logprobs"].as_array().cloned().unwrap_or_default());
        let pieces = kept_pieces(pieces, &text, logprobs.len());
        Self { id: field(&item["id"]), text, logprobs, pieces, status: Some(field(&item["status"])) }
    }

    fn part(&self) -> Value {
        json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs})
    }

    fn told(&self, content: Value) -> Value {
        let status = self.status.as_deref().unwrap_or("in_progress");
        json!({"id": self.id, "type": "message", "role": "assistant", "status": status, "content": content})
    }

    fn whole(&self) -> Value {
        self.told(json!([self.part()]))
    }
}

type Event = (&'static str, Value);

/// A place in a response's events; starts before the first one.
#[derive(Debug, Default)]
pub struct Cursor {
    sequence: u64,
    item: usize,
    /// Events of this item that were told.
    step: usize,
    /// Text and log-probabilities of this item that were told.
    told: (usize, usize),
    ended: bool,
}

impl Cursor {
    /// Whether the response's last event was told.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The next event, if there is one yet.
    pub fn next(&mut self, transcript: &Transcript) -> Option<Value> {
        let (kind, mut fields) = match self.sequence {
            0 => ("response.created", json!({"response": transcript.beginning})),
            1 => ("response.in_progress", json!({"response": transcript.beginning})),
            _ => match transcript.items.get(self.item).or(transcript.open.as_ref()) {
                Some(Item::Message(message)) => self.of_message(message)?,
                Some(Item::Call(call)) => self.of_call(call)?,
                None => self.of_ending(transcript)?,
            },
        };
        fields["type"] = json!(kind);
        fields["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        Some(fields)
    }

    fn of_message(&mut self, message: &Message) -> Option<Event> {
        let at = |name: &str, value: Value| {
            let mut fields = json!({"item_id": message.id, "output_index": self.item, "content_index": 0});
            fields[name] = value;
            fields
        };
        let deltas = message.pieces.len();
        let event = match self.step {
            0 => {
                let mut item = message.told(json!([]));
                item["status"] = json!("in_progress");
                ("response.output_item.added", json!({"output_index": self.item, "item": item}))
            }
            1 => {
                let part = json!({"type": "output_text", "text": "", "annotations": [], "logprobs": []});
                ("response.content_part.added", at("part", part))
            }
            step if step < deltas + 2 => {
                let Piece(bytes, tokens) = message.pieces[step - 2];
                let (text, logprobs) = (self.told.0, self.told.1);
                let end = (text + bytes as usize, logprobs + tokens as usize);
                let mut fields = at("delta", json!(message.text[text..end.0]));
                fields["logprobs"] = json!(message.logprobs[logprobs..end.1]);
                self.told = end;
                ("response.output_text.delta", fields)
            }
            step => {
                message.status.as_ref()?;
                match step - deltas {
                    2 => {
                        let mut fields = at("text", json!(message.text));
                        fields["logprobs"] = json!(message.logprobs);
                        ("response.output_text.done", fields)
                    }
                    3 => ("response.content_part.done", at("part", message.part())),
                    _ => return Some(self.item_done(message.whole())),
                }
            }
        };
        self.step += 1;
        Some(event)
    }

    fn of_call(&mut self, call: &Call) -> Option<Event> {
        let (index, id, deltas) = (self.item, &call.id, call.pieces.len());
        let event = match self.step {
            0 => ("response.output_item.added", json!({"output_index": index, "item": call.told("")})),
            step if step <= deltas => {
                let end = self.told.0 + call.pieces[step - 1].0 as usize;
                let delta = &call.arguments[self.told.0..end];
                self.told.0 = end;
                ("response.function_call_arguments.delta", json!({"item_id": id, "output_index": index, "delta": delta}))
            }
            step => {
                call.status.as_ref()?;
                if step > deltas + 1 {
                    return Some(self.item_done(call.told(&call.arguments)));
                }
                let fields = json!({"item_id": id, "output_index": index, "name": call.name, "arguments": call.arguments});
                ("response.function_call_arguments.done", fields)
            }
        };
        self.step += 1;
        Some(event)
    }

    fn item_done(&mut self, item: Value) -> Event {
        let index = self.item;
        (self.item, self.step, self.told) = (index + 1, 0, (0, 0));
        ("response.output_item.done", json!({"output_index": index, "item": item}))
    }

    fn of_ending(&mut self, transcript: &Transcript) -> Option<Event> {
        let body = transcript.ending.as_ref().filter(|_| !self.ended)?;
        self.ended = true;
        let kind = match body["status"].as_str() {
            Some("completed") => "response.completed",
            // OpenAI has no event for a response that was cancelled; its status tells.
            Some("incomplete" | "cancelled") => "response.incomplete",
            _ => "response.failed",
        };
        Some((kind, json!({"response": body})))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn events(transcript: &Transcript) -> Vec<Value> {
        let mut cursor = Cursor::default();
        let events: Vec<Value> = std::iter::from_fn(|| cursor.next(transcript)).collect();
        assert!(events.iter().enumerate().all(|(i, e)| e["sequence_number"] == json!(i)));
        assert_eq!(cursor.has_ended(), transcript.has_ended());
        events
    }

    /// A response with everything that one may have, and the events that were told while it was made.
    fn made() -> (Transcript, Vec<Value>) {
        let beginning = json!({
            "id": "resp_1", "status": "in_progress", "output": [], "usage": null, "error": null, "incomplete_details": null,
            "completed_at": null, "metadata": {"a": "b"},
        });
        let mut transcript = Transcript::new(beginning.clone());
        let (mut cursor, mut told) = (Cursor::default(), Vec::new());
        let mut look = |t: &Transcript| told.extend(std::iter::from_fn(|| cursor.next(t)));
        look(&transcript);
        transcript.text("Grüße", vec![json!({"token": "Gr"}), json!({"token": "üße"})]);
        look(&transcript);
        transcript.text("", vec![]);
        transcript.text(" from", vec![json!({"token": " from"})]);
        look(&transcript);
        transcript.call(None, "f".to_owned());
        look(&transcript);
        transcript.arguments("{\"a\": ");
        look(&transcript);
        transcript.arguments("1}");
        look(&transcript);
        transcript.text("end", vec![]);
        transcript.close("incomplete");
        look(&transcript);
        let mut body = beginning;
        body["status"] = json!("incomplete");
        body["output"] = transcript.output();
        body["usage"] = json!({"total_tokens": 9});
        body["completed_at"] = json!(7);
        transcript.end(body);
        look(&transcript);
        (transcript, told)
    }

    #[test]
    fn a_kept_response_is_told_as_it_was_told_live() {
        let (transcript, live) = made();
        assert_eq!(events(&transcript), live);
        let text = serde_json::to_string(&(transcript.ending.clone().unwrap(), transcript.pieces())).unwrap();
        let (body, pieces): (Value, Value) = serde_json::from_str(&text).unwrap();
        assert_eq!(events(&Transcript::kept(body, &pieces)), live);
    }

    #[test]
    fn a_message_without_fitting_pieces_is_told_in_one() {
        let (transcript, live) = made();
        let body = transcript.ending.clone().unwrap();
        for pieces in [json!([]), json!([[[3, 0], [8, 0]]]), json!([[[1, 0]]]), json!([[[11, 99]]]), json!("x")] {
            let events = events(&Transcript::kept(body.clone(), &pieces));
            let deltas: Vec<_> = events.iter().filter(|e| e["type"] == "response.output_text.delta").collect();
            assert_eq!(deltas.iter().map(|e| e["delta"].as_str().unwrap()).collect::<Vec<_>>(), ["Grüße from", "end"], "{pieces}");
            assert_eq!(deltas[0]["logprobs"].as_array().unwrap().len(), 3);
            assert_eq!(events.last().unwrap()["response"], live.last().unwrap()["response"]);
        }
    }

    #[test]
    fn events_come_in_openais_order() {
        let kinds: Vec<String> = made().1.iter().map(|e| e["type"].as_str().unwrap().trim_start_matches("response.").to_owned()).collect();
        let message = |deltas: usize| {
            let deltas = std::iter::repeat_n("output_text.delta", deltas);
            let all = ["output_item.added", "content_part.added"].into_iter().chain(deltas);
            all.chain(["output_text.done", "content_part.done", "output_item.done"]).collect::<Vec<_>>()
        };
        let delta = "function_call_arguments.delta";
        let call = ["output_item.added", delta, delta, "function_call_arguments.done", "output_item.done"];
        let want = [vec!["created", "in_progress"], message(2), call.to_vec(), message(1), vec!["incomplete"]].concat();
        assert_eq!(kinds, want);
    }

    #[test]
    fn how_a_response_ended_is_its_last_event() {
        for (status, kind) in [("completed", "completed"), ("failed", "failed"), ("cancelled", "incomplete"), ("incomplete", "incomplete")]
        {
            let mut transcript = Transcript::new(json!({"id": "r"}));
            assert_eq!(events(&transcript).len(), 2);
            transcript.end(json!({"status": status}));
            assert_eq!(events(&transcript)[2]["type"], format!("response.{kind}"));
        }
    }
}
