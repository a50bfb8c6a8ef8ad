//! From a request to the job that will run: every default filled in, every range checked.
//!
//! `create.rs` calls [`resolve`] with the summaries of the files. It is a pure function, so that the whole table of
//! CONTRACT's defaults is under test without a server; an error names the field by its path.

use tunesmith_data::{ClassificationColumns, Summary};
use tunesmith_ml::peft::check_pattern;
use tunesmith_ml::spec::{ClassWeights, DataSpec, JobSpec, LoraSpec, ProblemType, TargetModules, Task, Tuning};

use super::openai::{Given, Hyperparameters, MethodKind};
use super::request::{DataSection, JobRequest, TuningSection};
use super::{language, training};
use crate::api::error::{ApiError, shorten};

/// What is known of the job's files.
pub struct FileSummaries<'a> {
    /// The training file's.
    pub train: &'a Summary,
    /// The validation file's, if the request names one.
    pub eval: Option<&'a Summary>,
}

/// A job that can be filed.
#[derive(Debug)]
pub struct Resolved {
    /// What the worker trains by.
    pub spec: JobSpec,
    /// OpenAI's three settings as resolved.
    pub hyperparameters: Hyperparameters,
    /// What the user should know; each becomes an event.
    pub warnings: Vec<String>,
}

/// Applies defaults and checks. `seed` is the one drawn for a request that has none.
pub fn resolve(request: &JobRequest, files: &FileSummaries<'_>, seed: u64) -> Result<Resolved, ApiError> {
    refuse_unavailable(request)?;
    check_texts(request)?;
    let task = task(request, files.train)?;
    let given = openai_settings(request)?;
    let tuning = tuning(request.tuning.as_ref())?;
    let (data, warnings) = match task.is_language() {
        true => language::data(task, request.data.as_ref(), files)?,
        false => data(request.data.as_ref(), files)?,
    };
    if task.is_language() {
        language::check_tuning(&tuning)?;
    }
    let has_eval = files.eval.is_some() || data.validation_split > 0.0;
    let training = training::resolve(request.training.as_ref(), &tuning, &given, task, &data, has_eval)?;
    if let Some(ClassWeights::Map(weights)) = &training.class_weights {
        check_weights(weights.keys(), &data)?;
    }
    let seed = request.seed.unwrap_or(seed);
    let hyperparameters = training::echo(&training, &given.settings);
    Ok(Resolved { spec: JobSpec { task, seed, data, tuning, training }, hyperparameters, warnings })
}

/// Fields that are known and cannot be honoured.
fn refuse_unavailable(request: &JobRequest) -> Result<(), ApiError> {
    let is_set = |value: &Option<serde_json::Value>| value.as_ref().is_some_and(|v| !v.is_null());
    // An empty list asks for none, as OpenAI's clients write it.
    if is_set(&request.integrations) && request.integrations.as_ref().is_some_and(|v| v.as_array().is_none_or(|list| !list.is_empty())) {
        return Err(ApiError::field("integrations", "`integrations` are not available; leave it out. `GET …/metrics` has the curves."));
    }
    if is_set(&request.quantization) {
        return Err(ApiError::field("quantization", "`quantization` is not available yet; leave it out."));
    }
    if let Some(method) = &request.method
        && method.kind != MethodKind::Supervised
    {
        return Err(ApiError::field("method.type", "Only the method `supervised` is available."));
    }
    for (name, value) in request.method.iter().flat_map(|m| [("dpo", &m.dpo), ("reinforcement", &m.reinforcement)]) {
        if is_set(value) {
            let field = format!("method.{name}");
            return Err(ApiError::field(field.clone(), format!("`{field}` is not available; only `method.supervised` is.")));
        }
    }
    Ok(())
}

fn check_texts(request: &JobRequest) -> Result<(), ApiError> {
    if let Some(suffix) = &request.suffix {
        let plain = suffix.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !plain || suffix.is_empty() || suffix.len() > 64 {
            let message = format!("`suffix` is `{}`; it takes 1 to 64 letters, digits, `.`, `_`, `-`.", shorten(suffix));
            return Err(ApiError::field("suffix", message));
        }
    }
    if request.seed.is_some_and(|seed| seed > MAX_SEED) {
        return Err(ApiError::field(
            "seed",
            format!("`seed` must be at most {MAX_SEED}, the largest number that every JSON reader keeps."),
        ));
    }
    if request.priority.is_some_and(|p| !(-1_000_000..=1_000_000).contains(&p)) {
        return Err(ApiError::field("priority", "`priority` must be between -1000000 and 1000000."));
    }
    let metadata = request.metadata.iter().flatten();
    if request.metadata.as_ref().is_some_and(|m| m.len() > 16) {
        return Err(ApiError::field("metadata", "`metadata` takes at most 16 pairs."));
    }
    for (key, value) in metadata {
        if key.is_empty() || key.chars().count() > 64 {
            return Err(ApiError::field("metadata", format!("The key `{}` of `metadata` must have 1 to 64 characters.", shorten(key))));
        }
        if value.chars().count() > 512 {
            return Err(ApiError::field(format!("metadata.{key}"), format!("`metadata.{key}` is longer than 512 characters.")));
        }
    }
    Ok(())
}

