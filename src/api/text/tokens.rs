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
    /// Adds a token.
    pub fn push(&mut self, info: &TokenInfo, tokenizer: &LanguageTokenizer) {
        let text = |id: u32| String::from_utf8_lossy(tokenizer.bytes_of(id, true)).into_owned();
        let offset = self.text_offset.last().zip(self.tokens.last()).map_or(0, |(at, last)| at + last.chars().count());
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
