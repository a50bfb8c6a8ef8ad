//! Bounds what a template keeps. The engine charges a template for what it makes, but not for a list that holds another list
//! twice, sixty times over: small in memory, and without end as soon as it is compared, printed or measured. Every such value
//! has to be bound to a name before it can be put into the next, so each tag that binds names gets a tag behind it that
//! looks at what they hold. That tag also looks at the clock, so a loop that slips through the engine's own budget ends.

use std::time::Instant;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

use super::limits::{MAX_TIME, MAX_VALUE_DEPTH};
use super::scan::{self, Tag};

/// The function that the added tags call, which is [`Allowance::check`] of one rendering.
pub(super) const CHECK: &str = "__check_bound";
/// [`no_list`] in templates.
pub(super) const NO_LIST: &str = "__no_list";

/// Adds the tags. White space around tags and the numbers of lines stay as they are.
pub(super) fn guarded(source: &str) -> String {
    let mut out = String::with_capacity(source.len() + source.len() / 4);
    let mut copied = 0;
    for tag in scan::tags(source) {
        let names = bound_names(source, &tag);
        if names.is_empty() || !source[tag.range.clone()].ends_with("%}") {
            continue;
        }
        // The mark that eats white space behind the tag has to stand in the last one.
        let close = tag.range.end - "%}".len();
        let trim = source[..close].ends_with(['-', '+']);
        let end = close - usize::from(trim);
        out.push_str(&source[copied..end]);
        out.push_str("%}{% if ");
        out.push_str(CHECK);
        out.push('(');
        out.push_str(&names.join(", "));
        out.push_str(") %}{% endif ");
        copied = end;
    }
    out.push_str(&source[copied..]);
    out
}

/// The names that a tag binds, dotted ones of namespaces included.
fn bound_names(source: &str, tag: &Tag) -> Vec<String> {
    let Some(name) = &tag.name else {
        return Vec::new();
    };
    let code = scan::without_strings(&source[name.end..tag.range.end]);
    match &source[name.clone()] {
        "set" => names_in(code.split_once('=').map_or("", |(target, _)| target)),
        "for" => names_in(code.split_once(" in ").map_or("", |(target, _)| target)),
        "with" => before_equals(&code),
        "macro" => parameters(code.trim_start().trim_start_matches(is_name)),
        "call" => parameters(&code),
        _ => Vec::new(),
    }
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// All names in a target such as `a, (b, c)` or `ns.a`.
fn names_in(target: &str) -> Vec<String> {
    target.split(|c| !is_name(c) && c != '.').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// The names before the `=` of `a = 1, b = 2`.
fn before_equals(code: &str) -> Vec<String> {
    code.match_indices('=')
        .filter_map(|(at, _)| {
            let before = code[..at].trim_end();
            let start = before.trim_end_matches(is_name).len();
            (start < before.len()).then(|| before[start..].to_owned())
        })
        .collect()
}

/// The names that begin the parameters of `(a, b=[1, 2])`.
fn parameters(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut depth = 0;
    let Some(list) = code.trim_start().strip_prefix('(') else {
        return names;
    };
    let mut begins = true;
    for (at, c) in list.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth == 0 => break,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            c if begins && is_name(c) => {
                let rest = &list[at..];
                names.push(rest[..rest.len() - rest.trim_start_matches(is_name).len()].to_owned());
                begins = false;
            }
            _ => {}
        }
    }
    names
}

/// What one rendering may keep and how long it may take, in proportion to what it was given.
#[derive(Clone, Copy)]
pub(super) struct Allowance {
    deadline: Instant,
    values: usize,
    bytes: usize,
}

impl Allowance {
    /// For a template and a conversation of these sizes. A template keeps parts of its input, and a few of them at once.
    pub(super) fn of(template_bytes: usize, input_bytes: usize) -> Self {
        Self {
            deadline: Instant::now() + MAX_TIME,
            values: 50_000 + input_bytes / 4,
            bytes: (64 << 10) + 2 * template_bytes + 4 * input_bytes,
        }
    }

