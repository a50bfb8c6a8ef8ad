//! Files that are not what they say: each is refused with its place named, and none costs more than its own size.
#![allow(clippy::unwrap_used)]

mod writer;

use proptest::prelude::*;
use tunesmith_gguf::{GgufError, GgufFile};
use writer::{Item, Writer, llama, open};

/// The message of a file that must be refused.
fn refused(writer: &Writer) -> String {
    match writer.open() {
        Ok(_) => panic!("the file was read"),
        Err(e) => e.to_string(),
    }
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

/// Everything that can be asked of a file; the answers may be errors.
fn ask_everything(file: &GgufFile) {
    let _ = file.config_json();
    let _ = file.tokenizer_json();
    let _ = file.tokenizer_config_json();
    let _ = file.warnings();
    for name in file.hf_names() {
        let values = file.hf_tensor(&name).ok().flatten();
        let raw = file.hf_raw(&name).ok().flatten();
        if let (Some((shape, values)), Some(raw)) = (values, raw) {
            assert_eq!(shape.iter().product::<usize>(), values.len());
            assert_eq!((raw.shape, raw.kind.dequantise(&raw.bytes).unwrap().len()), (shape, values.len()));
        }
    }
}

#[test]
fn a_whole_file_is_read() {
    let file = llama().open().unwrap();
    ask_everything(&file);
    assert_eq!(file.hf_names().len(), 20);
    assert_eq!(file.config_json().unwrap()["eos_token_id"], 0);
    let mut second = llama();
    second.version = 2;
    assert!(second.open().is_ok());
}

#[test]
fn what_is_no_gguf_file_is_refused() {
    let mut other = llama();
    other.magic = *b"PK\x03\x04";
    assert_says(&refused(&other), &["model.gguf", "does not begin with GGUF"]);
    assert!(matches!(open(b""), Err(GgufError::Malformed { .. } | GgufError::Io { .. })));
    assert!(matches!(open(b"GG"), Err(GgufError::Malformed { .. })));
    assert!(matches!(GgufFile::open(std::path::Path::new("no/such.gguf")), Err(GgufError::Io { .. })));
    assert!(matches!(GgufFile::open(&std::env::temp_dir()), Err(GgufError::Io { .. })));
}

#[test]
fn other_versions_and_byte_orders_are_refused_by_name() {
    for (version, says) in [(1, "version 1"), (4, "version 4"), (0, "version 0"), (3u32.swap_bytes(), "big-endian")] {
        let mut file = llama();
        file.version = version;
        assert_says(&refused(&file), &[says, "supported"]);
    }
}

#[test]
fn counts_that_the_file_cannot_hold_are_refused() {
    for count in [65_537, u64::MAX, 1 << 40] {
        let mut file = llama();
        file.tensor_count = Some(count);
        assert_says(&refused(&file), &[&count.to_string(), "tensors", "65536"]);
        let mut file = llama();
        file.item_count = Some(count);
        assert_says(&refused(&file), &[&count.to_string(), "keys", "65536"]);
    }
    let mut more = llama();
    more.tensor_count = Some(60_000);
    assert_says(&refused(&more), &["byte"]);
}

#[test]
fn lists_and_texts_that_the_file_cannot_hold_are_refused() {
    let list = |item: u32, n: u64| Item::Raw(9, [&item.to_le_bytes()[..], &n.to_le_bytes()].concat());
    for item in [0, 4, 8, 9, 11] {
        for n in [1 << 20, u64::MAX, u64::MAX / 8 + 1] {
            assert_says(&refused(&Writer::new("llama").with("some.list", list(item, n))), &["some.list", &n.to_string(), "left"]);
        }
    }
    assert_says(&refused(&Writer::new("llama").with("some.list", list(77, 0))), &["some.list", "type 77"]);
    for n in [u64::MAX, 1 << 40] {
        assert_says(
            &refused(&Writer::new("llama").with("some.text", Item::Raw(8, n.to_le_bytes().to_vec()))),
            &["some.text", &n.to_string()],
        );
    }
    assert_says(&refused(&Writer::new("llama").with("some.text", Item::Raw(8, 99u64.to_le_bytes().to_vec()))), &["some.text", "99"]);
    assert_says(&refused(&Writer::new("llama").with("odd", Item::Raw(13, vec![0; 8]))), &["odd", "type 13"]);
}

#[test]
fn more_items_than_any_model_has_are_refused() {
    let n = 9u64 << 20;
    let list = [&0u32.to_le_bytes()[..], &n.to_le_bytes(), &vec![0; n as usize]].concat();
    assert_says(&refused(&Writer::new("llama").with("many", Item::Raw(9, list))), &["many", "more than"]);
}

#[test]
fn lists_in_lists_are_read_to_a_depth_and_dropped() {
    let nest = |levels: u32| {
        let mut bytes = [&4u32.to_le_bytes()[..], &1u64.to_le_bytes(), &7u32.to_le_bytes()].concat();
        for _ in 1..levels {
            bytes = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &bytes].concat();
        }
        Writer::new("llama").with("nested", Item::Raw(9, bytes)).with("after", 5)
    };
    for levels in 1..=3 {
        assert_eq!(nest(levels).open().unwrap().size("after"), Some(5));
    }
    for levels in [4, 1000, 100_000] {
        assert_says(&refused(&nest(levels)), &["nested", "levels"]);
    }
}