/// 2^53 - 1: larger integers change on their way through JavaScript.
const MAX_SEED: u64 = (1 << 53) - 1;

fn task(request: &JobRequest, train: &Summary) -> Result<Task, ApiError> {
    let available = Task::NAMES.join(", ");
    let refuse = |message: String| Err(ApiError::field("task", message));
    match request.task.as_deref() {
        Some(name) => match Task::by_name(name) {
            Some(task) => Ok(task),
            None => refuse(format!("`task` is `{}`; available: {available}.", shorten(name))),
        },
        // Whoever names a template, a field of text or a column of labels has said what the task is; templates have labels too.
        None if request.data.as_ref().is_some_and(|d| d.prompt_template.is_some()) => Ok(Task::Instruction),
        None if request.data.as_ref().is_some_and(|d| d.dataset_text_field.is_some()) => Ok(Task::CausalLm),
        None if request.data.as_ref().is_some_and(|d| d.label_column.is_some() || d.labels.is_some() || d.problem_type.is_some()) => {
            Ok(Task::Classification)
        }
        None => match tunesmith_data::infer_task(train) {
            Some(name) if Task::by_name(name).is_some() => Ok(Task::by_name(name).unwrap_or(Task::Classification)),
            Some(other) => refuse(format!(
                "The file's columns look like the task `{other}`, which is not available yet. Available: {available}; set `task` and name the columns under `data`."
            )),
            None => {
                let columns: Vec<&str> = train.column_names().take(20).collect();
                refuse(format!(
                    "The task cannot be told from the columns ({}). Set `task` to one of: {available}; and name the columns under `data`.",
                    columns.join(", ")
                ))
            }
        },
    }
}

/// The client's numbers from `method.supervised.hyperparameters` or `hyperparameters`.
fn openai_settings(request: &JobRequest) -> Result<Given, ApiError> {
    let of_method = request.method.as_ref().and_then(|m| m.supervised.as_ref()).and_then(|s| s.hyperparameters.clone());
    match (of_method, request.hyperparameters.clone()) {
        (Some(_), Some(_)) => {
            Err(ApiError::field("hyperparameters", "Settings stand in `hyperparameters` and in `method` too; `method` alone is enough."))
        }
        (Some(settings), None) => Ok(Given { path: "method.supervised.hyperparameters", settings }),
        (None, settings) => Ok(Given { path: "hyperparameters", settings: settings.unwrap_or_default() }),
    }
}

fn tuning(section: Option<&TuningSection>) -> Result<Tuning, ApiError> {
    let empty = TuningSection::default();
    let section = section.unwrap_or(&empty);
    let kind = section.kind.as_deref().unwrap_or("lora");
    match kind {
        "lora" => lora(section).map(Tuning::Lora),
        "full" | "head" => {
            refuse_lora_fields(section, kind)?;
            Ok(if kind == "full" { Tuning::Full } else { Tuning::Head })
        }
        "qlora" => Err(ApiError::field("tuning.type", "`tuning.type` `qlora` is not available yet; use `lora`.")),
        other => Err(ApiError::field("tuning.type", format!("`tuning.type` is `{}`; it must be full, lora or head.", shorten(other)))),
    }
}

fn refuse_lora_fields(section: &TuningSection, kind: &str) -> Result<(), ApiError> {
    let given = [
        ("r", section.r.is_some()),
        ("lora_alpha", section.lora_alpha.is_some()),
        ("lora_dropout", section.lora_dropout.is_some()),
        ("use_rslora", section.use_rslora.is_some()),
        ("target_modules", section.target_modules.is_some()),
        ("modules_to_save", section.modules_to_save.is_some()),
    ];
    match given.iter().find(|(_, is_given)| *is_given) {
        Some((name, _)) => Err(ApiError::field(
            format!("tuning.{name}"),
            format!("`tuning.{name}` has no meaning with `tuning.type` `{kind}`; leave it out or use `lora`."),
        )),
        None => Ok(()),
    }
}

