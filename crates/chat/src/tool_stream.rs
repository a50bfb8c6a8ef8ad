//! Calls of tools in what a model writes, told from the text around them while it comes in. A call is told as it is written, its
//! name first and then its arguments piece by piece; what looks like a call and is none stays text.

use serde_json::Value;

use crate::message::ToolCall;
use crate::tools::ToolFormat;

/// A mark that Llama 3 writes before some calls.
const PYTHON_TAG: &str = "<|python_tag|>";

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamPiece {
    /// Text that is certainly no part of a call.
    Text(String),
    /// A call begins.
    Call {
        /// Its id, where the model gives it one.
        id: Option<String>,
        /// The function.
        name: String,
    },
    /// More of the arguments of the call that began last, as the model writes them.
    Arguments(String),
}

/// The calls in a whole answer, and the text around them. What looks like a call and is none stays text; of a call that the answer's
/// end cuts, what is there is told if its name is.
pub fn parse_tool_calls(format: ToolFormat, answer: &str) -> (String, Vec<ToolCall>) {
    let mut stream = ToolStream::new(format);
    let mut pieces = stream.push(answer);
    pieces.extend(stream.finish());
    let (mut text, mut calls) = (String::new(), Vec::<ToolCall>::new());
    for piece in pieces {
        match piece {
            StreamPiece::Text(t) => text.push_str(&t),
            StreamPiece::Call { id, name } => calls.push(ToolCall { id, name, arguments: String::new() }),
            StreamPiece::Arguments(part) => {
                if let Some(call) = calls.last_mut() {
                    call.arguments.push_str(&part);
                }
            }
        }
    }
    (text, calls)
}

/// Tells text and calls apart while an answer comes in. White space beside a call is nobody's; all other text comes out as it went in.
pub struct ToolStream {
    format: ToolFormat,
    state: State,
    /// What is not told yet. In [`State::Head`] and [`State::Whole`] it begins with the mark.
    held: String,
    /// White space at the end of the text, which is told once more text follows.
    space: String,
    /// Whether text came out already.
    began: bool,
    /// Whether a call did.
    called: bool,
    /// Whether nothing came out since.
    after_call: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Text,
    /// Behind a mark, before the arguments.
    Head,
    Arguments(Scan),
    /// Behind the arguments.
    Tail,
    /// Spelled in another way than templates teach: it is looked at when it is whole.
    Whole,
}

impl ToolStream {
    /// A stream at its beginning.
    pub fn new(format: ToolFormat) -> Self {
        let (held, space) = (String::new(), String::new());
        Self { format, state: State::Text, held, space, began: false, called: false, after_call: false }
    }

    /// Takes more of the answer.
    pub fn push(&mut self, text: &str) -> Vec<StreamPiece> {
        self.held.push_str(text);
        let mut out = Vec::new();
        while self.step(&mut out) {}
        out
    }

    /// Tells what is certain; false if that needs more of the answer.
    fn step(&mut self, out: &mut Vec<StreamPiece>) -> bool {
        match self.state {
            State::Text => self.step_text(out),
            State::Head => match head(self.format, &self.held) {
                Head::More => false,
                Head::None => {
                    self.state = State::Whole;
                    true
                }
                Head::Call { id, name, end } => {
                    self.held.drain(..end);
                    self.call(id, name, out);
                    self.state = State::Arguments(Scan::default());
                    true
                }
            },
            State::Arguments(mut scan) => {
                let (n, whole) = scan.walk(&self.held);
                self.state = if whole { State::Tail } else { State::Arguments(scan) };
                if n > 0 {
                    out.push(StreamPiece::Arguments(self.held.drain(..n).collect()));
                }
                whole
            }
            State::Tail => self.step_tail(),
            State::Whole => {
                let (open, close) = self.format.marks();
                let Some(end) = self.held.find(close).filter(|_| !close.is_empty()) else { return false };
                let whole: String = self.held.drain(..end + close.len()).collect();
                match call(&whole[open.len()..end]) {
                    Some(found) => self.whole_call(found, out),
                    None => self.text(&whole, out),
                }
                self.state = State::Text;
                true
            }
        }
    }

