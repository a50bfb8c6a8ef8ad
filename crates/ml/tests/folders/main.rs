//! Model folders and adapters: what is written, what is read, and what `transformers`, `peft` and `tokenizers` make of them.

#[path = "../reference/jobs.rs"]
mod jobs;
#[path = "../reference/mod.rs"]
mod reference;

mod limits;
mod loading;
mod outside;
mod reload;
mod targets;
mod tokens;