fn lora(section: &TuningSection) -> Result<LoraSpec, ApiError> {
    let wrong = |name: &str, text: &str| Err(ApiError::field(format!("tuning.{name}"), format!("`tuning.{name}` {text}.")));
    let r = section.r.unwrap_or(8);
    if !(1..=1024).contains(&r) {
        return wrong("r", &format!("is {r}; it must be between 1 and 1024"));
    }
    let lora_alpha = section.lora_alpha.unwrap_or(16.0);
    if !(lora_alpha > 0.0 && lora_alpha <= 1e6) {
        return wrong("lora_alpha", &format!("is {lora_alpha}; it must be above 0 and at most 1e6"));
    }
    let lora_dropout = section.lora_dropout.unwrap_or(0.05);
    if !(0.0..1.0).contains(&lora_dropout) {
        return wrong("lora_dropout", &format!("is {lora_dropout}; it must be at least 0 and below 1"));
    }
    let target_modules = section.target_modules.clone().unwrap_or_else(|| TargetModules::Pattern("all-linear".into()));
    match &target_modules {
        TargetModules::Pattern(text) if text.is_empty() || text.len() > 1000 => {
            return wrong("target_modules", "must have 1 to 1000 characters");
        }
        TargetModules::Names(names) if names.is_empty() || names.iter().any(String::is_empty) => {
            return wrong("target_modules", "must name at least one module, and none may be empty");
        }
        TargetModules::Names(names) if names.len() > 10_000 => return wrong("target_modules", "takes at most 10000 names"),
        _ => {
            check_pattern(&target_modules).map_err(|e| ApiError::field("tuning.target_modules", format!("`tuning.target_modules`: {e}")))?
        }
    }
    Ok(LoraSpec {
        r: r as usize,
        lora_alpha,
        lora_dropout,
        use_rslora: section.use_rslora.unwrap_or(false),
        target_modules,
        modules_to_save: section.modules_to_save.clone(),
    })
}

fn data(section: Option<&DataSection>, files: &FileSummaries<'_>) -> Result<(DataSpec, Vec<String>), ApiError> {
    let empty = DataSection::default();
    let section = section.unwrap_or(&empty);
    for (name, given) in [
        ("filter", section.filter.is_some()),
        ("prompt_template", section.prompt_template.is_some()),
        ("dataset_text_field", section.dataset_text_field.is_some()),
    ] {
        if given {
            return Err(ApiError::field(
                format!("data.{name}"),
                format!("`data.{name}` is for language models; the task is classification."),
            ));
        }
    }
    let split = validation_split(section, files)?;
    let columns = ClassificationColumns {
        text: section.text_column.clone().unwrap_or_else(|| "text".into()),
        label: section.label_column.clone().unwrap_or_else(|| "label".into()),
        text_pair: section.text_pair_column.clone(),
    };
    let asked = section.problem_type.map(to_data);
    let plan = tunesmith_data::plan(files.train, files.eval, &columns, section.labels.as_deref(), asked)?;
    let spec = DataSpec {
        text_column: columns.text,
        label_column: columns.label,
        text_pair_column: columns.text_pair,
        labels: plan.labels,
        labels_by_id: plan.labels_by_id,
        problem_type: of_data(plan.problem_type),
        validation_split: split,
        language: None,
    };
    Ok((spec, plan.warnings))
}

/// The share of rows that is held out.
pub(super) fn validation_split(section: &DataSection, files: &FileSummaries<'_>) -> Result<f64, ApiError> {
    let split = section.validation_split.unwrap_or(if files.eval.is_some() { 0.0 } else { 0.1 });
    if !(0.0..=0.5).contains(&split) {
        return Err(ApiError::field("data.validation_split", format!("`data.validation_split` is {split}; it must be between 0 and 0.5.")));
    }
    if files.eval.is_some() && split > 0.0 {
        return Err(ApiError::field(
            "data.validation_split",
            "`data.validation_split` and `validation_file` exclude each other; give one of them.",
        ));
    }
    Ok(split)
}

/// The data crate knows nothing of models, so it has a type of its own.
fn to_data(kind: ProblemType) -> tunesmith_data::ProblemType {
    match kind {
        ProblemType::SingleLabelClassification => tunesmith_data::ProblemType::SingleLabel,
        ProblemType::MultiLabelClassification => tunesmith_data::ProblemType::MultiLabel,
        ProblemType::Regression => tunesmith_data::ProblemType::Regression,
    }
}

fn of_data(kind: tunesmith_data::ProblemType) -> ProblemType {
    match kind {
        tunesmith_data::ProblemType::SingleLabel => ProblemType::SingleLabelClassification,
        tunesmith_data::ProblemType::MultiLabel => ProblemType::MultiLabelClassification,
        tunesmith_data::ProblemType::Regression => ProblemType::Regression,
    }
}

fn check_weights<'a>(names: impl Iterator<Item = &'a String>, data: &DataSpec) -> Result<(), ApiError> {
    for name in names {
        if !data.labels.contains(name) {
            let labels: Vec<String> = data.labels.iter().take(20).map(|l| shorten(l)).collect();
            let message =
                format!("`training.class_weights` names `{}`, which is no label; the labels are {}.", shorten(name), labels.join(", "));
            return Err(ApiError::field("training.class_weights", message));
        }
    }
    Ok(())
}
