//! An answer has the same bits whatever else the engine does.

use crate::tiny::{Answer, Tiny};

fn same(a: &[Answer], b: &[Answer], what: &str) {
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(!a.tokens.is_empty());
        assert_eq!(a.bits(), b.bits(), "{what}: answer {i} differs");
    }
}

#[test]
fn answers_are_the_same_alone_in_a_crowd_after_giving_way_and_over_shared_beginnings() {
    let tiny = Tiny::new();
    let asks = tiny.asks();
    let alone: Vec<Answer> = asks.iter().map(|ask| tiny.answer(std::slice::from_ref(ask), 64, 1).remove(0)).collect();
    let distinct: std::collections::BTreeSet<Vec<u32>> = alone.iter().map(|a| a.tokens.iter().map(|t| t.id).collect()).collect();
    assert!(distinct.len() > 8, "the questions are too much alike to show a mistake: {distinct:?}");
    for sequences in [2, 3, 17] {
        same(&alone, &tiny.answer(&asks, 256, sequences), &format!("{sequences} at once"));
    }
    // Room for two or three sequences: the others give way again and again.
    same(&alone, &tiny.answer(&asks, 12, 17), "few pages");
    // Each question twice, one after the other: the second finds its beginning computed.
    let twice: Vec<_> = asks.iter().flat_map(|ask| [ask.clone(), ask.clone()]).collect();
    let answers = tiny.answer(&twice, 256, 1);
    let (first, second): (Vec<_>, Vec<_>) = answers.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone())).unzip();
    same(&alone, &first, "first time");
    same(&alone, &second, "second time");
    assert!(second.iter().filter(|a| a.usage.cached_tokens > 0).count() > 8, "no beginning was shared");
}

#[test]
fn adapters_change_the_answers_of_a_quantised_base() {
    let tiny = Tiny::new();
    let mut asks = tiny.asks();
    asks.truncate(3);
    let with = tiny.answer(&asks, 64, 3);
    asks.iter_mut().for_each(|ask| ask.adapter = None);
    let without = tiny.answer(&asks, 64, 3);
    let changed: Vec<bool> = with.iter().zip(&without).map(|(a, b)| a.bits() != b.bits()).collect();
    assert_eq!(changed, [false, true, true]);
}
