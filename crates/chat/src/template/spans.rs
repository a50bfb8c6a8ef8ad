//! Where in a rendered conversation the assistant's turns stand, which is what training's loss is on.
//!
//! A template with `{% generation %}` blocks says so itself. For others, a turn begins where the prompt ends that serving
//! would have given (the messages before it, with the generation prompt), and ends where the rendering of the messages up to it
//! ends. Some templates write former turns otherwise once others follow (they drop thinking, or move the tools), and
//! then no such prefix fits: `substitute` finds the place by changing the message and comparing.

use std::ops::Range;

use minijinja::Value;

use super::Rendered;
use super::generation_tags::{MARK, take_marks};
use super::limits::MAX_SEARCH_BYTES;
use super::render::Scene;
use super::substitute;
use crate::error::TemplateError;
use crate::message::Message;

/// Renders a conversation and finds the learned turns.
pub(super) fn rendered(scene: &Scene<'_>, messages: &[Message]) -> Result<Rendered, TemplateError> {
    let (text, assistant) =
        if scene.engine.has_generation_blocks() { from_blocks(scene, messages)? } else { from_prefixes(scene, messages)? };
    let mut search = Search::new(scene, messages, &text);
    let learns_end = match (assistant.last(), messages.iter().rposition(Message::is_learned)) {
        (Some(range), Some(i)) => search.has_end(i, &text[range.clone()])?,
        _ => false,
    };
    Ok(Rendered { text, assistant, learns_end })
}

type Found = (String, Vec<Range<usize>>);

fn from_blocks(scene: &Scene<'_>, messages: &[Message]) -> Result<Found, TemplateError> {
    let marked = scene.render_marked(&scene.messages)?;
    let plain = scene.render(&scene.messages, false)?;
    let (text, ranges) = take_marks(&marked);
    if text != plain {
        return Err(lost(0, "the template changes the text of its generation blocks"));
    }
    let assistants: Vec<usize> = turns(messages).collect();
    if assistants.iter().all(|&i| messages[i].is_learned()) {
        return Ok((text, ranges));
    }
    // Which block belongs to which message: one each, or as many as each further message adds.
    let mut owners = assistants.clone();
    if ranges.len() != assistants.len() {
        owners.clear();
        for &i in &assistants {
            let (_, up_to_here) = take_marks(&scene.render_marked(&scene.messages[..=i])?);
            let added = up_to_here.len().saturating_sub(owners.len());
            owners.extend(std::iter::repeat_n(i, added));
        }
        if owners.len() != ranges.len() {
            return Err(lost(0, "its generation blocks do not belong to one message each"));
        }
    }
    let learned = ranges.into_iter().zip(owners).filter(|&(_, i)| messages[i].is_learned()).map(|(range, _)| range).collect();
    Ok((text, learned))
}

fn from_prefixes(scene: &Scene<'_>, messages: &[Message]) -> Result<Found, TemplateError> {
    let text = scene.render(&scene.messages, false)?;
    if text.contains(MARK) {
        return Err(lost(0, "it holds the noncharacters U+FDD0 U+10FFFE, which mark places here"));
    }
    let mut search = Search::new(scene, messages, &text);
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for i in turns(messages).filter(|&i| messages[i].is_learned()) {
        let range = match search.by_prefix(i)? {
            Some(range) => range,
            None => substitute::turn(&mut search, i)?,
        };
        if ranges.last().is_some_and(|last| last.end > range.start) {
            return Err(lost(i, "two turns would overlap"));
        }
        if !range.is_empty() {
            ranges.push(range);
        }
    }
    Ok((text, ranges))
}

fn turns(messages: &[Message]) -> impl Iterator<Item = usize> + '_ {
    messages.iter().enumerate().filter(|(_, message)| message.role == crate::message::Role::Assistant).map(|(i, _)| i)
}

pub(super) fn lost(index: usize, reason: &'static str) -> TemplateError {
    TemplateError::Lost { index, reason }
}

/// The search through one conversation, with a bound on what it may render: it is quadratic in the number of turns.
pub(super) struct Search<'a> {
    pub(super) scene: &'a Scene<'a>,
    pub(super) messages: &'a [Message],
    /// The whole conversation, rendered.
    pub(super) text: &'a str,
    budget: usize,
}