#[test]
fn keys_and_tensors_stand_once() {
    assert_says(&refused(&Writer::new("llama").with("twice", 1).with("twice", 2)), &["twice"]);
    assert_says(&refused(&Writer::new("llama").counting("t", &[4], 0.0).counting("t", &[4], 0.0)), &["tensor t", "twice"]);
}

#[test]
fn a_tensor_lies_within_the_file_and_on_a_border() {
    let base = || Writer::new("llama").tensor("t", &[8, 4], 0, vec![0; 128]);
    assert!(base().open().is_ok());
    for (offset, says) in
        [(32, "cut off"), (1 << 40, "cut off"), (u64::MAX - 31, "cut off"), (4, "multiple of 32"), (u64::MAX, "multiple of 32")]
    {
        let mut file = base();
        file.tensors[0].offset = Some(offset);
        assert_says(&refused(&file), &["tensor t", says]);
    }
    let mut short = base().bytes();
    short.truncate(short.len() - 1);
    assert_says(&open(&short).err().unwrap().to_string(), &["tensor t", "cut off"]);
}

#[test]
fn sizes_that_overflow_or_make_no_blocks_are_refused() {
    for shape in [&[u64::MAX, 2][..], &[1 << 32, 1 << 32], &[1 << 31, 1 << 31, 4], &[0, 4], &[u64::MAX], &[1 << 62]] {
        assert_says(&refused(&Writer::new("llama").tensor("t", shape, 0, vec![0; 64])), &["tensor t"]);
    }
    assert_says(&refused(&Writer::new("llama").tensor("t", &[33, 32], 2, vec![0; 1024])), &["tensor t", "blocks of 32"]);
    assert_says(&refused(&Writer::new("llama").tensor("t", &[1, 1, 1, 1, 1], 0, vec![0; 4])), &["tensor t", "5 dimensions"]);
    let scalar = Writer::new("llama").tensor("t", &[], 0, 2f32.to_le_bytes().to_vec()).open().unwrap();
    assert_eq!(scalar.dequantise("t").unwrap(), (vec![], vec![2.0]));
}

#[test]
fn types_that_are_not_read_are_named() {
    assert_says(&refused(&Writer::new("llama").tensor("t", &[256], 16, vec![0; 66])), &["tensor t", "IQ2_XXS", "Q4_K"]);
    assert_says(&refused(&Writer::new("llama").tensor("t", &[256], 4, vec![0; 66])), &["tensor t", "number 4"]);
}

#[test]
fn an_odd_alignment_is_refused() {
    for alignment in [Item::U32(0), Item::U32(3), Item::U32(1 << 21), Item::I32(-32), "32".into()] {
        assert_says(&refused(&Writer::new("llama").with("general.alignment", alignment)), &["general.alignment"]);
    }
}

#[test]
fn a_part_of_a_model_says_that_it_is_one() {
    assert_says(&refused(&Writer::new("llama").with("split.count", 3)), &["3 parts", "merge"]);
    assert!(Writer::new("llama").with("split.count", 1).open().is_ok());
}

#[test]
fn text_that_is_not_utf8_is_replaced() {
    let file = Writer::new("llama").with("bad", Item::Raw(8, [&2u64.to_le_bytes()[..], &[b'a', 0xff]].concat())).open().unwrap();
    assert_eq!(file.text("bad"), Some("a\u{fffd}"));
}

#[test]
fn numbers_beyond_any_count_are_no_counts() {
    let file = Writer::new("llama").with("huge", Item::U64(u64::MAX)).with("negative", Item::I32(-1)).open().unwrap();
    assert_eq!(file.size("negative"), None);
    assert_eq!(file.size("huge"), Some(i64::MAX as usize));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_never_panic(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<Option<prop::sample::Index>>()) {
        let mut bytes = llama().bytes();
        let header = bytes.len() * 2 / 5;
        for (at, value) in &changes {
            // Most of a file are weights, which may be anything; what can be wrong stands at the beginning.
            let at = at.index(header);
            bytes[at] = *value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(file) = open(&bytes) {
            ask_everything(&file);
        }
    }

    #[test]
    fn changed_numbers_never_panic(at in any::<prop::sample::Index>(), value in prop_oneof![
        Just(0u64), Just(1), Just(u64::MAX), Just(u64::MAX - 31), Just(1 << 63), Just((1 << 32) - 1), Just(1 << 31), any::<u64>()
    ]) {
        let mut bytes = llama().bytes();
        let at = at.index(bytes.len() * 2 / 5);
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
        if let Ok(file) = open(&bytes) {
            ask_everything(&file);
        }
    }

    #[test]
    fn noise_after_the_magic_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(file) = open(&[&b"GGUF\x03\0\0\0"[..], &noise].concat()) {
            ask_everything(&file);
        }
    }
}
