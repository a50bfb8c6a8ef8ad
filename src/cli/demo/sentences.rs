//! The demos' data set: four kinds of sentence from the study behind VADER (Hutto & Gilbert 2014), each rated by twenty people.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use tunesmith_ml::models::Stream;

/// Its name in the catalogue.
pub const DATA_SET: &str = "vader-sentences";

/// A kind of sentence.
pub struct Kind {
    /// As a label.
    pub label: &'static str,
    /// In a sentence.
    pub words: &'static str,
    file: &'static str,
}

/// The kinds.
pub const KINDS: [Kind; 4] = [
    Kind { label: "tweet", words: "a tweet", file: "tweets_GroundTruth.txt" },
    Kind { label: "movie_review", words: "a movie review", file: "movieReviewSnippets_GroundTruth.txt" },
    Kind { label: "product_review", words: "a product review", file: "amazonReviewSnippets_GroundTruth.txt" },
    Kind { label: "editorial", words: "an editorial", file: "nytEditorialSnippets_GroundTruth.txt" },
];
/// Sentences of each kind.
const EACH: usize = 1000;
/// Of these, for training.
const TRAIN: usize = 800;
const SEED: u64 = 0;

/// A sentence of the data set.
#[derive(Clone)]
pub struct Sentence {
    /// Its place in [`KINDS`].
    pub kind: usize,
    /// Its mean rating, from −4, very negative, to 4, very positive.
    pub rating: f32,
    /// What it says.
    pub text: String,
}

/// Sentences of all kinds, kind by kind.
pub struct Sentences {
    /// To train on.
    pub train: Vec<Sentence>,
    /// To evaluate on.
    pub eval: Vec<Sentence>,
}

/// Draws 1,000 sentences of each kind, 80 to 20.
pub fn read(archive: &Path) -> anyhow::Result<Sentences> {
    let mut drawn = Sentences { train: Vec::new(), eval: Vec::new() };
    for (kind, Kind { label, file, .. }) in KINDS.iter().enumerate() {
        let path = find(archive, file)?.with_context(|| format!("{file} is not in the archive"))?;
        let mut sentences = read_file(&path, kind)?;
        ensure!(sentences.len() >= EACH, "{file} has only {} sentences", sentences.len());
        shuffle(&mut sentences, label);
        drawn.train.extend_from_slice(&sentences[..TRAIN]);
        drawn.eval.extend_from_slice(&sentences[TRAIN..EACH]);
    }
    Ok(drawn)
}

/// Tab-separated: id, mean rating, text.
fn read_file(path: &Path, kind: usize) -> anyhow::Result<Vec<Sentence>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    // A few of its tweets are not UTF-8.
    let text = String::from_utf8_lossy(&bytes);
    let sentence = |line: &str| {
        let mut fields = line.splitn(3, '\t').skip(1);
        let rating = fields.next()?.trim().parse().ok()?;
        let text = fields.next()?.trim();
        (!text.is_empty()).then(|| Sentence { kind, rating, text: text.to_owned() })
    };
    Ok(text.lines().filter_map(sentence).collect())
}

/// The same order for the same seed; each kind has a stream of its own.
fn shuffle(sentences: &mut [Sentence], label: &str) {
    let mut stream = Stream::new(SEED, label);
    for i in (1..sentences.len()).rev() {
        sentences.swap(i, stream.below(i + 1));
    }
}

/// The file of that name, at any depth.
fn find(folder: &Path, name: &str) -> anyhow::Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_name() == name {
            return Ok(Some(entry.path()));
        }
        if entry.file_type()?.is_dir()
            && let Some(found) = find(&entry.path(), name)?
        {
            return Ok(Some(found));
        }
    }
    Ok(None)
}
