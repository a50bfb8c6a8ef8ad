//! Text from language models: what the routes under `/v1/chat/completions`, `/v1/completions` and `/v1/responses` share.

pub mod chat;
mod chat_object;
mod chat_stream;
pub mod completions;
mod format;
mod knobs;
mod run;
mod stop;
mod tokens;
mod tools;
