//! The merges of a SentencePiece vocabulary, which keeps only a score for each piece.
//!
//! Every way to make a piece of two others is a merge, those of the best piece first: `transformers` rebuilds them the same way
//! (`generate_merges`), and SentencePiece's own algorithm merges the best piece first.

use std::collections::HashMap;

/// Characters of a piece that merges are looked for, at most. SentencePiece's limit is 16; a longer token would cost its square.
const LONGEST: usize = 128;

/// Pairs in the order in which they are merged.
pub(super) fn merges(tokens: &[String], score: impl Fn(usize) -> f64, is_piece: impl Fn(usize) -> bool) -> Vec<(&str, &str)> {
    let pieces = || tokens.iter().enumerate().filter(|(id, _)| is_piece(*id));
    let ids: HashMap<&str, usize> = pieces().map(|(id, token)| (token.as_str(), id)).collect();
    let mut all: Vec<(f64, usize, usize, &str, &str)> = Vec::new();
    for (id, piece) in pieces() {
        let length = piece.chars().count();
        if length > LONGEST {
            continue;
        }
        let splits = piece.char_indices().enumerate().skip(1).filter_map(|(left_length, (at, _))| {
            let (left, right) = piece.split_at(at);
            Some((*ids.get(left)?, *ids.get(right)?, left_length, left, right))
        });
        let mut splits: Vec<_> = splits.collect();
        splits.sort_unstable_by_key(|(left, right, ..)| (*left, *right));
        all.extend(splits.into_iter().map(|(_, _, left_length, left, right)| (score(id), left_length, length - left_length, left, right)));
    }
    // Stable: pieces of equal score and lengths stay in the order of their ids.
    all.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
    all.into_iter().map(|(.., left, right)| (left, right)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_piece_is_made_first_in_every_way_that_there_is() {
        let tokens: Vec<String> = ["a", "b", "c", "ab", "bc", "abc"].map(String::from).to_vec();
        let scores = [-10.0, -11.0, -12.0, -3.0, -2.0, -1.0];
        let all = merges(&tokens, |id| scores[id], |_| true);
        assert_eq!(all, [("ab", "c"), ("a", "bc"), ("b", "c"), ("a", "b")]);
    }

    #[test]
    fn what_is_no_piece_is_not_made_and_makes_nothing() {
        let tokens: Vec<String> = ["a", "b", "ab", "aba"].map(String::from).to_vec();
        assert_eq!(merges(&tokens, |_| 0.0, |id| id != 2), []);
    }

    #[test]
    fn a_piece_of_any_length_costs_little() {
        let tokens: Vec<String> = vec!["a".to_owned(), "a".repeat(1 << 20)];
        assert_eq!(merges(&tokens, |_| 0.0, |_| true), []);
    }
}
