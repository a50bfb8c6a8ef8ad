//! Text from language models: what the routes under `/v1/chat/completions`, `/v1/completions` and `/v1/responses` share.

pub mod chat;
mod chat_object;
mod chat_stream;
pub mod completions;
pub mod format;
pub mod knobs;
pub mod likelihood;
pub mod options;
mod prompts;
pub mod run;
mod stop;
pub mod tokens;
pub mod tools;
