//! The section `data` of a language model's job: which columns make its texts, checked against the file's summary.
//!
//! Called by `resolve.rs` for the tasks `causal_lm` and `instruction`.

use std::collections::BTreeMap;

use serde_json::Value;
use tunesmith_data::{Summary, line_list};
use tunesmith_ml::spec::{DataSpec, LanguageData, ProblemType, Task, TextSource, Tuning};

use super::request::DataSection;
use super::resolve::{FileSummaries, validation_split};
use crate::api::error::{ApiError, shorten};

/// Resolves the section.
pub fn data(task: Task, section: Option<&DataSection>, files: &FileSummaries<'_>) -> Result<(DataSpec, Vec<String>), ApiError> {
    let empty = DataSection::default();
    let section = section.unwrap_or(&empty);
    refuse_label_fields(section)?;
    let split = validation_split(section, files)?;
    let source = match task {
        Task::CausalLm => column(section, files)?,
        _ => conversation(section, files)?,
    };
    let filter = filter(section, files)?;
    let spec = DataSpec {
        text_column: section.text_column.clone().unwrap_or_else(|| "text".into()),
        label_column: section.label_column.clone().unwrap_or_else(|| "label".into()),
        text_pair_column: None,
        labels: Vec::new(),
        labels_by_id: false,
        problem_type: ProblemType::SingleLabelClassification,
        validation_split: split,
        language: Some(LanguageData { source, filter }),
    };
    Ok((spec, Vec::new()))
}

/// Language models have no head that could be trained alone.
pub fn check_tuning(tuning: &Tuning) -> Result<(), ApiError> {
    match tuning {
        Tuning::Head => Err(ApiError::field("tuning.type", "`tuning.type` `head` is for classifiers; use `lora` or `full`.")),
        Tuning::Lora(lora) if lora.modules_to_save.as_ref().is_some_and(|m| !m.is_empty()) => {
            Err(ApiError::field("tuning.modules_to_save", "`tuning.modules_to_save` is for classifiers; leave it out."))
        }
        _ => Ok(()),
    }
}

fn refuse_label_fields(section: &DataSection) -> Result<(), ApiError> {
    let given = [("text_pair_column", section.text_pair_column.is_some()), ("problem_type", section.problem_type.is_some())];
    match given.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(ApiError::field(format!("data.{name}"), format!("`data.{name}` is for the task classification."))),
        None => Ok(()),
    }
}

/// Refuses a column that a file does not have.
fn check_column(files: &FileSummaries<'_>, name: &str, field: &str) -> Result<(), ApiError> {
    for (summary, file) in [Some((files.train, "training")), files.eval.map(|e| (e, "validation"))].into_iter().flatten() {
        if summary.column(name).is_none() {
            let columns: Vec<&str> = summary.column_names().take(20).collect();
            let message = format!("The {file} file has no column `{}`; its columns are {}.", shorten(name), columns.join(", "));
            return Err(ApiError::field(field, message));
        }
    }
    Ok(())
}

/// Refuses a column without any text.
fn check_texts(summary: &Summary, name: &str, field: &str) -> Result<(), ApiError> {
    match summary.column(name) {
        Some(column) if column.strings <= column.empty => {
            Err(ApiError::field(field, format!("The column `{}` holds no text.", shorten(name))))
        }
        _ => Ok(()),
    }
}

/// Refuses a column in which some row has no text.
fn check_every_text(summary: &Summary, name: &str, param: &str) -> Result<(), ApiError> {
    let Some(column) = summary.column(name) else { return Ok(()) };
    let faults = [
        ("is empty", column.empty, &column.empty_lines),
        ("is null", column.nulls, &column.null_lines),
        ("is a list", column.lists, &column.list_lines),
        ("is an object", column.objects, &column.object_lines),
    ];
    match faults.into_iter().find(|(_, count, _)| *count > 0) {
        Some((what, count, lines)) => {
            let message =
                format!("The column `{}` of `{param}` {what} in {}; remove or fill such rows.", shorten(name), line_list(lines, count));
            Err(ApiError::field(param, message))
        }
        None => Ok(()),
    }
}

