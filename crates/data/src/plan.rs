//! Decides from the summaries of the files whether a classification job can run, and how: the kind of its labels, their ids,
//! and what the user should know. The API calls it while it creates a job, so everything that is wrong is an answer to the
//! request and not a failure an hour later. Label ids follow from the training file alone.

use serde::{Deserialize, Serialize};

use crate::error::{counted, line_list, name_list, shorten};
use crate::label_choice::{LabelChoice, choose_labels};
use crate::label_kind::{choose_problem_type, refuse_unusable_labels};
use crate::summary::{ColumnSummary, Summary};

/// Which columns hold what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassificationColumns {
    /// Column of the text.
    pub text: String,
    /// Column of the label or labels.
    pub label: String,
    /// Column of a second text that belongs to the first.
    pub text_pair: Option<String>,
}

impl Default for ClassificationColumns {
    fn default() -> Self {
        Self { text: "text".to_owned(), label: "label".to_owned(), text_pair: None }
    }
}

/// What a label is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProblemType {
    /// One of several classes.
    #[serde(rename = "single_label_classification")]
    SingleLabel,
    /// Any number of several classes.
    #[serde(rename = "multi_label_classification")]
    MultiLabel,
    /// A number.
    #[serde(rename = "regression")]
    Regression,
}

/// How the rows become examples.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What a label is.
    pub problem_type: ProblemType,
    /// Names of the classes in the order of their ids; empty for regression.
    pub labels: Vec<String>,
    /// Whether the rows hold ids (0, 1, 2 …) in place of the names.
    pub labels_by_id: bool,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Why the files do not fit the request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PlanError {
    /// The field of the job request that is at fault, such as `data.label_column` or `validation_file`.
    pub param: String,
    /// What is wrong, where, and what to do.
    pub message: String,
}

impl PlanError {
    pub(crate) fn new(param: &str, message: impl Into<String>) -> Self {
        Self { param: param.to_owned(), message: message.into() }
    }
}

/// One of the two files of a job, with the name under which the request knows it.
#[derive(Clone, Copy)]
pub(crate) struct Side<'a> {
    pub summary: &'a Summary,
    pub param: &'static str,
    /// "training file" or "validation file".
    pub words: &'static str,
}

/// Plans a classification job. `labels` fixes names and ids, `problem_type` the kind; both are found from the training file
/// otherwise.
pub fn plan(
    train: &Summary,
    eval: Option<&Summary>,
    cols: &ClassificationColumns,
    labels: Option<&[String]>,
    problem_type: Option<ProblemType>,
) -> Result<Plan, PlanError> {
    refuse_same_columns(cols)?;
    let train = Side { summary: train, param: "training_file", words: "training file" };
    let eval = eval.map(|summary| Side { summary, param: "validation_file", words: "validation file" });
    let mut warnings = Vec::new();
    let train_labels = check_columns(train, cols, true, &mut warnings)?;
    let eval_labels = match eval {
        Some(side) => Some((side, check_columns(side, cols, false, &mut warnings)?)),
        None => None,
    };
    let kind = choose_problem_type(train, train_labels, labels.is_some(), problem_type)?;
    let LabelChoice { labels, by_id } = choose_labels(train, train_labels, eval_labels, labels, kind, &mut warnings)?;
    Ok(Plan { problem_type: kind, labels, labels_by_id: by_id, warnings })
}

fn refuse_same_columns(cols: &ClassificationColumns) -> Result<(), PlanError> {
    let twice =
        |param, name: &str| Err(PlanError::new(param, format!("column \"{}\" cannot have two roles; name another column", shorten(name))));
    if cols.text == cols.label {
        return twice("data.label_column", &cols.label);
    }
    match &cols.text_pair {
        Some(pair) if *pair == cols.text || *pair == cols.label => twice("data.text_pair_column", pair),
        _ => Ok(()),
    }
}