impl<'a> Search<'a> {
    fn new(scene: &'a Scene<'a>, messages: &'a [Message], text: &'a str) -> Self {
        Self { scene, messages, text, budget: MAX_SEARCH_BYTES }
    }

    /// Renders some messages; `None` where the template refuses them.
    pub(super) fn try_render(&mut self, messages: &[Value], prompt: bool) -> Result<Option<String>, TemplateError> {
        match self.scene.render(messages, prompt) {
            Ok(text) => {
                let left = self.budget.checked_sub(text.len());
                self.budget = left.ok_or_else(|| {
                    TemplateError::Limit("has to be rendered for every turn of a conversation that is too long for that".to_owned())
                })?;
                Ok(Some(text))
            }
            Err(limit @ TemplateError::Limit(_)) => Err(limit),
            Err(_) => Ok(None),
        }
    }

    /// The turn's place where the rendering of the messages before it, with the generation prompt, is a beginning of the
    /// whole, and that of the messages up to it goes along with the whole at least to the turn's end.
    fn by_prefix(&mut self, i: usize) -> Result<Option<Range<usize>>, TemplateError> {
        let seen = &self.scene.messages;
        if i == 0 {
            return Ok(None);
        }
        let Some(prompt) = self.try_render(&seen[..i], true)? else {
            return Ok(None);
        };
        if !self.text.starts_with(&prompt) {
            return Ok(None);
        }
        let start = prompt.len();
        let last = i + 1 == seen.len();
        // What follows the last turn only because the conversation ends there (a second end token) is not the turn's:
        // it goes when another turn is opened.
        let Some(other) = self.try_render(&seen[..=i], last)? else {
            return if last { self.without_space_after_end(i, start..self.text.len()).map(Some) } else { Ok(None) };
        };
        let end = shared_whole_markers(self.text, &other);
        let turn = &self.text[start..end.max(start)];
        let words = self.messages[i].text();
        let words = words.trim();
        let proven = turn.find(words).is_some_and(|at| !turn[at + words.len()..].trim().is_empty());
        let end = match (proven, last) {
            (true, _) => end,
            (false, true) => self.text.len(),
            (false, false) if self.text.starts_with(&other) && end >= start => end,
            (false, false) => return Ok(None),
        };
        self.without_space_after_end(i, start..end).map(Some)
    }

    /// Cuts the white space behind an end token: nobody generates it. A template without end tokens ends turns by white
    /// space alone, and there it stays, since it is all that there is to learn.
    pub(super) fn without_space_after_end(&mut self, i: usize, range: Range<usize>) -> Result<Range<usize>, TemplateError> {
        let turn = &self.text[range.clone()];
        let len = if self.has_end(i, turn)? { turn.trim_end().len() } else { turn.len() };
        Ok(range.start..range.start + len)
    }

    /// Whether the text of turn `i` goes on after the message's own words: an end token, or the end of a tool call.
    fn has_end(&mut self, i: usize, turn: &str) -> Result<bool, TemplateError> {
        let message = &self.messages[i];
        let words = message.text();
        let turn = turn.trim_end();
        if turn.is_empty() || !message.tool_calls.is_empty() {
            return Ok(!turn.is_empty());
        }
        // The template may leave out a part of the words, such as a thought, but what it keeps is their end.
        match words.split_whitespace().next_back() {
            Some(last) if turn.ends_with(last) => substitute::writes_end(self, i),
            _ => Ok(true),
        }
    }
}

/// Bytes that two texts share at the front, whole characters only.
pub(super) fn common_prefix(a: &str, b: &str) -> usize {
    let mut len = a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    while !a.is_char_boundary(len) {
        len -= 1;
    }
    len
}

/// As [`common_prefix`], but where the texts part inside a marker (`<|endoftext|>` against `<|user|>`), up to the marker.
pub(super) fn shared_whole_markers(a: &str, b: &str) -> usize {
    let len = common_prefix(a, b);
    if len == a.len() || len == b.len() {
        return len;
    }
    match a[..len].rfind(['<', '[']) {
        Some(open) if !a[open..len].contains(['>', ']']) && !a[open..len].contains(char::is_whitespace) => open,
        _ => len,
    }
}
