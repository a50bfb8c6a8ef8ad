//! Small jobs over the fixtures' models: rows of text, folders with changed settings, and an observer that records
//! everything, keeps checkpoints, and asks for a pause or a stop at a given moment.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tunesmith_data::{Example, Target};
use tunesmith_ml::error::Result;
use tunesmith_ml::models::{normal, write_json, write_safetensors};
use tunesmith_ml::nn::Kernels;
use tunesmith_ml::spec::JobSpec;
use tunesmith_ml::train::{CheckpointReady, Control, Finished, JobRows, Level, Observer, Outcome, Prepared, Progress, TrainJob};

use super::reference::*;

/// What the observer answers to one question: the `call`-th (from 0) after `step` finished steps.
#[derive(Clone, Copy)]
pub struct Ask {
    pub step: u64,
    pub call: usize,
    pub control: Control,
}

/// Records what the loop reports.
pub struct Recorder {
    pub logs: Vec<Map<String, Value>>,
    pub events: Vec<(Level, String, Value)>,
    pub progress: Vec<Progress>,
    pub checkpoints: Vec<(u64, Map<String, Value>, bool)>,
    ask: Option<Ask>,
    step: u64,
    calls: usize,
    kept: TempDir,
}

impl Recorder {
    pub fn new(ask: Option<Ask>) -> Self {
        let kept = tempfile::tempdir().unwrap();
        Self { logs: vec![], events: vec![], progress: vec![], checkpoints: vec![], ask, step: 0, calls: 0, kept }
    }

    /// The run's work folder.
    pub fn work(&self) -> PathBuf {
        self.kept.path().join("work")
    }

    /// Where the checkpoint of a step was moved to.
    pub fn kept(&self, step: u64) -> PathBuf {
        self.kept.path().join(format!("step-{step}"))
    }

    /// Takes over what another run's observer kept, as a store does across attempts.
    pub fn inherit(&self, other: &Recorder) {
        copy_all(other.kept.path(), self.kept.path());
    }

    /// `loss` of every log entry of training, by step.
    pub fn losses(&self) -> BTreeMap<u64, f64> {
        self.entries("loss")
    }

    /// A figure of the log, by step.
    pub fn entries(&self, name: &str) -> BTreeMap<u64, f64> {
        self.logs.iter().filter_map(|l| Some((l["step"].as_u64().unwrap(), l.get(name)?.as_f64()?))).collect()
    }

    /// `train_loss` of every checkpoint, by step.
    pub fn checkpoint_losses(&self) -> BTreeMap<u64, f64> {
        self.checkpoints.iter().map(|(step, metrics, _)| (*step, metrics["train_loss"].as_f64().unwrap())).collect()
    }
}

impl Observer for Recorder {
    fn control(&mut self) -> Control {
        let call = self.calls;
        self.calls += 1;
        match self.ask {
            Some(ask) if self.step == ask.step && call == ask.call => ask.control,
            _ => Control::Continue,
        }
    }

    fn event(&mut self, level: Level, message: String, data: Value) {
        self.events.push((level, message, data));
    }

    fn log(&mut self, entry: Map<String, Value>) {
        self.logs.push(entry);
    }

    fn progress(&mut self, progress: Progress) {
        self.step = progress.step;
        self.calls = 0;
        self.progress.push(progress);
    }

    fn checkpoint(&mut self, ready: CheckpointReady) -> Result<()> {
        let to = self.kept(ready.step);
        if to.exists() {
            fs::remove_dir_all(&to).unwrap();
        }
        fs::rename(ready.folder, to).unwrap();
        self.checkpoints.push((ready.step, ready.metrics, ready.is_best));
        Ok(())
    }

    fn state_folder(&mut self, step: u64) -> Result<PathBuf> {
        Ok(self.kept(step))
    }
}

