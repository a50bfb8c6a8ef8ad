//! Ids, types, tokens and offsets of difficult texts, whole and cut, against `transformers`.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use tunesmith_ml::text::TextTokenizer;

use crate::reference::*;

fn numbers(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect()
}

#[test]
fn difficult_texts_become_the_tokens_that_transformers_gives_them() {
    let all = json("tokenizer_cases.json");
    let limit = all["max_length"].as_u64().unwrap() as usize;
    for folder in ["bert-tiny", "distilbert-tiny", "roberta-tiny"] {
        let cut = TextTokenizer::read(&fixtures().join(folder), limit, 400).unwrap();
        let whole = cut.with_max_length(512).unwrap();
        let cases = all[folder].as_array().unwrap();
        assert!(cases.len() > 15);
        for case in cases {
            let (text, pair) = (case["text"].as_str().unwrap(), case["pair"].as_str());
            let what = format!("{folder}: {text:?} {pair:?}");
            let all_of_it = whole.encode(text, pair).unwrap();
            assert_eq!((all_of_it.ids, all_of_it.truncated), (numbers(&case["whole_ids"]), 0), "{what}");
            let part = cut.encode(text, pair).unwrap();
            // The fixture asked for segment ids by name; a tokenizer whose model_input_names lack them gives none by itself.
            let segments = json(&format!("{folder}/tokenizer_config.json"))["model_input_names"].to_string().contains("token_type_ids");
            let type_ids = if segments { numbers(&case["type_ids"]) } else { vec![0; part.ids.len()] };
            assert_eq!((&part.ids, &part.type_ids), (&numbers(&case["ids"]), &type_ids), "{what}");
            let left_out = case["whole_length"].as_u64().unwrap() as usize - part.ids.len();
            assert_eq!(part.truncated, left_out, "{what}");
            let (pieces, truncated) = cut.pieces(text, pair).unwrap();
            assert_eq!(truncated, left_out, "{what}");
            for (i, piece) in pieces.iter().enumerate() {
                assert_eq!((piece.id, &Value::from(piece.text.as_str())), (part.ids[i], &case["tokens"][i]), "{what}: token {i}");
                let offsets = numbers(&case["offsets"][i]);
                match (piece.start, piece.stop) {
                    (Some(start), Some(stop)) => assert_eq!([start as u32, stop as u32][..], offsets, "{what}: token {i}"),
                    other => assert_eq!((other, piece.special, &offsets[..]), ((None, None), true, &[0, 0][..]), "{what}: token {i}"),
                }
            }
            assert_eq!(pieces.len(), part.ids.len());
        }
    }
}
