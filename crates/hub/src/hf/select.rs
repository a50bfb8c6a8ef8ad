//! Which files of a repository or folder are wanted, and when a set of them is complete.
//!
//! A model repository may hold the same weights five times (PyTorch, TensorFlow, ONNX, …); only safetensors and the small
//! files that a tokenizer and a model need are taken, or its GGUF file where it has no safetensors. Used for `file:` folders
//! too, so that both hash the same files.

use std::collections::{HashMap, HashSet};

use super::client::RemoteFile;
use crate::config::HubConfig;
use crate::error::HubError;
use crate::source::{Kind, check_inner_path};

const MODEL_FILES: &[&str] = &[
    "README.md",
    "adapter_config.json",
    "added_tokens.json",
    "config.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "labels.json",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
];
const MODEL_PREFIXES: &[&str] = &["tokenizer", "vocab", "chat_template"];
const TABLE_ENDINGS: &[&str] = &[".parquet", ".jsonl", ".csv", ".jsonl.gz", ".csv.gz"];

/// Whether a file of that path is taken.
pub(crate) fn is_wanted(kind: Kind, path: &str) -> bool {
    match kind {
        Kind::Model => is_wanted_of_model(path),
        Kind::Dataset => path == "README.md" || is_table(path),
    }
}

fn is_wanted_of_model(path: &str) -> bool {
    match path.split_once('/') {
        None => {
            MODEL_FILES.contains(&path)
                || MODEL_PREFIXES.iter().any(|p| path.starts_with(p))
                || is_weights(path)
                || is_gguf(path)
                || path.ends_with(".safetensors.index.json")
        }
        // sentence-transformers' modules: 1_Pooling/config.json, 2_Dense/model.safetensors
        Some((folder, file)) => {
            folder.starts_with(|c: char| c.is_ascii_digit()) && folder.contains('_') && matches!(file, "config.json" | "model.safetensors")
        }
    }
}

/// `consolidated.safetensors` holds a second copy of the weights under its maker's own names.
fn is_weights(path: &str) -> bool {
    path.ends_with(".safetensors") && !path.contains('/') && !path.starts_with("consolidated")
}

fn is_gguf(path: &str) -> bool {
    path.ends_with(".gguf") && !path.contains('/')
}

/// Which of a repository's GGUF files is taken where there is no other weight file: the four-bit kind that llama.cpp takes
/// too unless told otherwise, else the first in the order of names. Vision towers (`mmproj`) and parts of split files are not
/// models.
fn preferred_gguf(files: &[RemoteFile]) -> Option<String> {
    let is_model = |name: &&str| is_gguf(name) && !name.to_ascii_lowercase().contains("mmproj") && piece_of(name).is_none();
    let mut names: Vec<&str> = files.iter().map(|f| f.path.as_str()).filter(is_model).collect();
    names.sort_unstable();
    let four_bit = names.iter().find(|name| name.to_ascii_lowercase().contains("q4_k_m"));
    four_bit.or(names.first()).map(|name| (*name).to_owned())
}

fn is_table(path: &str) -> bool {
    TABLE_ENDINGS.iter().any(|ending| path.ends_with(ending))
}

/// Whether files that lie in a snapshot can be used without asking the hub for more. Python's client may have fetched a
/// part only: a configuration without weights, or some of the numbered pieces.
pub(super) fn is_complete(kind: Kind, files: &[String]) -> bool {
    let has = |test: &dyn Fn(&str) -> bool| files.iter().any(|file| test(file));
    let has_content = match kind {
        Kind::Model => {
            let is_adapter = has(&|f| f == "adapter_config.json");
            let can_tokenise = has(&|f| f.starts_with("tokenizer.") || f.starts_with("vocab.") || f == "spiece.model");
            has(&is_gguf) || (has(&is_weights) && (is_adapter || (has(&|f| f == "config.json") && can_tokenise)))
        }
        Kind::Dataset => has(&is_table),
    };
    has_content && numbered_pieces_are_all_there(files)
}

/// `model-00001-of-00003.safetensors` calls for two more.
fn numbered_pieces_are_all_there(files: &[String]) -> bool {
    let mut sets: HashMap<(&str, usize), HashSet<usize>> = HashMap::new();
    for file in files {
        if let Some((stem, number, count)) = piece_of(file) {
            sets.entry((stem, count)).or_default().insert(number);
        }
    }
    sets.iter().all(|((_, count), numbers)| numbers.len() == *count)
}

fn piece_of(file: &str) -> Option<(&str, usize, usize)> {
    let (before, after) = file.rsplit_once("-of-")?;
    let (stem, number) = before.rsplit_once('-')?;
    let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    Some((stem, number.parse().ok()?, after[..digits].parse().ok()?))
}

