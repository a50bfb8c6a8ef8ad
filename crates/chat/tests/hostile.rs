//! Templates that loop, allocate, recurse or nest must end in an error within a moment, and never take the process with
//! them. Each runs on a thread with the stack that a server's worker threads have.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use tunesmith_chat::{ChatTemplate, Message, RenderOptions, Role, SpecialTokens, TemplateError};

/// Compiles and renders on a thread of 2 MiB, and says how long that took.
fn attempt(source: String) -> (Result<usize, TemplateError>, Duration) {
    std::thread::Builder::new()
        .stack_size(2 << 20)
        .spawn(move || {
            let begin = Instant::now();
            let result = ChatTemplate::new(&source, SpecialTokens::default()).and_then(|template| {
                let messages = [Message::new(Role::User, "hello")];
                let text = template.render(&messages, &RenderOptions::default())?;
                Ok(text.len())
            });
            (result, begin.elapsed())
        })
        .unwrap()
        .join()
        .unwrap()
}

/// Far more than any of them needs in a debug build.
const MOMENT: Duration = Duration::from_secs(60);

#[test]
fn templates_that_loop_allocate_or_recurse_end_in_an_error() {
    let cases = [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{% for b in range(100000) %}xxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for a in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s='x') %}{% for a in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for a in range(60) %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for a in range(60) %}{% set ns.l = ns.l | zip(ns.l) %}{% endfor %}",
        "{% macro f(l, n) %}{{ f([l, l], n + 1) if n < 60 }}{{ l == [l] }}{% endmacro %}{{ f([1], 0) }}",
        "{% for l in [[1]] recursive %}{{ loop([[l, l]]) }}{% endfor %}",
        "{% set l = [1, 2, 3, 4, 5, 6, 7, 8, 9] %}{% set l = [l, l, l, l, l, l, l, l, l, l, l] %}{% set l = [l, l, l, l, l, l, l, l, l, l] %}\
         {% set l = [l, l, l, l, l, l, l, l, l, l, l] %}{% set l = [l, l, l, l, l, l, l, l, l, l, l] %}{{ l == [l] }}",
        "{% with l = [range(1000), range(1000)] %}{% with l = [l, l, l, l, l, l] %}{% with l = [l, l, l, l, l, l, l, l, l, l] %}{% endwith %}{% endwith %}{% endwith %}",
        "{% set s = 'x' * 1000000 %}{% set l = [s, s, s, s, s] %}{{ l ~ l }}",
        "{% set ns = namespace() %}{% set a = namespace(b=ns) %}{% set ns.a = [a, a] %}{{ ns == a }}",
        "{% set l = [1] * 1000000000 %}{{ l ~ '' }}",
        "{{ (1000000000 * messages) ~ '' }}",
        "{{ [1] * 1000 * 1000 * 1000 == [2] * 1000 * 1000 * 1000 }}",
        "{{ '{:1000000000}'.format('x') }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'x' * 1000000000 }}",
        "{{ [1] * 1000000000 }}",
        "{{ ('x' * 1000000).replace('x', 'y' * 1000000) }}",
        "{{ ('y' * 1000000).join(range(100000)) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ 'x\\n' * 1000000 | indent(1000000) }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ range(1000000000) | list }}",
        "{% for a in range(100000) %}{{ messages | tojson(indent=64) }}{% endfor %}",
        "{% set ns = namespace() %}{% set ns.ns = ns %}{{ ns | tojson }}",
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{{ strftime_now('%Y' * 10000000) }}",
    ];
    let mut wrong = Vec::new();
    for source in cases {
        let (result, took) = attempt(source.to_owned());
        if result.is_ok() || took > MOMENT {
            wrong.push(format!("{source}: {result:?} after {took:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn lists_that_hold_themselves_twice_a_level_are_stopped_before_anything_walks_over_them() {
    let doubled = [
        "{% set ns.l = [ns.l, ns.l] %}{% set ns.m = [ns.m, ns.m] %}",
        "{% set ns.l = {'a': ns.l, 'b': ns.l} %}{% set ns.m = {'a': ns.m, 'b': ns.m} %}",
        "{% set ns.l = dict(a=ns.l, b=ns.l) %}{% set ns.m = dict(a=ns.m, b=ns.m) %}",
        "{% set l = ns.l, ns.l %}{% set ns.l = l %}{% set m = ns.m, ns.m %}{% set ns.m = m %}",
    ];
    let walks = [
        "ns.l",
        "ns.l | string",
        "ns.l ~ 'x'",
        "[ns.l] | join('x')",
        "ns.l == ns.m",
        "ns.l < ns.m",
        "ns.l in [ns.m]",
        "{ns.l: 1}",
        "raise_exception(ns.l)",
        "[ns.l, ns.m] | sort",
        "[ns.l, ns.m] | unique",
        "[ns.l, ns.m] | max",
        "ns.l | upper",
        "ns.l | e",
        "'%s' | format(ns.l)",
        "'{}'.format(ns.l)",
        "','.join([ns.l])",
        "[ns.l].count(ns.m)",
        "ns.l | pprint",
        "ns.l is eq(ns.m)",
        "ns.l | tojson",
        "ns.l | tojson(separators=ns.l)",
        "[{'k': ns.l}, {'k': ns.m}] | groupby('k')",
        "[ns.l] | map('string') | list",
    ];
    for (i, double) in doubled.into_iter().enumerate() {
        // The ways to walk over a value do not depend on how it came about: all once, and a few each time.
        for walk in walks.into_iter().take(if i == 0 { walks.len() } else { 5 }) {
            let source =
                format!("{{% set ns = namespace(l=[1], m=[1]) %}}{{% for a in range(60) %}}{double}{{% endfor %}}{{{{ {walk} }}}}");
            let (result, took) = attempt(source);
            assert!(matches!(result, Err(TemplateError::Limit(_))), "{double} {walk}: {result:?}");
            assert!(took < MOMENT, "{double} {walk} took {took:?}");
        }
    }
}

#[test]
fn values_nested_a_hundred_thousand_deep_do_not_overflow_the_stack() {
    let build = |grow: &str, then: &str| {
        format!("{{% set ns = namespace(l=[]) %}}{{% for a in range(100000) %}}{{% set ns.l = {grow} %}}{{% endfor %}}{then}")
    };
    for grow in ["[ns.l]", "{'a': ns.l}", "(ns.l,)", "dict(a=ns.l)", "namespace(a=ns.l)"] {
        for then in ["", "{{ ns.l }}", "{{ ns.l | tojson }}", "{{ ns.l == ns.l }}", "{{ ns.l | string }}"] {
            let (_, took) = attempt(build(grow, then));
            assert!(took < MOMENT, "{grow} {then} took {took:?}");
        }
    }
}

#[test]
fn sources_that_nest_without_end_are_refused_by_the_parser() {
    let cases = [
        format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(100_000), "]".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "1 + ".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "1 ** ".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "1 if 1 else ".repeat(50_000)),
        format!("{{{{ x{} }}}}", ".a".repeat(100_000)),
        format!("{{{{ x{} }}}}", "|e".repeat(100_000)),
        format!("{{{{ x{} }}}}", "()".repeat(100_000)),
        "{% if true %}".repeat(50_000) + &"{% endif %}".repeat(50_000),
        "{% for a in [1] %}".repeat(30_000) + &"{% endfor %}".repeat(30_000),
        format!("{{% if 1 %}}{}{{% endif %}}", "{% elif 1 %}".repeat(50_000)),
        "{% generation %}".repeat(20_000) + &"{% endgeneration %}".repeat(20_000),
    ];
    for source in cases {
        let head: String = source.chars().take(30).collect();
        let (_, took) = attempt(source);
        assert!(took < MOMENT, "{head} took {took:?}");
    }
}

#[test]
fn a_template_that_is_too_long_is_refused_before_it_is_parsed() {
    let (result, _) = attempt("x".repeat((1 << 20) + 1));
    assert!(matches!(result, Err(TemplateError::TooLong { bytes: 1_048_577, .. })));
}

#[test]
fn output_has_a_limit_of_its_own() {
    let (result, _) = attempt("{% for a in range(1000) %}{{ 'x' * 20000 }}{% endfor %}".to_owned());
    let error = result.unwrap_err();
    assert_eq!(error.to_string(), "the chat template was stopped: it wrote more than 16777216 bytes");
}