/// Copies a folder.
pub fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_all(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A job; its work folder is its observer's.
pub struct Job {
    pub spec: JobSpec,
    pub base: PathBuf,
    pub train: Vec<Example>,
    pub eval: Vec<Example>,
    pub data: String,
    pub kernels: Kernels,
}

impl Job {
    pub fn new(base: impl Into<PathBuf>, spec: JobSpec, train: Vec<Example>, eval: Vec<Example>) -> Self {
        Self { spec, base: base.into(), train, eval, data: "data".into(), kernels: Kernels::Native }
    }

    /// Tokenises and counts.
    pub fn prepare(&self) -> Result<Prepared> {
        self.prepare_in(Path::new("/nonexistent"))
    }

    fn prepare_in(&self, work_dir: &Path) -> Result<Prepared> {
        let job = TrainJob {
            spec: self.spec.clone(),
            base_folder: self.base.clone(),
            base_name: "tiny".into(),
            rows: JobRows::Examples { train: self.train.clone(), eval: self.eval.clone() },
            data_sha256: self.data.clone(),
            work_dir: work_dir.to_owned(),
            device: Device::Cpu,
            kernels: self.kernels,
            threads: 1,
        };
        Prepared::new(job, &|| true)
    }

    pub fn run(&self, resume: Option<&Path>, recorder: &mut Recorder) -> Result<Outcome> {
        self.prepare_in(&recorder.work())?.run(resume, recorder)
    }

    /// Runs to the end.
    pub fn finish(&self) -> (Box<Finished>, Recorder) {
        let mut recorder = Recorder::new(None);
        match self.run(None, &mut recorder).unwrap() {
            Outcome::Finished(finished) => (finished, recorder),
            _ => panic!("the run did not finish"),
        }
    }
}

/// A finished run, or a panic.
pub fn finished(outcome: Outcome) -> Box<Finished> {
    match outcome {
        Outcome::Finished(finished) => finished,
        Outcome::Paused => panic!("paused"),
        Outcome::Stopped => panic!("stopped"),
    }
}

const SUBJECTS: [&str; 5] =
    ["the striker scored", "stocks fell and prices rose", "scientists found water", "a new phone", "a quiet film with a great cast"];

/// A text whose words tell its class, and whose number tells it from others.
pub fn text(number: usize, class: usize) -> String {
    let tail = ["in the final", "again", "on a distant moon of the planet", "and it was great"][number % 4];
    format!("{} row {number:02} {tail}", SUBJECTS[class % SUBJECTS.len()])
}

/// Rows whose classes take turns; lines from `first_line` on.
pub fn rows(n: usize, classes: usize, first_line: u64) -> Vec<Example> {
    (0..n).map(|i| example(first_line + i as u64, &text(i, i % classes), (i % classes) as u32)).collect()
}

/// The rows with other targets.
pub fn with_targets(mut rows: Vec<Example>, target: impl Fn(usize) -> Target) -> Vec<Example> {
    rows.iter_mut().enumerate().for_each(|(i, r)| r.target = target(i));
    rows
}

/// A copy of a fixture's model folder with changed configuration.
pub fn edited(folder: &str, change: impl Fn(&mut Map<String, Value>)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy_all(&fixtures().join(folder), dir.path());
    let mut config = json(&format!("{folder}/config.json"));
    change(config.as_object_mut().unwrap());
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// A copy of a fixture's model folder whose layers drop nothing.
pub fn without_dropout(folder: &str) -> TempDir {
    edited(folder, |c| {
        for key in ["hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "seq_classif_dropout"] {
            if c.contains_key(key) {
                c.insert(key.into(), json!(0.0));
            }
        }
    })
}

/// A BERT folder of random weights, large enough for kernels to share work among threads; bert-tiny's tokenizer.
pub fn random_bert(hidden: usize, layers: usize, intermediate: usize) -> TempDir {
    let dir = edited("bert-tiny", |c| {
        c.insert("hidden_size".into(), json!(hidden));
        c.insert("num_hidden_layers".into(), json!(layers));
        c.insert("intermediate_size".into(), json!(intermediate));
        c.insert("num_attention_heads".into(), json!(4));
    });
    let mut tensors = Vec::new();
    let mut tensor = |name: String, shape: &[usize]| {
        let mut value = normal(shape, 0.05, 3, &name, &Device::Cpu).unwrap();
        if name.ends_with("LayerNorm.weight") {
            value = (value + 1.0).unwrap();
        }
        tensors.push((format!("bert.{name}"), value));
    };
    for (table, entries) in [("word", 200), ("position", 64), ("token_type", 2)] {
        tensor(format!("embeddings.{table}_embeddings.weight"), &[entries, hidden]);
    }
    let (square, wide) = ([hidden, hidden], [intermediate, hidden]);
    let linear = |name: &str, shape: [usize; 2]| [(format!("{name}.weight"), shape.to_vec()), (format!("{name}.bias"), vec![shape[0]])];
    let norm = |name: &str| [(format!("{name}.weight"), vec![hidden]), (format!("{name}.bias"), vec![hidden])];
    let mut all = norm("embeddings.LayerNorm").to_vec();
    for i in 0..layers {
        let block = |part: &str| format!("encoder.layer.{i}.{part}");
        for part in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
            all.extend(linear(&block(part), square));
        }
        all.extend(linear(&block("intermediate.dense"), wide));
        all.extend(linear(&block("output.dense"), [hidden, intermediate]));
        all.extend(norm(&block("attention.output.LayerNorm")));
        all.extend(norm(&block("output.LayerNorm")));
    }
    all.extend(linear("pooler.dense", square));
    all.into_iter().for_each(|(name, shape)| tensor(name, &shape));
    write_safetensors(&dir.path().join("model.safetensors"), &tensors).unwrap();
    dir
}

/// Every file of a folder with its bytes, deepest folders included.
pub fn bytes_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            files.extend(bytes_of(&path).into_iter().map(|(n, b)| (format!("{name}/{n}"), b)));
        } else {
            files.insert(name, fs::read(&path).unwrap());
        }
    }
    files
}

/// Writes a JSON file.
pub fn write_value(path: &Path, value: &Value) {
    write_json(path, value).unwrap();
}