/// The files to download, within the limits.
pub(super) fn choose(kind: Kind, repo: &str, files: Vec<RemoteFile>, config: &HubConfig) -> Result<Vec<RemoteFile>, HubError> {
    let mut wanted: Vec<RemoteFile> = files.into_iter().filter(|file| is_wanted(kind, &file.path)).collect();
    let gguf = match wanted.iter().any(|file| is_weights(&file.path)) {
        true => None,
        false => preferred_gguf(&wanted),
    };
    wanted.retain(|file| !is_gguf(&file.path) || Some(&file.path) == gguf.as_ref());
    let content = match kind {
        Kind::Model => gguf.is_some() || wanted.iter().any(|file| is_weights(&file.path)),
        Kind::Dataset => wanted.iter().any(|file| is_table(&file.path)),
    };
    if !content {
        let what = match kind {
            Kind::Model => "a .safetensors or .gguf file (other formats of weights are not read)",
            Kind::Dataset => "a .parquet, .jsonl or .csv file",
        };
        return Err(HubError::Missing { what: format!("{what} in {repo}") });
    }
    for file in &wanted {
        check_inner_path(&file.path).map_err(|why| HubError::Protocol { what: format!("the file list of {repo}"), why })?;
    }
    if wanted.len() > config.max_files {
        return Err(HubError::TooLarge {
            what: repo.to_owned(),
            found: format!("{} files", wanted.len()),
            limit: format!("{} files", config.max_files),
        });
    }
    let bytes = wanted.iter().filter_map(|file| file.size).fold(0, u64::saturating_add);
    if bytes > config.max_bytes {
        return Err(HubError::TooLarge {
            what: repo.to_owned(),
            found: format!("{bytes} bytes"),
            limit: format!("{} bytes", config.max_bytes),
        });
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(files: &[&str]) -> Vec<String> {
        files.iter().map(|f| (*f).to_owned()).collect()
    }

    #[test]
    fn of_a_model_only_what_we_read_is_taken() {
        for path in [
            "config.json",
            "tokenizer.json",
            "tokenizer.model",
            "vocab.txt",
            "merges.txt",
            "model.safetensors",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "1_Pooling/config.json",
            "2_Dense/model.safetensors",
            "chat_template.jinja",
            "adapter_config.json",
        ] {
            assert!(is_wanted(Kind::Model, path), "{path}");
        }
        for path in [
            "pytorch_model.bin",
            "tf_model.h5",
            "onnx/model.onnx",
            "onnx/tokenizer.json",
            "openvino/openvino_model.xml",
            "consolidated.safetensors",
            "original/model.safetensors",
            "train_script.py",
            ".gitattributes",
        ] {
            assert!(!is_wanted(Kind::Model, path), "{path}");
        }
    }

    #[test]
    fn one_gguf_file_is_taken_where_there_is_no_safetensors() {
        let choose = |files: &[&str]| {
            let files = files.iter().map(|path| RemoteFile { path: (*path).to_owned(), size: Some(1), sha256: None }).collect();
            choose(Kind::Model, "org/name", files, &HubConfig::in_folder(std::path::Path::new("x")))
                .unwrap()
                .into_iter()
                .map(|f| f.path)
                .collect::<Vec<_>>()
        };
        let quantised = ["README.md", "m.Q2_K.gguf", "m.Q4_K_M.gguf", "m.Q8_0.gguf", "mmproj-m-f16.gguf"];
        assert_eq!(choose(&quantised), ["README.md", "m.Q4_K_M.gguf"]);
        assert_eq!(choose(&["mmproj-m.gguf", "m-Q8_0.gguf", "x/m-Q4_K_M.gguf"]), ["m-Q8_0.gguf"]);
        assert_eq!(choose(&["config.json", "model.safetensors", "m.Q4_K_M.gguf"]), ["config.json", "model.safetensors"]);
        assert!(is_complete(Kind::Model, &names(&["m-Q8_0.gguf"])));
    }

    #[test]
    fn of_a_data_set_the_tables_are_taken_at_any_depth() {
        assert!(is_wanted(Kind::Dataset, "data/train-00000-of-00001.parquet"));
        assert!(is_wanted(Kind::Dataset, "en/train.jsonl.gz"));
        assert!(!is_wanted(Kind::Dataset, "ag_news.py"));
        assert!(!is_wanted(Kind::Dataset, "model.safetensors"));
    }

    #[test]
    fn a_snapshot_with_missing_parts_is_not_complete() {
        let whole = ["config.json", "tokenizer.json", "model.safetensors"];
        assert!(is_complete(Kind::Model, &names(&whole)));
        for missing in 0..whole.len() {
            let mut part = names(&whole);
            part.remove(missing);
            assert!(!is_complete(Kind::Model, &part), "{part:?}");
        }
        assert!(is_complete(Kind::Model, &names(&["adapter_config.json", "adapter_model.safetensors"])));
        let shards = ["config.json", "vocab.txt", "model-00001-of-00002.safetensors"];
        assert!(!is_complete(Kind::Model, &names(&shards)));
        assert!(!is_complete(Kind::Dataset, &names(&["a/train-00001-of-00002.parquet"])));
        assert!(is_complete(Kind::Dataset, &names(&["a/train-00000-of-00001.parquet", "a/x-y-of-z.csv"])));
    }
}
