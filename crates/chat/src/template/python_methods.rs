//! Methods of Python's `str` that templates call and that minijinja's Python mode lacks or does otherwise.
//! The engine asks here for every method; what is not here goes to `minijinja_contrib::pycompat`.

use minijinja::value::{Kwargs, Tuple, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// The engine's callback for `value.method(args)`.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = string_method(text, method, args)
    {
        return result;
    }
    if method == "format" && value.as_str().is_some_and(|text| numbers_in(text) > MAX_WIDTHS) {
        return Err(fault("format with widths that are too large"));
    }
    pycompat::unknown_method_callback(state, value, method, args)
}

/// What the widths and precisions of one `str.format` may come to; the engine charges for what it wrote only.
const MAX_WIDTHS: u64 = 1 << 20;

/// The sum of all numbers in a text.
fn numbers_in(text: &str) -> u64 {
    text.split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .fold(0, |sum: u64, digits| sum.saturating_add(digits.parse().unwrap_or(u64::MAX)))
}

fn string_method(text: &str, method: &str, args: &[Value]) -> Option<Result<Value, Error>> {
    Some(match method {
        "strip" if args.is_empty() => Ok(text.trim_matches(is_space).into()),
        "lstrip" if args.is_empty() => Ok(text.trim_start_matches(is_space).into()),
        "rstrip" if args.is_empty() => Ok(text.trim_end_matches(is_space).into()),
        "removeprefix" => one(args).map(|prefix| text.strip_prefix(prefix).unwrap_or(text).into()),
        "removesuffix" => one(args).map(|suffix| text.strip_suffix(suffix).unwrap_or(text).into()),
        "split" => split(text, args, false),
        "rsplit" => split(text, args, true),
        "partition" => partition(text, args, false),
        "rpartition" => partition(text, args, true),
        "splitlines" => split_lines(text, args),
        "isdecimal" => Ok((!text.is_empty() && text.chars().all(|c| c.is_ascii_digit())).into()),
        "index" => one(args).and_then(|part| match text.find(part) {
            Some(at) => Ok(text[..at].chars().count().into()),
            None => Err(fault("substring not found")),
        }),
        _ => return None,
    })
}

/// Python's white space: Unicode's, and four separators that Rust leaves out.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn fault(text: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, text)
}

fn one(args: &[Value]) -> Result<&str, Error> {
    let (text,): (&str,) = from_args(args)?;
    Ok(text)
}

/// `split(sep=None, maxsplit=-1)` and `rsplit`, which differ only in the end that they start from.
fn split(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let (sep, max, kwargs): (Option<Value>, Option<i64>, Kwargs) = from_args(args)?;
    let sep = match sep {
        Some(sep) => Some(sep),
        None => kwargs.get::<Option<Value>>("sep")?,
    };
    let max = match max {
        Some(max) => max,
        None => kwargs.get::<Option<i64>>("maxsplit")?.unwrap_or(-1),
    };
    kwargs.assert_all_used()?;
    let pieces = usize::try_from(max).map_or(usize::MAX, |max| max.saturating_add(1));
    let sep = sep.filter(|sep| !sep.is_none() && !sep.is_undefined());
    let mut parts: Vec<&str> = match &sep {
        Some(sep) => {
            let sep = sep.as_str().ok_or_else(|| fault("the separator must be a string"))?;
            if sep.is_empty() {
                return Err(fault("empty separator"));
            }
            if from_right { text.rsplitn(pieces, sep).collect() } else { text.splitn(pieces, sep).collect() }
        }
        None => split_at_spaces(text, pieces, from_right),
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Runs of white space separate, and none stands at the ends. From the right, the parts come last first.
fn split_at_spaces(text: &str, pieces: usize, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text.trim_matches(is_space);
    while !rest.is_empty() {
        let found = if from_right { rest.rsplit_once(is_space).map(|(before, part)| (part, before)) } else { rest.split_once(is_space) };
        match found {
            Some((part, after)) if parts.len() + 1 < pieces => {
                parts.push(part);
                rest = after.trim_matches(is_space);
            }
            _ => {
                parts.push(rest);
                break;
            }
        }
    }
    parts
}

/// `partition` and `rpartition`: three strings, the text itself at one end where the separator is not in it.
fn partition(text: &str, args: &[Value], from_right: bool) -> Result<Value, Error> {
    let sep = one(args)?;
    if sep.is_empty() {
        return Err(fault("empty separator"));
    }
    let parts = match (text.split_once(sep), from_right) {
        (None, false) => [text, "", ""],
        (None, true) => ["", "", text],
        (Some((before, after)), false) => [before, sep, after],
        (Some(_), true) => {
            let at = text.rfind(sep).unwrap_or_default();
            [&text[..at], sep, &text[at + sep.len()..]]
        }
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

/// Python cuts at more characters than the line feed.
fn split_lines(text: &str, args: &[Value]) -> Result<Value, Error> {
    let (keep, kwargs): (Option<bool>, Kwargs) = from_args(args)?;
    let keep = match keep {
        Some(keep) => keep,
        None => kwargs.get::<Option<bool>>("keepends")?.unwrap_or(false),
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_line_end) {
        let end = at + line_end_len(&rest[at..]);
        lines.push(Value::from(&rest[..if keep { end } else { at }]));
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(Value::from(rest));
    }
    Ok(Value::from(lines))
}

fn is_line_end(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn line_end_len(at: &str) -> usize {
    if at.starts_with("\r\n") { 2 } else { at.chars().next().map_or(0, char::len_utf8) }
}
