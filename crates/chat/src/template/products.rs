//! Puts a filter around the operands of `*` that lets no list through: `[1] * 1000000000` is lazy in the engine, so its budget does
//! not see it until something walks over it. Works on the source, for `guard`.

use super::guard::NO_LIST;
use super::scan::{self, Strings};

/// The source with its products guarded, or the offset of one whose right operand is too much to follow.
pub(super) fn guarded(source: &str) -> Result<String, usize> {
    let mut out = String::with_capacity(source.len());
    let mut copied = 0;
    for tag in scan::tags(source) {
        for at in products(&source[tag.range.clone()]) {
            let at = tag.range.start + at;
            let right = operand(&source[at + 1..tag.range.end]).ok_or(at)?;
            let left = source[..at].trim_end().len();
            out.push_str(&source[copied..left]);
            out.push_str(&format!("|{NO_LIST} *"));
            out.push_str(&source[at + 1..at + 1 + right]);
            out.push_str(&format!("|{NO_LIST}"));
            copied = at + 1 + right;
        }
    }
    out.push_str(&source[copied..]);
    Ok(out)
}

/// Where single stars stand in a tag's code. Powers take numbers only.
fn products(tag: &str) -> Vec<usize> {
    let bytes = tag.as_bytes();
    let mut strings = Strings::default();
    tag.char_indices()
        .filter(|&(at, c)| {
            let star = |at: usize| bytes.get(at) == Some(&b'*');
            strings.is_code(c) && c == '*' && !star(at + 1) && !(at > 0 && star(at - 1))
        })
        .map(|(at, _)| at)
        .collect()
}

/// Length of an operand that is a number, a text, or a name with attributes. Brackets are not followed: models' templates repeat
/// texts by numbers, if they multiply at all.
fn operand(code: &str) -> Option<usize> {
    let blank = code.len() - code.trim_start().len();
    let rest = &code[blank..];
    let first = rest.chars().next()?;
    let len = if first == '"' || first == '\'' {
        let mut strings = Strings::default();
        rest.char_indices()
            .find(|&(at, c)| {
                let inside = !strings.is_code(c);
                at > 0 && inside && strings.is_closed()
            })?
            .0
            + 1
    } else {
        rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.')).unwrap_or(rest.len())
    };
    let follows = rest[len..].trim_start();
    (len > 0 && !follows.starts_with(['(', '[', '.'])).then_some(blank + len)
}

#[cfg(test)]
mod tests {
    use super::guarded;

    #[test]
    fn both_operands_go_through_the_filter() {
        assert_eq!(guarded("{{ a[1] * 'x*' }} *").as_deref(), Ok("{{ a[1]|__no_list * 'x*'|__no_list }} *"));
        assert_eq!(guarded("{% set b = 2*c.d+1 %}").as_deref(), Ok("{% set b = 2|__no_list *c.d|__no_list+1 %}"));
        assert_eq!(guarded("{{ 2 ** 3 }}{{ '*' }}{# a * (b) #}").as_deref(), Ok("{{ 2 ** 3 }}{{ '*' }}{# a * (b) #}"));
        assert_eq!(guarded("{{ a * b * 3 }}").as_deref(), Ok("{{ a|__no_list * b|__no_list|__no_list * 3|__no_list }}"));
    }

    #[test]
    fn operands_in_brackets_and_calls_are_refused() {
        for source in ["{{ 2 * (a) }}", "{{ 2 * f(1) }}", "{{ 2 * a[0] }}", "{{ 2 * [1] }}", "{{ f(*a) * }}", "{{ 2 * -a }}"] {
            assert!(guarded(source).is_err(), "{source}");
        }
    }
}