/// Checks that the columns exist and hold texts and labels; answers the label column.
fn check_columns<'a>(
    side: Side<'a>,
    cols: &ClassificationColumns,
    is_train: bool,
    warnings: &mut Vec<String>,
) -> Result<&'a ColumnSummary, PlanError> {
    let find = |name: &str, field: &'static str| {
        side.summary.column(name).ok_or_else(|| {
            let param = if is_train { field } else { side.param };
            // A validation file of other columns is at fault itself: the training file has them.
            let remedy = match is_train {
                true => format!("name the right one in {field}"),
                false => "give it the columns of the training file".to_owned(),
            };
            PlanError::new(param, missing_column(side, name, &remedy))
        })
    };
    let text = find(&cols.text, "data.text_column")?;
    let pair = cols.text_pair.as_ref().map(|pair| find(pair, "data.text_pair_column")).transpose()?;
    let label = find(&cols.label, "data.label_column")?;
    let mut checks = vec![check_texts(side, text, false, warnings)];
    checks.extend(pair.map(|pair| check_texts(side, pair, true, warnings)));
    checks.push(refuse_unusable_labels(side, label));
    // All columns' faults at once: who mends a file wants to mend it once.
    let faults: Vec<String> = checks.into_iter().filter_map(|check| check.err()).map(|fault| fault.message).collect();
    if !faults.is_empty() {
        return Err(PlanError::new(side.param, faults.join("; ")));
    }
    let summary = side.summary;
    if summary.duplicates > 0 {
        let at_least = if summary.duplicates_capped { "at least " } else { "" };
        warnings.push(format!("the {} holds {at_least}{} equal to an earlier one", side.words, counted(summary.duplicates, "row")));
    }
    Ok(label)
}

fn missing_column(side: Side<'_>, name: &str, remedy: &str) -> String {
    format!("the {} has no column \"{}\"; its columns are {}; {remedy}", side.words, shorten(name), name_list(side.summary.column_names()),)
}

fn check_texts(side: Side<'_>, column: &ColumnSummary, may_be_empty: bool, warnings: &mut Vec<String>) -> Result<(), PlanError> {
    let name = shorten(&column.name);
    let mut faults = Vec::new();
    if column.lists > 0 {
        let lines = line_list(&column.list_lines, column.lists);
        faults.push(format!("holds lists in place of texts in {lines}; write one text a row"));
    }
    if column.objects > 0 {
        let lines = line_list(&column.object_lines, column.objects);
        faults.push(format!("holds objects in place of texts in {lines}; write one text a row"));
    }
    if column.nulls > 0 {
        let lines = line_list(&column.null_lines, column.nulls);
        faults.push(format!("has no text (null) in {}: {lines}; remove or fill such rows", counted(column.nulls, "row")));
    }
    if column.empty > 0 {
        let lines = line_list(&column.empty_lines, column.empty);
        match may_be_empty {
            true => warnings.push(format!("column \"{name}\" of the {} is empty in {lines}", side.words)),
            false => faults.push(format!("has an empty text in {}: {lines}; remove or fill such rows", counted(column.empty, "row"))),
        }
    }
    if !faults.is_empty() {
        return Err(PlanError::new(side.param, format!("column \"{name}\" of the {} {}", side.words, faults.join(", and "))));
    }
    let words = column.missing - column.empty.min(column.missing);
    if words > 0 {
        // With empty cells allowed, their lines are mixed into this list; the count is of the words alone.
        let lines = line_list(&column.missing_lines, column.missing);
        warnings.push(format!(
            "column \"{name}\" of the {} says NaN, null, NA or None in {} ({lines}), which is taken as text",
            side.words,
            counted(words, "row")
        ));
    }
    let others = column.integers + column.floats + column.booleans;
    if others > 0 {
        warnings.push(format!("column \"{name}\" of the {} holds {others} numbers or booleans, which are taken as text", side.words));
    }
    Ok(())
}