    /// Looks at what names were bound to; gives false, so that the tag around it writes nothing.
    pub(super) fn check(self, state: &State, values: &[Value]) -> Result<bool, Error> {
        if Instant::now() > self.deadline {
            return Err(too_much(format!("ran for more than {} s", MAX_TIME.as_secs())));
        }
        let mut walk = Walk { allowed: self, values: 0, bytes: 0 };
        for value in values {
            walk.value(value, 0)?;
        }
        state.consume_fuel(walk.values as u64 / 8)?;
        Ok(false)
    }
}

/// Counts the values in a value, and the bytes of their texts, as often as they would be visited.
struct Walk {
    allowed: Allowance,
    values: usize,
    bytes: usize,
}

impl Walk {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.values += 1;
        if self.values > self.allowed.values {
            return Err(too_much(format!("kept more than {} values under one name", self.allowed.values)));
        }
        if depth > MAX_VALUE_DEPTH {
            return Err(too_much(format!("nested values deeper than {MAX_VALUE_DEPTH}")));
        }
        match value.kind() {
            ValueKind::String => {
                self.bytes += value.as_str().map_or(0, str::len);
                // One long text is the engine's to charge; one that stands in a list many times is not.
                if depth > 0 && self.bytes > self.allowed.bytes {
                    return Err(too_much(format!("kept more than {} bytes under one name", self.allowed.bytes)));
                }
            }
            ValueKind::Seq | ValueKind::Iterable => {
                for item in value.try_iter()? {
                    self.value(&item, depth + 1)?;
                }
            }
            ValueKind::Map => {
                // A namespace can grow after it was looked at here, so it may stand under a name and nowhere else.
                let namespace = value.as_object().is_some_and(|object| object.type_name().contains("Namespace"));
                if namespace && depth > 0 {
                    return Err(too_much("put a namespace into another value".to_owned()));
                }
                for key in value.try_iter()? {
                    self.value(&key, depth + 1)?;
                    self.value(&value.get_item(&key)?, depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The filter that the operands of `*` go through. Repeating a list costs the engine nothing and a reader of it everything.
pub(super) fn no_list(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => Err(too_much("multiplied a list".to_owned())),
        _ => Ok(value),
    }
}

/// What the template did too much of; `engine` finds it in the error that it gets.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct TooMuch(pub(super) String);

fn too_much(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.clone()).with_source(TooMuch(what))
}

#[cfg(test)]
mod tests {
    use super::guarded;

    #[test]
    fn every_tag_that_binds_names_is_followed_by_a_look_at_them() {
        let check = |names: &str| format!("%}}{{% if __check_bound({names}) %}}{{% endif ");
        let cases = [
            ("{% set a = [1, '='] %}\n", format!("{{% set a = [1, '='] {}%}}\n", check("a"))),
            ("{%- set ns.a, b = 1, 2 -%} x", format!("{{%- set ns.a, b = 1, 2 {}-%}} x", check("ns.a, b"))),
            ("{% for (k, v) in x.items() if k in y %}", format!("{{% for (k, v) in x.items() if k in y {}%}}", check("k, v"))),
            ("{% with a = 1, b = a == 2 %}", format!("{{% with a = 1, b = a == 2 {}%}}", check("a, b, a"))),
            ("{% macro f(a, b=[c, d], e='x,y') +%}", format!("{{% macro f(a, b=[c, d], e='x,y') {}+%}}", check("a, b, e"))),
            ("{% call(x) f(y) %}", format!("{{% call(x) f(y) {}%}}", check("x"))),
        ];
        for (source, expected) in cases {
            assert_eq!(guarded(source), expected);
        }
    }

    #[test]
    fn tags_that_bind_nothing_stay() {
        let source = "{% set a %}x{% endset %}{% macro f() %}{% endmacro %}{% call f(y) %}{% endcall %}{% if a == 1 %}\
                      {% endif %}{{ a }}{# {% set a = 1 %} #}{% raw %}{% set a = 1 %}{% endraw %}{% set a = 1";
        assert_eq!(guarded(source), source);
    }
}
