//! Conversations: from any spelling of messages and rows to the text that a model reads, and tool calls back out of what it writes.
//!
//! The worker and the server both use it, so that a model is asked in the form in which it learned. It knows nothing of HTTP,
//! tokio or tokenizers, and trusts no template: see `template::limits` and `template::guard`.

mod error;
mod message;
mod read_message;
mod rows;
mod template;
mod tool_stream;
mod tools;

pub use error::{RowError, TemplateError};
pub use message::{Content, Message, Role, ToolCall};
pub use read_message::{check_results, read_message, read_messages};
pub use rows::{Conversation, RowFormat, detect, fill_template, parse_row, template_columns};
pub use template::{CHATML, ChatTemplate, MAX_OUTPUT_BYTES, MAX_TEMPLATE_BYTES, RenderOptions, Rendered, SpecialTokens};
pub use tool_stream::{StreamPiece, ToolStream, parse_tool_calls};
pub use tools::{CallForm, ToolFormat, check_tools, left_out_call};
