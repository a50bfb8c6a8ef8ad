//! What the examples that measure training share: their flags, the settings of a job, and the JSON line.

use std::path::PathBuf;

use serde_json::{Value, json};
use tunesmith_ml::spec::JobSpec;

/// What goes wrong in an example.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The command's flags.
pub struct Flags {
    pub model: PathBuf,
    pub tuning: String,
    pub dtype: String,
    pub batch: usize,
    pub length: usize,
    pub threads: usize,
    pub seconds: f64,
}

impl Flags {
    /// Reads the command line over these defaults; all cores, 15 seconds.
    ///
    /// # Errors
    /// If a flag is unknown or its value is none.
    pub fn read(tuning: &str, dtype: &str, batch: usize, length: usize) -> Result<Self, Failure> {
        let threads = std::thread::available_parallelism()?.get();
        let (tuning, dtype) = (tuning.to_owned(), dtype.to_owned());
        let mut f = Self { model: PathBuf::new(), tuning, dtype, batch, length, threads, seconds: 15.0 };
        let mut args = std::env::args().skip(1);
        while let Some(name) = args.next() {
            let value = args.next().ok_or(format!("{name} needs a value"))?;
            match name.as_str() {
                "--model" => f.model = value.into(),
                "--tuning" => f.tuning = value,
                "--dtype" => f.dtype = value,
                "--batch" => f.batch = value.parse()?,
                "--length" => f.length = value.parse()?,
                "--threads" => f.threads = value.parse()?,
                "--seconds" => f.seconds = value.parse()?,
                _ => return Err(format!("unknown flag {name}").into()),
            }
        }
        Ok(f)
    }

    /// The peers' job: LoRA of rank 8 on these targets or everything, AdamW without a schedule, no clipping.
    ///
    /// # Errors
    /// If the tuning or the precision is unknown.
    pub fn spec(
        &self,
        task: &str,
        labels: &[&str],
        targets: Value,
        modules_to_save: Option<&[&str]>,
        learning_rate: f64,
    ) -> Result<JobSpec, serde_json::Error> {
        let tuning = match self.tuning.as_str() {
            "lora" => json!({"type": "lora", "r": 8, "lora_alpha": 16.0, "lora_dropout": 0.0, "use_rslora": false,
                "target_modules": targets, "modules_to_save": modules_to_save}),
            other => json!({"type": other}),
        };
        serde_json::from_value(json!({
            "task": task, "seed": 0, "tuning": tuning,
            "data": {"text_column": "text", "label_column": "label", "text_pair_column": null, "labels": labels,
                "problem_type": "single_label_classification", "validation_split": 0.0},
            "training": {"num_train_epochs": 1.0, "max_steps": -1, "per_device_train_batch_size": self.batch, "max_tokens_per_batch": null,
                "gradient_accumulation_steps": 1, "learning_rate": learning_rate, "lr_scheduler_type": "constant", "warmup_steps": 0.0,
                "weight_decay": 0.01, "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8, "max_grad_norm": 0.0,
                "label_smoothing_factor": 0.0, "class_weights": null, "max_length": self.length, "eval_steps": null, "save_steps": null,
                "logging_steps": 10, "save_total_limit": 1, "load_best_model_at_end": false, "metric_for_best_model": null,
                "greater_is_better": null, "early_stopping_patience": null, "gradient_checkpointing": false, "dtype": self.dtype,
                "packing": false},
        }))
    }

    /// Prints the line: the fastest step and the median one of `rates`, the fastest first, and the peak of memory.
    ///
    /// # Errors
    /// If the system does not tell the peak.
    pub fn report(&self, name: &str, unit: &str, dtype: &str, rates: &[f64]) -> Result<(), Failure> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let peak = status.lines().find(|l| l.starts_with("VmHWM:")).and_then(|l| l.split_whitespace().nth(1)?.parse::<f64>().ok());
        let rounded = |x: f64| (x * 100.0).round() / 100.0;
        println!(
            "{}",
            json!({"name": name, "unit": unit, "best": rounded(rates[0]), "median": rounded(rates[rates.len() / 2]),
                "peak_rss_mib": (peak.unwrap_or(0.0) / 1024.0).round() as u64, "tuning": self.tuning, "dtype": dtype, "batch": self.batch,
                "length": self.length, "threads": self.threads})
        );
        Ok(())
    }
}
