//! The model card, README.md of every model and checkpoint, in Hugging Face's form.

use std::fmt::Write;

use serde_json::{Map, Value};
use tunesmith_ml::spec::{JobSpec, ProblemType, Task, Tuning};
use tunesmith_ml::train::Plan;

use crate::api::jobs::Echo;

/// What a card says beside its figures.
#[derive(Clone)]
pub struct Card {
    /// The model's name.
    pub name: String,
    /// The base's name.
    pub base: String,
    /// The base's revision.
    pub revision: String,
    /// The base's licence.
    pub licence: Option<String>,
    /// The job's settings.
    pub spec: JobSpec,
    /// The job's size.
    pub plan: Plan,
}

impl Card {
    /// The card's text, with an evaluation's figures.
    pub fn text(&self, metrics: Option<&Map<String, Value>>) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut out, metrics);
        out
    }

    fn write(&self, out: &mut String, metrics: Option<&Map<String, Value>>) -> std::fmt::Result {
        let adapter = matches!(self.spec.tuning, Tuning::Lora(_));
        writeln!(out, "---")?;
        writeln!(out, "base_model: {}", yaml(&self.base))?;
        writeln!(out, "library_name: {}", if adapter { "peft" } else { "transformers" })?;
        if let Some(licence) = &self.licence {
            writeln!(out, "license: {}", yaml(licence))?;
        }
        let pipeline = if self.spec.task.is_language() { "text-generation" } else { "text-classification" };
        writeln!(out, "pipeline_tag: {pipeline}\ntags:\n- tunesmith\n---\n")?;
        writeln!(out, "# {}\n", self.name)?;
        writeln!(out, "Fine-tuned by tunesmith {} from {} (revision {}).\n", env!("CARGO_PKG_VERSION"), self.base, self.revision)?;
        let does = match (self.spec.task, self.spec.data.problem_type) {
            (Task::CausalLm, _) => "Continues texts",
            (Task::Instruction, _) => "Answers in conversations",
            (Task::Classification, ProblemType::SingleLabelClassification) => "Answers with one label a text",
            (Task::Classification, ProblemType::MultiLabelClassification) => "Answers with several labels a text",
            (Task::Classification, ProblemType::Regression) => "Answers with a number for a text",
        };
        writeln!(out, "{does}.")?;
        if !self.spec.data.labels.is_empty() {
            writeln!(out, "Labels, in the order of their ids: {}.", self.spec.data.labels.join(", "))?;
        }
        writeln!(out, "\n## Data\n")?;
        writeln!(
            out,
            "{} rows to train on ({} tokens), {} to evaluate on; texts are cut at {} tokens ({} were).",
            self.plan.train_rows, self.plan.train_tokens, self.plan.eval_rows, self.plan.max_length, self.plan.truncated_rows
        )?;
        writeln!(out, "\n## Training\n")?;
        let Echo { tuning, training, .. } = Echo::of(&self.spec);
        writeln!(
            out,
            "Seed {}, {} steps, products in {}.\n\n```json\n{tuning}\n{training}\n```",
            self.spec.seed, self.plan.total_steps, self.plan.dtype
        )?;
        if !adapter {
            writeln!(
                out,
                "\nThe weights are float32, as they were trained, whatever form the base's file has; rounding them is left to you."
            )?;
        }
        let Some(metrics) = metrics else { return Ok(()) };
        writeln!(out, "\n## Evaluation\n\n| figure | value |\n|---|---|")?;
        for (name, value) in metrics.iter().filter(|(_, v)| v.is_number()) {
            writeln!(out, "| {name} | {value} |")?;
        }
        Ok(())
    }
}

/// A text as a YAML scalar: JSON's strings are YAML's too.
fn yaml(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

/// The base's name as other programs know it: the hub's id for a catalogue name, never a path of this machine.
pub fn base_name(model: &str) -> String {
    let hub_id = tunesmith_hub::find_in_catalogue(model).and_then(|entry| {
        entry.sources().into_iter().find_map(|source| match source {
            tunesmith_hub::Source::Hf { repo, .. } => Some(repo),
            _ => None,
        })
    });
    hub_id.unwrap_or_else(|| model.strip_prefix("file:").map_or(model, |p| p.rsplit('/').next().unwrap_or(p)).to_owned())
}
