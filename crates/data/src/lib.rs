//! Data set files: formats, validation on upload, summaries, typed rows for classification.
//!
//! The path of a file: [`inspect`] parses every row once, when it is uploaded, and leaves a [`Summary`]; [`plan`] decides from
//! summaries alone whether a classification job can run; [`load`] turns the rows into [`Example`]s; [`stratified_split`] sets
//! some of them aside. All of it is synchronous, and all of it expects hostile input.
#![forbid(unsafe_code)]

mod delimited;
mod delimited_record;
mod error;
mod examples;
mod format;
mod inspect;
mod jsonl;
mod label;
mod label_choice;
mod label_index;
mod label_kind;
mod limits;
mod lines;
mod parquet_pages;
mod parquet_rows;
mod plan;
mod rows;
mod source;
mod split;
mod summary;
mod tally;
mod task;
mod text_lines;

pub use error::{DataError, Problem, line_list, listing};
pub use examples::{Example, Target, load, overlap};
pub use format::Format;
pub use inspect::{inspect, inspect_with};
pub use label::is_value;
pub use limits::Limits;
pub use plan::{ClassificationColumns, Plan, PlanError, ProblemType, plan};
pub use rows::{Row, RowReader, rows};
pub use split::{Split, stratified_split};
pub use summary::{ColumnSummary, Distinct, Summary};
pub use task::infer_task;
