//! The rows of a data set as examples for classification. The training worker loads them once its job is claimed; the plan was
//! made when the job was created, so a fault here means that the file is not the one that was planned for.

use std::collections::HashSet;
use std::path::Path;

use serde_json::Value;

use crate::error::{DataError, Problem};
use crate::label::{label_name, spelled_number};
use crate::label_index::LabelIndex;
use crate::limits::Limits;
use crate::plan::{ClassificationColumns, Plan, ProblemType};
use crate::rows::{Row, rows};

/// One row, ready to be tokenised.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Line of the row in its file.
    pub line: u64,
    /// The text.
    pub text: String,
    /// The second text, if the job has a column for it.
    pub text_pair: Option<String>,
    /// What the model should answer.
    pub target: Target,
}

/// What the model should answer for a row.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// The id of its class.
    Class(u32),
    /// The ids of its classes, ascending, each once.
    Classes(Vec<u32>),
    /// A number.
    Value(f32),
}

/// Reads all rows of a file as examples, in the order of the file.
pub fn load(path: &Path, filename: &str, limits: &Limits, cols: &ClassificationColumns, plan: &Plan) -> Result<Vec<Example>, DataError> {
    let index = LabelIndex::new(&plan.labels, plan.labels_by_id);
    let mut examples = Vec::new();
    for row in rows(path, filename, limits)? {
        let row = row?;
        let example = example_of(&row, cols, plan.problem_type, &index);
        examples.push(example.map_err(DataError::problem)?);
    }
    Ok(examples)
}

/// How many evaluation rows have a text (and second text) that is also trained on.
pub fn overlap(train: &[Example], eval: &[Example]) -> usize {
    fn texts(example: &Example) -> (&str, Option<&str>) {
        (&example.text, example.text_pair.as_deref())
    }
    let seen: HashSet<_> = train.iter().map(texts).collect();
    eval.iter().filter(|example| seen.contains(&texts(example))).count()
}

fn example_of(row: &Row, cols: &ClassificationColumns, kind: ProblemType, index: &LabelIndex<'_>) -> Result<Example, Problem> {
    let text = text_of(row, &cols.text)?;
    if text.trim().is_empty() {
        return Err(Problem::of_field(row.line, &cols.text, "is empty", "a text"));
    }
    let pair = cols.text_pair.as_deref().map(|name| text_of(row, name)).transpose()?;
    let label = value_of(row, &cols.label)?;
    let no_label = |value: &Value| {
        let found = format!("is {}, which is none of the job's labels", kind_of(value));
        Problem::of_field(row.line, &cols.label, found, "a label of the training file")
    };
    let id_of = |value: &Value| {
        let id = label_name(value).and_then(|name| index.id(&name));
        id.ok_or_else(|| no_label(value))
    };
    let target = match kind {
        ProblemType::SingleLabel => Target::Class(id_of(label)?),
        ProblemType::MultiLabel => {
            let members = match label {
                Value::Array(members) => members.as_slice(),
                single => std::slice::from_ref(single),
            };
            let mut ids = members.iter().map(id_of).collect::<Result<Vec<u32>, Problem>>()?;
            ids.sort_unstable();
            ids.dedup();
            Target::Classes(ids)
        }
        ProblemType::Regression => Target::Value(number_of(label).ok_or_else(|| {
            let found = format!("is {}", kind_of(label));
            Problem::of_field(row.line, &cols.label, found, "a number")
        })?),
    };
    Ok(Example { line: row.line, text, text_pair: pair, target })
}

fn value_of<'a>(row: &'a Row, name: &str) -> Result<&'a Value, Problem> {
    row.values.get(name).ok_or_else(|| Problem::of_field(row.line, name, "is missing", "the columns that the job names"))
}

fn text_of(row: &Row, name: &str) -> Result<String, Problem> {
    match value_of(row, name)? {
        Value::String(text) => Ok(text.clone()),
        value @ (Value::Number(_) | Value::Bool(_)) => Ok(value.to_string()),
        other => {
            let found = format!("is {}", kind_of(other));
            Err(Problem::of_field(row.line, name, found, "a text"))
        }
    }
}

fn number_of(value: &Value) -> Option<f32> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => spelled_number(text),
        _ => None,
    };
    number.map(|number| number as f32).filter(|number| number.is_finite())
}

fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("\"{}\"", crate::error::shorten(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}
