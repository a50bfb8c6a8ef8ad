//! What a chat template may use. Templates come with models from anywhere, so a wrong or hostile one must end in an
//! error within moments and within memory; the numbers leave real templates a hundred times what they need.

use std::time::Duration;

/// A template's own text. The longest that are published have about 60 KiB.
pub const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// What one rendering may write.
pub const MAX_OUTPUT_BYTES: usize = 16 << 20;

/// The engine's budget for one rendering: one unit an instruction, and one for 64 bytes that it makes or reads. On top of this comes
/// a share for what it is given: sixteen passes over its bytes, and 500 instructions a message.
pub(super) fn fuel(input_bytes: usize, messages: usize) -> u64 {
    1_000_000 + input_bytes as u64 / 4 + 500 * messages as u64
}

/// What one rendering may take. Real ones take microseconds to milliseconds.
pub(super) const MAX_TIME: Duration = Duration::from_secs(5);

/// Nested macro calls and includes.
pub(super) const MAX_RECURSION: usize = 100;

/// Lists and dictionaries inside one another that a template may keep or write as JSON.
pub(super) const MAX_VALUE_DEPTH: usize = 200;

/// What all renderings together may write that look for the assistant's turns in one conversation.
pub(super) const MAX_SEARCH_BYTES: usize = 256 << 20;

/// Words and signs in one tag: the engine's parser recurses over chains such as `a + b + c`. It bears 5,000 on a thread of 2 MiB.
pub(super) const MAX_TAG_TOKENS: usize = 1_000;

/// `elif` in a whole template, which nest in the engine's syntax tree. It bears 2,000 on a thread of 2 MiB.
pub(super) const MAX_ELIFS: usize = 500;

/// Opening brackets in a whole template: a bound for the values that nest within one expression.
pub(super) const MAX_BRACKETS: usize = 4_000;
