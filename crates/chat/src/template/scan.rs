//! Finds the tags of a template's source without parsing what stands in them. Two uses: generation blocks are rewritten in
//! place, and sources are measured before the engine sees them, because its parser and its values recurse on the stack where a
//! template nests or chains without end, and a stack that overflows takes the process with it.

use std::ops::Range;

use super::limits::{MAX_BRACKETS, MAX_ELIFS, MAX_TAG_TOKENS};
use crate::error::TemplateError;

/// A tag: `{{ … }}` without a name, `{% name … %}` with one. Comments and raw text are none.
pub(super) struct Tag {
    /// The whole tag, delimiters included.
    pub(super) range: Range<usize>,
    /// A statement's first word.
    pub(super) name: Option<Range<usize>>,
}

/// All tags of `source`, in order.
pub(super) fn tags(source: &str) -> Vec<Tag> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(open) = source[at..].find('{') {
        let start = at + open;
        let from = &source[start..];
        at = start
            + match from.as_bytes().get(1) {
                Some(b'#') => from.find("#}").map_or(from.len(), |end| end + 2),
                Some(b'{') => {
                    let len = end_of_tag(from, "}}");
                    found.push(Tag { range: start..start + len, name: None });
                    len
                }
                Some(b'%') => {
                    let len = end_of_tag(from, "%}");
                    let name = name_in(&from[..len]);
                    let raw = name.clone().is_some_and(|name| &from[name] == "raw");
                    found.push(Tag { range: start..start + len, name: name.map(|name| start + name.start..start + name.end) });
                    len + if raw { end_of_raw(&from[len..]) } else { 0 }
                }
                _ => 1,
            };
    }
    found
}

/// Length of a tag up to and with its `close`, which does not count inside a string.
fn end_of_tag(from: &str, close: &str) -> usize {
    let mut strings = Strings::default();
    for (at, c) in from.char_indices().skip(2) {
        if strings.is_code(c) && from[at..].starts_with(close) {
            return at + close.len();
        }
    }
    from.len()
}

/// The first word of a `{% … %}`.
fn name_in(tag: &str) -> Option<Range<usize>> {
    let start = tag[2..].find(|c: char| !c.is_whitespace() && c != '-' && c != '+')? + 2;
    let len = tag[start..].find(|c: char| !c.is_alphanumeric() && c != '_')?;
    (len > 0).then_some(start..start + len)
}

/// Length up to the tag that ends a raw block.
fn end_of_raw(from: &str) -> usize {
    let mut at = 0;
    while let Some(found) = from[at..].find("{%") {
        at += found;
        if name_in(&from[at..]).is_some_and(|name| &from[at..][name] == "endraw") {
            return at;
        }
        at += 2;
    }
    from.len()
}

/// Tells code from strings, character by character.
#[derive(Default)]
pub(super) struct Strings {
    quote: Option<char>,
    escaped: bool,
}

impl Strings {
    /// Whether no string is open.
    pub(super) fn is_closed(&self) -> bool {
        self.quote.is_none()
    }

    /// Whether `c` is code; quotes and what stands between them are not.
    pub(super) fn is_code(&mut self, c: char) -> bool {
        match self.quote {
            Some(_) if self.escaped => self.escaped = false,
            Some(_) if c == '\\' => self.escaped = true,
            Some(quote) if c == quote => self.quote = None,
            Some(_) => {}
            None if c == '"' || c == '\'' => self.quote = Some(c),
            None => return true,
        }
        false
    }
}

/// `code` with blanks in place of its strings and of other white space.
pub(super) fn without_strings(code: &str) -> String {
    let mut strings = Strings::default();
    code.chars().map(|c| if strings.is_code(c) && !c.is_whitespace() { c } else { ' ' }).collect()
}

/// Refuses sources that the engine's parser would recurse on too deeply.
pub(super) fn measure(source: &str) -> Result<(), TemplateError> {
    let mut brackets = 0;
    let mut elifs = 0;
    for tag in tags(source) {
        let line = || source[..tag.range.start].matches('\n').count() + 1;
        let too_much = |message: String| TemplateError::Syntax { named: String::new(), line: line(), message };
        let name = tag.name.clone().map_or("", |name| &source[name]);
        elifs += usize::from(name == "elif");
        if elifs > MAX_ELIFS {
            return Err(too_much(format!("more than {MAX_ELIFS} elif in the template")));
        }
        let code = Code::of(&source[tag.range.clone()]);
        if code.tokens > MAX_TAG_TOKENS {
            return Err(too_much(format!("one tag with more than {MAX_TAG_TOKENS} words and signs")));
        }
        brackets += code.brackets;
        if brackets > MAX_BRACKETS {
            return Err(too_much(format!("more than {MAX_BRACKETS} opening brackets in the template")));
        }
    }
    Ok(())
}

/// What stands in a tag outside of strings.
#[derive(Default)]
struct Code {
    tokens: usize,
    brackets: usize,
}

impl Code {
    fn of(tag: &str) -> Self {
        let mut code = Code::default();
        let mut in_word = false;
        for c in without_strings(tag).chars() {
            let word = c.is_alphanumeric() || c == '_';
            code.tokens += usize::from(if word { !in_word } else { c != ' ' });
            code.brackets += usize::from(matches!(c, '[' | '{' | '('));
            in_word = word;
        }
        code
    }
}
