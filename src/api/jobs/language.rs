//! The section `data` of a language model's job: which columns make its texts, checked against the file's summary.
//!
//! Called by `resolve.rs` for the tasks `causal_lm` and `instruction`.

use std::collections::BTreeMap;

use serde_json::Value;
use tunesmith_data::{Summary, is_value, line_list};
use tunesmith_ml::spec::{DataSpec, LanguageData, ProblemType, Task, TextSource, Tuning};

use super::request::DataSection;
use super::resolve::{FileSummaries, validation_split};
use crate::api::error::{ApiError, shorten};

/// Resolves the section.
pub fn data(task: Task, section: Option<&DataSection>, files: &FileSummaries<'_>) -> Result<(DataSpec, Vec<String>), ApiError> {
    let empty = DataSection::default();
    let section = section.unwrap_or(&empty);
    refuse_foreign(task, section)?;
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

/// Fields that mean nothing to the task, or to it without a template.
fn refuse_foreign(task: Task, section: &DataSection) -> Result<(), ApiError> {
    const CLASSIFICATION: &str = "is for the task classification";
    const TEMPLATE: &str = "is for classification, and for `data.prompt_template`, where it has the answer";
    const LABELS: &str = "is for classification, and for `data.prompt_template`, where it stands for `{labels}`";
    let plain = task == Task::CausalLm;
    let template = section.prompt_template.is_some() && !plain;
    let given = [
        ("text_pair_column", section.text_pair_column.is_some(), CLASSIFICATION),
        ("problem_type", section.problem_type.is_some(), CLASSIFICATION),
        ("prompt_template", section.prompt_template.is_some() && plain, "makes conversations, the task instruction"),
        ("dataset_text_field", section.dataset_text_field.is_some() && !plain, "is for plain texts, the task causal_lm"),
        ("text_column", section.text_column.is_some() && template, "is not needed: `data.prompt_template` names its columns itself"),
        ("text_column", section.text_column.is_some() && !plain, "is for plain texts; conversations have columns of their own"),
        ("label_column", section.label_column.is_some() && !template, TEMPLATE),
        ("labels", section.labels.is_some() && !template, LABELS),
    ];
    match given.iter().find(|(_, given, _)| *given) {
        Some((name, _, why)) => Err(ApiError::field(format!("data.{name}"), format!("`data.{name}` {why}; the task is {}.", task.name()))),
        None => Ok(()),
    }
}

/// Both files with the fields of the request that name them.
fn sides<'a>(files: &FileSummaries<'a>) -> impl Iterator<Item = (&'a Summary, &'static str)> {
    [Some((files.train, "training_file")), files.eval.map(|eval| (eval, "validation_file"))].into_iter().flatten()
}

/// Refuses a column that a file does not have; `field` is where the request names it.
fn check_column(files: &FileSummaries<'_>, name: &str, field: &str) -> Result<(), ApiError> {
    for (summary, file) in sides(files) {
        if summary.column(name).is_none() {
            let columns: Vec<&str> = summary.column_names().take(20).collect();
            // A validation file of other columns is at fault itself: the training file has them.
            let (param, remedy) = match file {
                "validation_file" => (file, "give it the columns of the training file".to_owned()),
                _ => (field, format!("name the right one in `{field}`")),
            };
            let message = format!("`{file}` has no column `{}`; its columns are {}; {remedy}.", shorten(name), columns.join(", "));
            return Err(ApiError::field(param, message));
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
        for (summary, param) in sides(files) {
            check_every_text(summary, &name, param)?;
        }
    }
    Ok(TextSource::Column { name })
}

fn conversation(section: &DataSection, files: &FileSummaries<'_>) -> Result<TextSource, ApiError> {
    let Some(prompt) = &section.prompt_template else {
        for (summary, param) in sides(files) {
            let columns: Vec<&str> = summary.column_names().collect();
            // A filter may leave out the rows that are at fault; the worker names those that it does not.
            if let Some(faults) = summary.conversation_faults.as_ref().filter(|_| section.filter.is_none()) {
                return Err(ApiError::field(param, format!("Rows of `{param}` are no conversations: {faults}")));
            }
            if tunesmith_chat::detect(&columns).is_none() {
                let message = format!(
                    "No conversation can be told from the columns of `{param}` ({}): name them messages, prompt and completion, instruction and output, or conversations; or set `data.prompt_template`.",
                    columns.iter().take(20).copied().collect::<Vec<_>>().join(", ")
                );
                return Err(ApiError::field(if param == "validation_file" { param } else { "data.prompt_template" }, message));
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
    let wrong_labels = |why: &str| Err(ApiError::field("data.labels", format!("`data.labels` {why}.")));
    let labels = match (&section.labels, wants_labels) {
        (Some(_), false) => return wrong_labels("has no effect: `data.prompt_template` has no `{labels}` that it could stand for"),
        (Some(labels), _) if labels.is_empty() => return wrong_labels("lists no label; leave it out to list those of the column"),
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
        for (summary, file) in sides(files) {
            let distinct = summary.column(name).and_then(|c| c.distinct.as_ref());
            if distinct.is_some_and(|d| !d.keys().any(|found| values.iter().any(|v| is_value(&Value::from(found.as_str()), v)))) {
                let param = if file == "validation_file" { file } else { field.as_str() };
                return Err(ApiError::field(param, format!("No row of `{file}` has a value that `{field}` asks for.")));
            }
        }
        filter.insert(name.clone(), values);
    }
    Ok(filter)
}
