//! A job's rows, from the files in the store.

use std::path::{Path, PathBuf};

use tunesmith_data::{ClassificationColumns, DataError, Example, Limits, Plan, ProblemType, overlap, stratified_split};
use tunesmith_ml::spec::{DataSpec, JobSpec};
use tunesmith_ml::train::JobRows;
use tunesmith_store::{FileRow, Store, StoreError};

use super::failure::Failure;
use crate::config::Config;

/// The field of a job request that names the rows to train on.
pub const TRAINING_FILE: &str = "training_file";
/// The one that names the rows to evaluate on.
pub const VALIDATION_FILE: &str = "validation_file";

/// Training and evaluation rows.
pub struct Rows {
    /// Rows to train and to evaluate on.
    pub rows: JobRows,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Names both files' contents and how they were divided.
    pub sha256: String,
}

/// A file of a job on this machine.
pub struct LocalFile {
    path: PathBuf,
    name: String,
    sha256: String,
    param: &'static str,
}

impl LocalFile {
    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name that it was uploaded under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// SHA-256 of its bytes.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The field of the request that names it.
    pub fn param(&self) -> &'static str {
        self.param
    }

    /// What is wrong with the file, as its job's failure.
    pub fn fault(&self, source: DataError) -> Failure {
        Failure::Data { param: self.param, source }
    }

    /// Where the file's blob lies; `param` is the field of the request that names it.
    pub fn of(store: &Store, row: &FileRow, param: &'static str) -> Result<Self, StoreError> {
        let path = store
            .blobs()
            .local_path(&row.blob_key)
            .ok_or_else(|| StoreError::not_found(tunesmith_store::Kind::File, row.id.to_string()))?;
        Ok(Self { path, name: row.filename.clone(), sha256: row.sha256.clone(), param })
    }
}

/// Reads the rows; without a validation file a share of the training rows is held out, evenly over the labels.
///
/// # Errors
/// If a file does not hold what its summary said.
pub fn read_rows(config: &Config, spec: &JobSpec, train: &LocalFile, eval: Option<&LocalFile>) -> Result<Rows, Failure> {
    let limits = config.data_limits();
    let load = |file: &LocalFile| load(&file.path, &file.name, &limits, &spec.data).map_err(|e| file.fault(e));
    let all = load(train)?;
    let mut sha256 = train.sha256.clone();
    let Some(eval) = eval else {
        let targets: Vec<_> = all.iter().map(|e| e.target.clone()).collect();
        let split = stratified_split(&targets, &spec.data.labels, spec.data.validation_split, spec.seed);
        sha256.push_str(&format!(" split {} seed {}", spec.data.validation_split, spec.seed));
        let pick = |rows: &[usize]| rows.iter().map(|i| all[*i].clone()).collect::<Vec<_>>();
        let rows = JobRows::Examples { train: pick(&split.train), eval: pick(&split.eval) };
        return Ok(Rows { rows, warnings: split.warnings, sha256 });
    };
    let held_out = load(eval)?;
    sha256.push_str(&format!(" eval {}", eval.sha256));
    let shared = overlap(&all, &held_out);
    let warnings = if shared > 0 {
        vec![format!(
            "{shared} of {} rows of the validation file stand in the training file too; its figures are too good by that.",
            held_out.len()
        )]
    } else {
        Vec::new()
    };
    Ok(Rows { rows: JobRows::Examples { train: all, eval: held_out }, warnings, sha256 })
}

fn load(path: &Path, name: &str, limits: &Limits, data: &DataSpec) -> Result<Vec<Example>, DataError> {
    let columns = ClassificationColumns {
        text: data.text_column.clone(),
        label: data.label_column.clone(),
        text_pair: data.text_pair_column.clone(),
    };
    let problem_type = match data.problem_type {
        tunesmith_ml::spec::ProblemType::SingleLabelClassification => ProblemType::SingleLabel,
        tunesmith_ml::spec::ProblemType::MultiLabelClassification => ProblemType::MultiLabel,
        tunesmith_ml::spec::ProblemType::Regression => ProblemType::Regression,
    };
    let plan = Plan { problem_type, labels: data.labels.clone(), labels_by_id: data.labels_by_id, warnings: Vec::new() };
    tunesmith_data::load(path, name, limits, &columns, &plan)
}