    fn step_text(&mut self, out: &mut Vec<StreamPiece>) -> bool {
        let (open, _) = self.format.marks();
        if open.is_empty() {
            // A call is the whole answer, so an answer that does not begin like one is text.
            let start = self.held.trim_start();
            if !self.began && (start.starts_with(['{', '[']) || start.starts_with(PYTHON_TAG)) {
                self.state = State::Head;
                return true;
            }
            if self.began || !PYTHON_TAG.starts_with(start) {
                self.release(self.held.len(), out);
            }
            return false;
        }
        let Some(at) = self.held.find(open) else {
            self.release(self.held.len() - beginning_of(open, &self.held), out);
            return false;
        };
        self.release(at, out);
        self.state = State::Head;
        true
    }

    fn step_tail(&mut self) -> bool {
        let (_, close) = self.format.marks();
        match self.format {
            ToolFormat::Hermes => {
                let Some(end) = self.held.find(close) else { return false };
                self.held.drain(..end + close.len());
                self.state = State::Text;
                true
            }
            // Another call of the list, or its end, behind the end of this one.
            ToolFormat::Mistral => {
                let (n, whole) = Scan { depth: 1, ..Scan::default() }.walk(&self.held);
                let Some(at) = self.held[n..].find([',', ']']).filter(|_| whole) else { return false };
                let more = self.held[n + at..].starts_with(',');
                self.held.drain(..=n + at);
                self.state = if more { State::Head } else { State::Text };
                true
            }
            ToolFormat::Llama => {
                self.held.clear();
                false
            }
        }
    }

    /// Lets the first `n` bytes go as text.
    fn release(&mut self, n: usize, out: &mut Vec<StreamPiece>) {
        let text: String = self.held.drain(..n).collect();
        self.text(&text, out);
    }

    fn text(&mut self, text: &str, out: &mut Vec<StreamPiece>) {
        let text = if self.after_call { text.trim_start() } else { text };
        let words = text.trim_end();
        if !words.is_empty() {
            (self.began, self.after_call) = (true, false);
            out.push(StreamPiece::Text(std::mem::take(&mut self.space) + words));
        }
        self.space.push_str(&text[words.len()..]);
    }

    fn call(&mut self, id: Option<String>, name: String, out: &mut Vec<StreamPiece>) {
        (self.called, self.after_call) = (true, true);
        self.space.clear();
        out.push(StreamPiece::Call { id, name });
    }

    fn whole_call(&mut self, call: ToolCall, out: &mut Vec<StreamPiece>) {
        self.call(call.id, call.name, out);
        out.push(StreamPiece::Arguments(call.arguments));
    }

    /// The answer has ended: what is left.
    pub fn finish(&mut self) -> Vec<StreamPiece> {
        let mut out = Vec::new();
        let held = std::mem::take(&mut self.held);
        let (open, _) = self.format.marks();
        match std::mem::replace(&mut self.state, State::Text) {
            // The beginning of another mark, perhaps.
            State::Text if self.called => {}
            State::Text => self.text(&held, &mut out),
            State::Head | State::Whole => {
                let inner = held.strip_prefix(open).unwrap_or(&held);
                let plain = inner.trim().trim_start_matches(PYTHON_TAG);
                // A model that stops at its end token may leave out the last mark.
                match call(plain).map(|c| vec![c]).or_else(|| list_of(plain)) {
                    Some(calls) => calls.into_iter().for_each(|call| self.whole_call(call, &mut out)),
                    // Cut before its name was there.
                    None if is_begun(self.format, inner) => {}
                    None => self.text(&held, &mut out),
                }
            }
            State::Arguments(_) | State::Tail => {}
        }
        if !self.called && !self.space.is_empty() {
            out.push(StreamPiece::Text(std::mem::take(&mut self.space)));
        }
        out
    }
}

/// How far into the arguments the text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Scan {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Scan {
    /// How many of the bytes are the arguments', and whether these are whole then.
    fn walk(&mut self, text: &str) -> (usize, bool) {
        for (i, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => self.depth += 1,
                b'}' | b']' if !self.in_string => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return (i + 1, true);
                    }
                }
                _ => {}
            }
        }
        (text.len(), false)
    }
}

/// What stands before a call's arguments.
enum Head {
    /// Not all of it is there.
    More,
    /// Something else.
    None,
    /// All of it; the arguments begin at byte `end`.
    Call { id: Option<String>, name: String, end: usize },
}