fn column(section: &DataSection, files: &FileSummaries<'_>) -> Result<TextSource, ApiError> {
    if section.prompt_template.is_some() {
        let message = "`data.prompt_template` makes conversations; set `task` to `instruction`.";
        return Err(ApiError::field("data.prompt_template", message));
    }
    let (name, field) = match (&section.dataset_text_field, &section.text_column) {
        (Some(a), Some(b)) if a != b => {
            let message = "`data.dataset_text_field` and `data.text_column` name different columns; give one of them.";
            return Err(ApiError::field("data.dataset_text_field", message));
        }
        (Some(name), _) => (name.clone(), "data.dataset_text_field"),
        (None, Some(name)) => (name.clone(), "data.text_column"),
        (None, None) => ("text".to_owned(), "data.dataset_text_field"),
    };
    check_column(files, &name, field)?;
    check_texts(files.train, &name, field)?;
    // A filter may leave out the rows that are at fault; the worker names those that it does not.
    if section.filter.is_none() {
        for (summary, param) in [(Some(files.train), "training_file"), (files.eval, "validation_file")] {
            summary.map_or(Ok(()), |summary| check_every_text(summary, &name, param))?;
        }
    }
    Ok(TextSource::Column { name })
}

fn conversation(section: &DataSection, files: &FileSummaries<'_>) -> Result<TextSource, ApiError> {
    if section.dataset_text_field.is_some() {
        let message = "`data.dataset_text_field` is for the task causal_lm; conversations have columns of their own.";
        return Err(ApiError::field("data.dataset_text_field", message));
    }
    let Some(prompt) = &section.prompt_template else {
        for (summary, param) in [(Some(files.train), "training_file"), (files.eval, "validation_file")] {
            let Some(summary) = summary else { continue };
            let columns: Vec<&str> = summary.column_names().collect();
            // A filter may leave out the rows that are at fault; the worker names those that it does not.
            if let Some(faults) = summary.conversation_faults.as_ref().filter(|_| section.filter.is_none()) {
                return Err(ApiError::field(param, format!("Rows of `{param}` are no conversations: {faults}")));
            }
            if tunesmith_chat::detect(&columns).is_none() {
                let message = format!(
                    "No conversation can be told from the columns ({}): name them messages, prompt and completion, instruction and output, or conversations; or set `data.prompt_template`.",
                    columns.iter().take(20).copied().collect::<Vec<_>>().join(", ")
                );
                return Err(ApiError::field("data.prompt_template", message));
            }
        }
        return Ok(TextSource::Conversation);
    };
    if prompt.is_empty() || prompt.len() > 1 << 16 {
        return Err(ApiError::field("data.prompt_template", "`data.prompt_template` must have 1 to 65536 bytes."));
    }
    let completion = section.label_column.clone().unwrap_or_else(|| "label".into());
    check_column(files, &completion, "data.label_column")?;
    let mut wants_labels = false;
    for name in tunesmith_chat::template_columns(prompt).map_err(|e| ApiError::field("data.prompt_template", format!("{e}.")))? {
        if name == "labels" {
            wants_labels = true;
        } else {
            check_column(files, &name, "data.prompt_template")?;
        }
    }
    let labels = match (&section.labels, wants_labels) {
        (Some(labels), _) => labels.clone(),
        (None, false) => Vec::new(),
        (None, true) => {
            let distinct = files.train.column(&completion).and_then(|c| c.distinct.as_ref());
            let none = || {
                ApiError::field(
                    "data.labels",
                    format!("`{{labels}}` needs `data.labels`: the column `{completion}` has too many values to list."),
                )
            };
            distinct.ok_or_else(none)?.keys().cloned().collect()
        }
    };
    Ok(TextSource::Template { prompt: prompt.clone(), completion, labels })
}

fn filter(section: &DataSection, files: &FileSummaries<'_>) -> Result<BTreeMap<String, Vec<Value>>, ApiError> {
    let mut filter = BTreeMap::new();
    for (name, wanted) in section.filter.iter().flatten() {
        let field = format!("data.filter.{name}");
        check_column(files, name, &field)?;
        let values = match wanted {
            Value::Array(values) if values.is_empty() => return Err(ApiError::field(field.clone(), format!("`{field}` lists no value."))),
            Value::Array(values) => values.clone(),
            value => vec![value.clone()],
        };
        if values.iter().any(|v| v.is_array() || v.is_object()) {
            return Err(ApiError::field(field.clone(), format!("`{field}` must be a text, a number, or a list of these.")));
        }
        let distinct = files.train.column(name).and_then(|c| c.distinct.as_ref());
        let spelled = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        if distinct.is_some_and(|d| values.iter().all(|v| !d.contains_key(&spelled(v)))) {
            return Err(ApiError::field(field.clone(), format!("`{field}`: no row of the training file has such a value.")));
        }
        filter.insert(name.clone(), values);
    }
    Ok(filter)
}
