//! The demo's data set: four kinds of sentence from the study behind VADER (Hutto & Gilbert 2014).

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::json;
use tunesmith_ml::models::Stream;

/// Its name in the catalogue.
pub const DATA_SET: &str = "vader-sentences";

/// Label and file of each kind.
const KINDS: [(&str, &str); 4] = [
    ("tweet", "tweets_GroundTruth.txt"),
    ("movie_review", "movieReviewSnippets_GroundTruth.txt"),
    ("product_review", "amazonReviewSnippets_GroundTruth.txt"),
    ("editorial", "nytEditorialSnippets_GroundTruth.txt"),
];
/// Sentences of each kind.
const EACH: usize = 1000;
/// Of these, for training.
const TRAIN: usize = 800;
const SEED: u64 = 0;

/// The files to upload.
pub struct Data {
    /// Rows to train on.
    pub train: PathBuf,
    /// Rows to evaluate on.
    pub eval: PathBuf,
    /// How many there are.
    pub train_rows: usize,
    /// How many there are.
    pub eval_rows: usize,
    /// The kinds.
    pub labels: Vec<&'static str>,
}

/// Draws 1,000 sentences of each kind, 80 to 20, and writes them as JSONL.
pub fn write(archive: &Path, folder: &Path) -> anyhow::Result<Data> {
    let (mut train, mut eval) = (Vec::new(), Vec::new());
    for (label, name) in KINDS {
        let path = find(archive, name)?.with_context(|| format!("{name} is not in the archive"))?;
        let mut sentences = read(&path)?;
        ensure!(sentences.len() >= EACH, "{name} has only {} sentences", sentences.len());
        shuffle(&mut sentences, label);
        let row = |text: &String| json!({"text": text, "label": label}).to_string();
        train.extend(sentences[..TRAIN].iter().map(row));
        eval.extend(sentences[TRAIN..EACH].iter().map(row));
    }
    let data = Data {
        train: folder.join("train.jsonl"),
        eval: folder.join("eval.jsonl"),
        train_rows: train.len(),
        eval_rows: eval.len(),
        labels: KINDS.map(|(label, _)| label).to_vec(),
    };
    for (path, rows) in [(&data.train, train), (&data.eval, eval)] {
        let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
        for row in rows {
            writeln!(file, "{row}")?;
        }
        file.flush()?;
    }
    Ok(data)
}

/// Tab-separated: id, mean rating, text.
fn read(path: &Path) -> anyhow::Result<Vec<String>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    // A few of its tweets are not UTF-8.
    let text = String::from_utf8_lossy(&bytes);
    let sentences = text.lines().filter_map(|line| line.splitn(3, '\t').nth(2)).map(str::trim);
    Ok(sentences.filter(|s| !s.is_empty()).map(str::to_owned).collect())
}

fn shuffle(sentences: &mut [String], label: &str) {
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