/// Reads `{"name": "f", "arguments": ` from its first byte on, behind what the family writes before it.
fn head(format: ToolFormat, held: &str) -> Head {
    let (open, _) = format.marks();
    let mut rest = held.strip_prefix(open).unwrap_or(held).trim_start();
    match format {
        ToolFormat::Mistral => rest = rest.strip_prefix('[').unwrap_or(rest).trim_start(),
        ToolFormat::Llama => rest = rest.strip_prefix(PYTHON_TAG).unwrap_or(rest).trim_start(),
        ToolFormat::Hermes => {}
    }
    let (mut id, mut name) = (None, None);
    let mut before = '{';
    loop {
        // A brace or a comma, a key, a colon.
        match rest.chars().next() {
            None => return Head::More,
            Some(c) if c == before => rest = rest[1..].trim_start(),
            Some(_) => return Head::None,
        }
        before = ',';
        let (key, after) = match string(rest) {
            Text::More => return Head::More,
            Text::None => return Head::None,
            Text::Whole(key, after) => (key, after.trim_start()),
        };
        rest = match after.chars().next() {
            None => return Head::More,
            Some(':') => after[1..].trim_start(),
            Some(_) => return Head::None,
        };
        if key == "arguments" || key == "parameters" {
            let Some(name) = name else { return Head::None };
            return match rest.chars().next() {
                None => Head::More,
                Some('{') => Head::Call { id, name, end: held.len() - rest.len() },
                Some(_) => Head::None,
            };
        }
        let (value, after) = match string(rest) {
            Text::More => return Head::More,
            Text::None => return Head::None,
            Text::Whole(value, after) => (value, after.trim_start()),
        };
        match key.as_str() {
            "name" => name = Some(value),
            "id" => id = Some(value),
            _ => {}
        }
        rest = after;
    }
}

enum Text<'t> {
    More,
    None,
    /// The string, and what follows it.
    Whole(String, &'t str),
}

/// The JSON string that a text begins with.
fn string(text: &str) -> Text<'_> {
    match text.as_bytes().first() {
        None => return Text::More,
        Some(b'"') => {}
        Some(_) => return Text::None,
    }
    let mut escaped = false;
    for (i, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return serde_json::from_str(&text[..=i]).map_or(Text::None, |s| Text::Whole(s, &text[i + 1..])),
            _ => {}
        }
    }
    Text::More
}

/// Whether what stands behind a mark, or all of an answer where there is none, can only be the beginning of a call.
fn is_begun(format: ToolFormat, text: &str) -> bool {
    const HEAD: &str = "{\"name\"";
    let start = text.trim_start().trim_start_matches(PYTHON_TAG).trim_start();
    let start = if format == ToolFormat::Mistral { start.trim_start_matches('[') } else { start };
    let start: String = start.chars().filter(|c| !c.is_whitespace()).take(HEAD.len()).collect();
    start == HEAD || (format != ToolFormat::Llama && HEAD.starts_with(&start))
}

/// A call, if the text is one.
fn call(text: &str) -> Option<ToolCall> {
    call_of(&serde_json::from_str(text.trim()).ok()?)
}

fn call_of(value: &Value) -> Option<ToolCall> {
    let name = value.get("name")?.as_str()?.to_owned();
    let arguments = value.get("arguments").or_else(|| value.get("parameters"))?;
    let arguments = arguments.as_str().map_or_else(|| arguments.to_string(), str::to_owned);
    Some(ToolCall { id: value.get("id").and_then(Value::as_str).map(str::to_owned), name, arguments })
}

/// A list of calls, if the text is one.
fn list_of(text: &str) -> Option<Vec<ToolCall>> {
    let list: Vec<Value> = serde_json::from_str(text.trim()).ok()?;
    (!list.is_empty()).then(|| list.iter().map(call_of).collect())?
}

