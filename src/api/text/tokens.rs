//! Log-probabilities of tokens in the shapes that OpenAI gives them.

use serde::Serialize;
use tunesmith_ml::infer::TokenInfo;
use tunesmith_ml::text::LanguageTokenizer;
use utoipa::ToSchema;

/// A token of a chat answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatToken {
    /// Its text.
    token: String,
    /// Its log-probability.
    logprob: f32,
    /// Its bytes; several tokens may share a character.
    bytes: Vec<u8>,
    /// The likeliest tokens at its place.
    top_logprobs: Vec<TopToken>,
}

/// A token that might have stood there.
#[derive(Debug, Serialize, ToSchema)]
pub struct TopToken {
    /// Its text.
    token: String,
    /// Its log-probability.
    logprob: f32,
    /// Its bytes.
    bytes: Vec<u8>,
}

/// The log-probabilities of a chat answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatLogprobs {
    /// One item for each token.
    pub content: Vec<ChatToken>,
    /// Always null.
    #[schema(value_type = Option<Object>)]
    pub refusal: (),
}

impl ChatToken {
    /// A token in a chat's shape.
    pub fn of(info: &TokenInfo, tokenizer: &LanguageTokenizer) -> Self {
        let bytes = |id: u32| tokenizer.bytes_of(id, true).to_vec();
        let text = |id: u32| String::from_utf8_lossy(tokenizer.bytes_of(id, true)).into_owned();
        let top = info.top.iter().map(|(id, logprob)| TopToken { token: text(*id), logprob: *logprob, bytes: bytes(*id) });
        Self { token: text(info.id), logprob: info.logprob.unwrap_or(0.0), bytes: bytes(info.id), top_logprobs: top.collect() }
    }
}

/// The log-probabilities of a completion: lists side by side.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    #[schema(value_type = Vec<Option<Object>>)]
    top_logprobs: Vec<Option<serde_json::Map<String, serde_json::Value>>>,
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Adds a token, with the number of characters of the text before it.
    pub fn push(&mut self, info: &TokenInfo, tokenizer: &LanguageTokenizer, offset: usize) {
        let text = |id: u32| String::from_utf8_lossy(tokenizer.bytes_of(id, true)).into_owned();
        self.text_offset.push(offset);
        self.tokens.push(text(info.id));
        self.token_logprobs.push(info.logprob);
        self.top_logprobs.push(info.logprob.map(|own| {
            let mut top: serde_json::Map<_, _> = info.top.iter().map(|(id, p)| (text(*id), (*p).into())).collect();
            top.entry(text(info.id)).or_insert_with(|| own.into());
            top
        }));
    }
}

/// Where tokens stand in a text that grows by their bytes, in characters. All parts of a character stand where it begins.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// Characters that are whole.
    chars: usize,
    /// Bytes of a character that is not whole yet.
    rest: Vec<u8>,
}

impl Places {
    /// After so many characters.
    pub fn after(chars: usize) -> Self {
        Self { chars, rest: Vec::new() }
    }

    /// The place of a token with these bytes, of which a special one that the text leaves out has none.
    pub fn next(&mut self, bytes: &[u8]) -> usize {
        let begin = self.rest.len();
        self.rest.extend_from_slice(bytes);
        let (mut end, mut place) = (0, self.chars);
        while let Some(length) = first_char(&self.rest[end..]) {
            end += length;
            self.chars += 1;
            place += usize::from(end <= begin);
        }
        self.rest.drain(..end);
        place
    }
}

/// Bytes of the first character, or of what is replaced by one; none where its end has not come.
fn first_char(bytes: &[u8]) -> Option<usize> {
    let chunk = bytes.utf8_chunks().next()?;
    match chunk.valid().chars().next() {
        Some(c) => Some(c.len_utf8()),
        None => std::str::from_utf8(&bytes[..bytes.len().min(4)]).err()?.error_len(),
    }
}

/// Where the tokens of a text stand in it, in characters, by the bytes of the text that each stands for. What the tokenizer added
/// stands for none, and some tokenizers leave a token's first space out.
pub fn places_in(text: &str, spans: impl IntoIterator<Item = std::ops::Range<usize>>) -> Vec<usize> {
    let (mut end, mut at, mut chars) = (0, 0, 0);
    let place = |span: std::ops::Range<usize>| {
        let begin = text.floor_char_boundary(if span.is_empty() { end } else { span.start.min(end) }).max(at);
        end = end.max(span.end);
        chars += text[at..begin].chars().count();
        at = begin;
        chars
    };
    spans.into_iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_character_stand_where_it_begins() {
        let mut places = Places::after(2);
        let llama = "🦙".as_bytes();
        let tokens: [&[u8]; 7] = [b"ab", &llama[..1], &llama[1..3], &llama[3..], b"", b"c", b"d"];
        assert_eq!(tokens.map(|t| places.next(t)), [2, 4, 4, 4, 5, 5, 6]);
    }

    #[test]
    fn broken_bytes_count_as_the_character_that_replaces_them() {
        let mut places = Places::default();
        let tokens: [&[u8]; 5] = [b"\xf0\x9f", b"c", b"\xff", b"d\xe6", "é".as_bytes()];
        assert_eq!(tokens.map(|t| places.next(t)), [0, 1, 2, 3, 5], "{}", String::from_utf8_lossy(&tokens.concat()));
    }

    #[test]
    fn tokens_of_a_text_stand_after_what_is_before_them() {
        let text = "日 é x";
        // A first token, three bytes of one character, a space and its word in one token that is told without the space, an end.
        let spans = [0..0, 0..3, 0..3, 0..3, 4..6, 7..8, 0..0];
        assert_eq!(places_in(text, spans), [0, 0, 0, 0, 1, 3, 5]);
    }
}
