//! `{% generation %}` blocks: transformers' own statement around what an assistant wrote. The engine has no such
//! statement, so it is rewritten as a filter block before parsing, whose filter sets marks around the text; the marks are
//! taken out of the rendered text again. Rewriting in place keeps white-space control and line numbers.

use std::ops::Range;

use super::scan;

/// Before an assistant's text. Noncharacters, which no text for interchange holds.
const OPEN: &str = "\u{fdd0}\u{10fffe}\u{fdd1}";
/// After it.
const CLOSE: &str = "\u{fdd0}\u{10fffe}\u{fdd2}";
/// What both begin with: conversations that hold it are refused in training.
pub(super) const MARK: &str = "\u{fdd0}\u{10fffe}";

/// The filter that a generation block becomes where marks are wanted.
pub(super) const MARKING_FILTER: &str = "__mark_assistant";
/// And where they are not.
pub(super) const PLAIN_FILTER: &str = "__leave_assistant";

/// What [`MARKING_FILTER`] does.
pub(super) fn mark(text: String) -> String {
    format!("{OPEN}{text}{CLOSE}")
}

/// Rewrites generation blocks as blocks of `filter`; gives the number of them too.
pub(super) fn rewrite(source: &str, filter: &str) -> (String, usize) {
    let mut out = String::with_capacity(source.len());
    let mut blocks = 0;
    let mut copied = 0;
    for name in scan::tags(source).into_iter().filter_map(|tag| tag.name) {
        let replacement = match &source[name.clone()] {
            "generation" => {
                blocks += 1;
                format!("filter {filter}")
            }
            "endgeneration" => "endfilter".to_owned(),
            _ => continue,
        };
        out.push_str(&source[copied..name.start]);
        out.push_str(&replacement);
        copied = name.end;
    }
    out.push_str(&source[copied..]);
    (out, blocks)
}

/// Takes the marks out of a rendered text and gives the ranges that stood between them, in bytes of what is left.
/// Blocks inside blocks give the outer range.
pub(super) fn take_marks(marked: &str) -> (String, Vec<Range<usize>>) {
    let mut text = String::with_capacity(marked.len());
    let mut ranges = Vec::new();
    let mut open = Vec::new();
    let mut rest = marked;
    while let Some(at) = rest.find(MARK) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix(OPEN) {
            open.push(text.len());
            rest = after;
        } else if let Some(after) = rest.strip_prefix(CLOSE) {
            if let Some(start) = open.pop()
                && open.is_empty()
                && start < text.len()
            {
                ranges.push(start..text.len());
            }
            rest = after;
        } else {
            text.push_str(MARK);
            rest = &rest[MARK.len()..];
        }
    }
    text.push_str(rest);
    (text, ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tags_are_rewritten_and_their_white_space_control_stays() {
        let source = "{# {% generation %} #}{{ '{% generation %}' }}{%- generation -%}x{%  endgeneration %}\
                      {% raw %}{% generation %}{% endraw %}{% set generation = '%}' %}";
        let (text, blocks) = rewrite(source, "f");
        assert_eq!(blocks, 1);
        assert_eq!(
            text,
            "{# {% generation %} #}{{ '{% generation %}' }}{%- filter f -%}x{%  endfilter %}\
             {% raw %}{% generation %}{% endraw %}{% set generation = '%}' %}"
        );
    }

    #[test]
    fn a_cut_off_template_is_left_to_the_parser() {
        for source in ["{% generation", "{%", "{{ 'a", "{# x", "{% raw %}{%", "{", "a{%- "] {
            assert_eq!(rewrite(source, "f"), (source.to_owned(), 0));
        }
    }

    #[test]
    fn marks_become_ranges_of_the_text_without_them() {
        let marked = format!("a{}b{}{}", mark("xä".to_owned()), mark(String::new()), mark("y".to_owned()));
        assert_eq!(take_marks(&marked), ("axäby".to_owned(), vec![1..4, 5..6]));
        let nested = mark(format!("p{}q", mark("r".to_owned())));
        let (text, ranges) = take_marks(&nested);
        assert_eq!(text, "prq");
        assert!(matches!(ranges.as_slice(), [range] if *range == (0..3)));
    }
}