/// How many bytes at the end of `text` may be the beginning of `mark`.
fn beginning_of(mark: &str, text: &str) -> usize {
    (1..mark.len()).rev().find(|n| mark.is_char_boundary(*n) && text.ends_with(&mark[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer in pieces of every size gives the same.
    fn parts(format: ToolFormat, answer: &str) -> (String, Vec<(String, String)>) {
        let mut all = Vec::new();
        for size in [1, 2, 3, 7, answer.len().max(1)] {
            let mut stream = ToolStream::new(format);
            let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
            let chars: Vec<char> = answer.chars().collect();
            let mut pieces: Vec<StreamPiece> = chars.chunks(size).flat_map(|c| stream.push(&c.iter().collect::<String>())).collect();
            pieces.extend(stream.finish());
            for piece in pieces {
                match piece {
                    StreamPiece::Text(t) => text.push_str(&t),
                    StreamPiece::Call { name, .. } => calls.push((name, String::new())),
                    StreamPiece::Arguments(part) => {
                        if let Some(call) = calls.last_mut() {
                            call.1.push_str(&part);
                        }
                    }
                }
            }
            all.push((text, calls));
        }
        assert!(all.windows(2).all(|w| w[0] == w[1]), "{all:?}");
        all.remove(0)
    }

    fn f(arguments: &str) -> (String, String) {
        ("f".to_owned(), arguments.to_owned())
    }

    #[test]
    fn calls_are_told_from_text_in_every_spelling() {
        let hermes = r#"Let me see. <tool_call>
{"name": "f", "arguments": {"x": 1}}
</tool_call>
<tool_call>{"name": "f", "arguments": {"x": "}</tool_call>\""}}</tool_call>
"#;
        let calls = vec![f(r#"{"x": 1}"#), f(r#"{"x": "}</tool_call>\""}"#)];
        assert_eq!(parts(ToolFormat::Hermes, hermes), ("Let me see.".to_owned(), calls));
        let mistral = r#"[TOOL_CALLS] [{"name": "f", "arguments": {"x": [1, 2]}}, {"name": "f", "arguments": {}, "id": "abc"}]"#;
        assert_eq!(parts(ToolFormat::Mistral, mistral), (String::new(), vec![f(r#"{"x": [1, 2]}"#), f("{}")]));
        for llama in [r#"{"name": "f", "parameters": {"x": 1}}"#, "<|python_tag|>{\"name\": \"f\", \"parameters\": {\"x\": 1}}"] {
            assert_eq!(parts(ToolFormat::Llama, llama), (String::new(), vec![f(r#"{"x": 1}"#)]));
        }
    }

    #[test]
    fn spellings_that_no_template_teaches_are_read_when_they_are_whole() {
        let turned = r#"<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call> and"#;
        assert_eq!(parts(ToolFormat::Hermes, turned), ("and".to_owned(), vec![f(r#"{"x":1}"#)]));
        assert_eq!(parts(ToolFormat::Hermes, r#"<tool_call>{"name": "f", "arguments": "{}"}"#), (String::new(), vec![f("{}")]));
        let list = r#"[{"name": "f", "parameters": {"x": 1}}, {"name": "f", "parameters": {}}]"#;
        assert_eq!(parts(ToolFormat::Llama, list), (String::new(), vec![f(r#"{"x":1}"#), f("{}")]));
    }

    #[test]
    fn arguments_come_as_they_are_written() {
        let mut stream = ToolStream::new(ToolFormat::Hermes);
        assert_eq!(stream.push("<tool_call>{\"name\": \"f\", \"argu"), []);
        let begun = StreamPiece::Call { id: None, name: "f".to_owned() };
        assert_eq!(stream.push("ments\": {\"x"), [begun, StreamPiece::Arguments("{\"x".to_owned())]);
        assert_eq!(stream.push("\": 1"), [StreamPiece::Arguments("\": 1".to_owned())]);
        assert_eq!(stream.push("}}\n</tool_call>"), [StreamPiece::Arguments("}".to_owned())]);
        assert_eq!(stream.finish(), []);
    }

    #[test]
    fn a_call_that_the_end_cuts_is_told_as_far_as_it_goes_and_never_as_text() {
        let cut = |format, answer: &str| parts(format, answer);
        for answer in ["<tool_call>", "<tool_call>\n{\"na", "<tool_call>\n{\"name\": \"get_"] {
            assert_eq!(cut(ToolFormat::Hermes, answer), (String::new(), vec![]), "{answer}");
        }
        assert_eq!(
            cut(ToolFormat::Hermes, "So <tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": \"Pa"),
            ("So".to_owned(), vec![f("{\"x\": \"Pa")])
        );
        assert_eq!(
            cut(ToolFormat::Mistral, "[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"x\": 1}}, {\"name\": \"g"),
            (String::new(), vec![f("{\"x\": 1}")])
        );
        assert_eq!(cut(ToolFormat::Llama, "{\"name\": \"get_w"), (String::new(), vec![]));
        assert_eq!(
            cut(ToolFormat::Hermes, "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>\n<tool_"),
            (String::new(), vec![f("{}")])
        );
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for format in [ToolFormat::Hermes, ToolFormat::Mistral, ToolFormat::Llama] {
            for text in [
                "a < b",
                " a \n b\n\n",
                "<tool_call>not json</tool_call> x",
                "<tool",
                "{\"a\": 1}",
                "[1, 2]",
                "[TOOL_CALLS] nothing",
                "",
                "ends with <",
            ] {
                assert_eq!(parts(format, text), (text.to_owned(), Vec::new()), "{format:?}");
            }
        }
    }
}
