//! Finds an assistant's turn in a text whose template writes former turns otherwise than last ones, for `spans`.
//! A message is exchanged for one with other words: what stays equal in front and behind shows where its own text stands.

use std::ops::Range;

use super::generation_tags::MARK;
use super::spans::{Search, common_prefix, lost, shared_whole_markers};
use crate::error::TemplateError;
use crate::message::{Content, Message, Role};

/// The place of turn `i`.
pub(super) fn turn(search: &mut Search<'_>, i: usize) -> Result<Range<usize>, TemplateError> {
    let start = start_of(search, i)?;
    let end = end_of(search, i)?;
    if start > end {
        return Err(lost(i, "its end would come before its beginning"));
    }
    search.without_space_after_end(i, start..end)
}

/// Behind the previous message's words comes what serving's prompt writes there, and then the turn.
fn start_of(search: &mut Search<'_>, i: usize) -> Result<usize, TemplateError> {
    let own = exchanged(search, i, search.messages.len())?;
    let Some(before) = i.checked_sub(1) else {
        return Ok(common_prefix(search.text, &own.text));
    };
    let previous = exchanged(search, before, search.messages.len())?;
    let floor = search.text.len() - common_suffix(search.text, &previous.text);
    let seen = search.scene.messages[..i].to_vec();
    let Some(prompt) = search.try_render(&seen, true)? else {
        return Err(lost(i, "the template refuses the messages before it"));
    };
    let mut changed = seen;
    changed[before] = previous.message;
    let Some(other) = search.try_render(&changed, true)? else {
        return Err(lost(i, "the template refuses the messages before it"));
    };
    let opening = &prompt[prompt.len() - common_suffix(&prompt, &other)..];
    let here = &search.text[floor..];
    // The prompt may open more than the history shows, such as a thought. Then what both share is the head, less what
    // the message's own first letters share by chance: the exchanged message shows which those are.
    let mut shared = common_prefix(opening, here);
    if shared < opening.len() && own.text.is_char_boundary(floor) {
        shared = shared.min(common_prefix(opening, &own.text[floor.min(own.text.len())..]));
    }
    Ok(floor + shared)
}

/// Behind the turn's own words comes the end that it has when it is the last.
fn end_of(search: &mut Search<'_>, i: usize) -> Result<usize, TemplateError> {
    let whole = exchanged(search, i, search.messages.len())?;
    let words_end = search.text.len() - common_suffix(search.text, &whole.text);
    let up_to = search.scene.messages[..=i].to_vec();
    let Some(alone) = search.try_render(&up_to, false)? else {
        return Err(lost(i, "the template refuses the messages up to it"));
    };
    let mut changed = up_to;
    changed[i] = whole.message;
    let Some(other) = search.try_render(&changed, false)? else {
        return Err(lost(i, "the template refuses the messages up to it"));
    };
    let ending = &alone[alone.len() - common_suffix(&alone, &other)..];
    Ok(words_end + shared_whole_markers(ending, &search.text[words_end..]))
}

/// Whether the template writes anything but white space behind a turn's words, where the words themselves end like an end token.
pub(super) fn writes_end(search: &mut Search<'_>, i: usize) -> Result<bool, TemplateError> {
    match exchanged(search, i, i + 1) {
        Ok(other) => Ok(!other.text.trim_end().ends_with(MARK)),
        // Nearly all templates do.
        Err(TemplateError::Lost { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

struct Exchanged {
    message: minijinja::Value,
    text: String,
}

/// The first `upto` messages rendered with other words in message `i`.
fn exchanged(search: &mut Search<'_>, i: usize, upto: usize) -> Result<Exchanged, TemplateError> {
    for candidate in other_words(&search.messages[i]) {
        let message = search.scene.seen(&candidate);
        let mut messages = search.scene.messages[..upto].to_vec();
        messages[i] = message.clone();
        if let Some(text) = search.try_render(&messages, false)?
            && text.contains(MARK)
        {
            return Ok(Exchanged { message, text });
        }
    }
    Err(lost(i, "the template refuses the conversation with other words in this place"))
}

/// The message with words that stand nowhere else, in the ways that templates may accept.
fn other_words(message: &Message) -> Vec<Message> {
    let words = format!("{MARK}words{MARK}");
    let mut plain = Message::new(message.role, words.as_str());
    plain.tool_call_id = message.tool_call_id.clone();
    plain.name = message.name.clone();
    let mut candidates = vec![plain];
    if message.role == Role::Assistant && !message.tool_calls.is_empty() {
        let mut calls = message.clone();
        for call in &mut calls.tool_calls {
            call.name = words.clone();
            call.arguments = "{}".to_owned();
        }
        if calls.content.is_some() {
            calls.content = Some(Content::Text(words.clone()));
        }
        candidates.push(calls);
    }
    candidates
}

/// Bytes that two texts share at the back, whole characters only.
fn common_suffix(a: &str, b: &str) -> usize {
    let pairs = a.bytes().rev().zip(b.bytes().rev());
    let mut len = pairs.take_while(|(x, y)| x == y).count();
    while !a.is_char_boundary(a.len() - len) {
        len -= 1;
    }
    len
}
