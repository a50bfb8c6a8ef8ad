//! From a job's settings to a job that is ready to run; `dry_run` stops there.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tunesmith_hub::Pulled;
use tunesmith_ml::models::Outline;
use tunesmith_ml::models::source::Weights;
use tunesmith_ml::nn::Kernels;
use tunesmith_ml::spec::JobSpec;
use tunesmith_ml::train::{Plan, Prepared, TrainJob, check_fit};
use tunesmith_store::{FileRow, Store};

use super::data::{LocalFile, TRAINING_FILE, VALIDATION_FILE, read_rows};
use super::failure::Failure;
use super::texts::read_texts;
use crate::config::{Config, Device};

/// What a job is made from, on this machine.
pub struct Inputs {
    /// Resolved settings.
    pub spec: JobSpec,
    /// The base's name, for adapter_config.json and the card.
    pub base_name: String,
    /// The base's folder.
    pub base_folder: PathBuf,
    /// The training file.
    pub train: LocalFile,
    /// The validation file.
    pub eval: Option<LocalFile>,
    /// Where checkpoints are written first.
    pub work_dir: PathBuf,
}

/// Reads and tokenises the rows, on the current pool's threads.
///
/// # Errors
/// If the data, the model or a setting cannot be used, or `go_on` says no meanwhile.
pub fn prepare(
    config: &Config,
    inputs: Inputs,
    threads: usize,
    go_on: &(dyn Fn() -> bool + Sync),
) -> Result<(Prepared, Vec<String>), Failure> {
    let outline = Outline::read(&inputs.base_folder)?;
    check_fit(&inputs.spec, &outline)?;
    let names = Weights::open(&inputs.base_folder)?.names();
    let unused_layers = outline.unused_layers(names.iter().map(String::as_str));
    let rows = match inputs.spec.task.is_language() {
        true => read_texts(config, &inputs.spec, &inputs.base_folder, &inputs.train, inputs.eval.as_ref())?,
        false => read_rows(config, &inputs.spec, &inputs.train, inputs.eval.as_ref())?,
    };
    let (device, kernels) = open(config.device)?;
    let job = TrainJob {
        spec: inputs.spec,
        base_folder: inputs.base_folder,
        base_name: inputs.base_name,
        rows: rows.rows,
        data_sha256: rows.sha256,
        work_dir: inputs.work_dir,
        device,
        kernels,
        threads,
    };
    let prepared = Prepared::new(job, go_on)?;
    let mut warnings = rows.warnings;
    warnings.extend(unused_layers);
    warnings.extend_from_slice(prepared.warnings());
    if prepared.plan.truncated_rows > 0 {
        let p = &prepared.plan;
        warnings.push(format!(
            "{} rows are longer than {} tokens; {} tokens were cut off them. `training.max_length` sets the limit.",
            p.truncated_rows, p.max_length, p.truncated_tokens
        ));
    }
    Ok((prepared, warnings))
}

fn open(device: Device) -> Result<(tunesmith_ml::Device, Kernels), Failure> {
    use tunesmith_ml::device;
    Ok(match device {
        Device::Auto => device::best(),
        Device::Cpu => device::cpu(),
        Device::Cuda(n) => device::cuda(n)?,
        Device::Metal => device::metal()?,
    })
}

/// What a job would do.
pub struct DryRun {
    /// Its size.
    pub plan: Plan,
    /// How long it would take on this machine, if nothing else runs.
    pub estimated_seconds: f64,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The size of a job that is not filed: rows, tokens, truncations, steps, memory. Blocks; call it off the runtime's threads.
///
/// # Errors
/// If the data, the model or a setting cannot be used.
pub fn plan(
    config: &Arc<Config>,
    store: &Store,
    spec: JobSpec,
    base: &Pulled,
    model: &str,
    files: (&FileRow, Option<&FileRow>),
) -> Result<DryRun, Failure> {
    let inputs = Inputs {
        spec,
        base_name: model.to_owned(),
        base_folder: base.model_path(),
        train: LocalFile::of(store, files.0, TRAINING_FILE)?,
        eval: files.1.map(|f| LocalFile::of(store, f, VALIDATION_FILE)).transpose()?,
        work_dir: Path::new("").to_owned(),
    };
    let threads = config.threads_of_serving();
    let pool = tunesmith_ops::threads::build_pool(threads).map_err(|e| Failure::Panic(e.to_string()))?;
    pool.install(|| {
        let (prepared, warnings) = prepare(config, inputs, threads, &|| true)?;
        Ok(DryRun { estimated_seconds: prepared.estimated_seconds(), plan: prepared.plan, warnings })
    })
}
