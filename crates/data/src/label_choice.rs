//! Which id each class has: from the labels of the training file, or from those that the request lists. `plan` asks here once
//! it is settled what the labels are; both files' labels are checked against the choice.

use std::collections::{BTreeMap, HashSet};

use crate::error::{counted, line_list, name_list, shorten};
use crate::label::{sort_labels, spelled_number_name};
use crate::label_index::LabelIndex;
use crate::label_kind::refuse_what_is_no_number;
use crate::plan::{PlanError, ProblemType, Side};
use crate::summary::{ColumnSummary, Distinct};

/// Names of the classes in the order of their ids.
pub(crate) struct LabelChoice {
    pub labels: Vec<String>,
    pub by_id: bool,
}

/// Chooses names and ids, checks that both files' labels have one, and adds what the user should know.
pub(crate) fn choose_labels(
    train: Side<'_>,
    column: &ColumnSummary,
    eval: Option<(Side<'_>, &ColumnSummary)>,
    given: Option<&[String]>,
    kind: ProblemType,
    warnings: &mut Vec<String>,
) -> Result<LabelChoice, PlanError> {
    if kind == ProblemType::Regression {
        if let Some((side, column)) = eval {
            refuse_what_is_no_number(side, column)?;
        }
        return Ok(LabelChoice { labels: Vec::new(), by_id: false });
    }
    let distinct = distinct_of(train, column)?;
    if kind == ProblemType::SingleLabel && distinct.len() < 2 {
        let only = distinct.keys().next().map(String::as_str).unwrap_or_default();
        let message =
            format!("all rows of the {} have the label \"{}\"; a classifier needs at least two classes", train.words, shorten(only));
        return Err(PlanError::new(train.param, message));
    }
    let choice = match given {
        Some(given) => given_labels(given, distinct, warnings)?,
        None => found_labels(train, column, distinct),
    };
    if choice.labels.is_empty() {
        let message = format!("no row of the {} has a label", train.words);
        return Err(PlanError::new(train.param, message));
    }
    if kind == ProblemType::SingleLabel && choice.labels.len() < 2 {
        let message = format!("the labels of the {} are one and the same number; a classifier needs at least two classes", train.words);
        return Err(PlanError::new(train.param, message));
    }
    warn_of_spellings(train, distinct, warnings);
    if let Some((side, column)) = eval {
        check_eval_labels(side, column, &choice, kind, given.is_some())?;
    }
    Ok(choice)
}

fn distinct_of<'a>(side: Side<'_>, column: &'a ColumnSummary) -> Result<&'a BTreeMap<String, Distinct>, PlanError> {
    column.distinct.as_ref().ok_or_else(|| {
        let message = format!(
            "column \"{}\" of the {} has more than 1,000 different labels, or labels that are long texts or nested lists; is it the label column?",
            shorten(&column.name),
            side.words
        );
        let param = if side.param == "training_file" { "data.label_column" } else { side.param };
        PlanError::new(param, message)
    })
}

/// The labels of the data, sorted. Cells that are all integers, some written as 1.0, are these integers.
fn found_labels(side: Side<'_>, column: &ColumnSummary, distinct: &BTreeMap<String, Distinct>) -> LabelChoice {
    let integers = side.summary.format.is_delimited() && !column.fractional && column.numeric_strings == column.strings;
    let name = |label: &String| match spelled_number_name(label) {
        Some(number) if integers => number,
        _ => label.clone(),
    };
    let names: HashSet<String> = distinct.keys().map(name).collect();
    let mut labels: Vec<String> = names.into_iter().collect();
    sort_labels(&mut labels);
    LabelChoice { labels, by_id: false }
}

fn given_labels(given: &[String], distinct: &BTreeMap<String, Distinct>, warnings: &mut Vec<String>) -> Result<LabelChoice, PlanError> {
    let refuse = |message: String| Err(PlanError::new("data.labels", message));
    let labels: Vec<String> = given.iter().map(|label| label.trim().to_owned()).collect();
    let mut seen = HashSet::new();
    for label in &labels {
        if label.is_empty() {
            return refuse("a label is empty; give every class a name".to_owned());
        }
        if !seen.insert(label) {
            return refuse(format!("label \"{}\" stands twice; name each class once", shorten(label)));
        }
    }
    let by_name = LabelIndex::new(&labels, false);
    let mut unknown: Vec<&String> = distinct.keys().filter(|name| by_name.id(name).is_none()).collect();
    let by_id = LabelIndex::new(&labels, true);
    if !unknown.is_empty() && unknown.len() == distinct.len() && unknown.iter().all(|name| by_id.id(name).is_some()) {
        warnings.push(format!(
            "the label column holds numbers, which are taken as ids: 0 is \"{}\"",
            labels.first().map_or("", String::as_str)
        ));
        return Ok(LabelChoice { labels, by_id: true });
    }
    if !unknown.is_empty() {
        unknown.sort_by_key(|name| distinct[*name].first_line);
        let line = distinct[unknown[0]].first_line;
        return refuse(format!(
            "the training file has labels that the request does not list, the first in line {line}: {}; add them or remove their rows",
            name_list(unknown.into_iter().map(String::as_str))
        ));
    }
    let used: HashSet<u32> = distinct.keys().filter_map(|name| by_name.id(name)).collect();
    let unused: Vec<&str> = labels.iter().zip(0..).filter(|(_, id)| !used.contains(id)).map(|(label, _)| label.as_str()).collect();
    if !unused.is_empty() {
        let names = name_list(unused);
        warnings.push(format!("labels without a row in the training file: {names}"));
    }
    Ok(LabelChoice { labels, by_id: false })
}

fn warn_of_spellings(side: Side<'_>, distinct: &BTreeMap<String, Distinct>, warnings: &mut Vec<String>) {
    let spaced: Vec<&str> = distinct
        .iter()
        .filter(|(name, entry)| entry.spellings.iter().any(|spelling| spelling.trim() != spelling && spelling.trim() == **name))
        .map(|(name, _)| name.as_str())
        .collect();
    if !spaced.is_empty() {
        warnings.push(format!("labels with space around them were taken as the same label without it: {}", name_list(spaced)));
    }
    let mut by_case: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for name in distinct.keys() {
        by_case.entry(name.to_lowercase()).or_default().push(name);
    }
    for names in by_case.into_values().filter(|names| names.len() > 1) {
        let names = name_list(names);
        warnings.push(format!("labels that differ only by case are different classes: {names}"));
    }
    if side.summary.format.is_delimited() {
        for (name, entry) in distinct.iter().filter(|(name, _)| matches!(name.as_str(), "NA" | "None")) {
            warnings.push(format!(
                "\"{name}\" is taken as the name of a class ({}, the first in line {})",
                counted(entry.count, "row"),
                entry.first_line
            ));
        }
    }
}

fn check_eval_labels(
    side: Side<'_>,
    column: &ColumnSummary,
    choice: &LabelChoice,
    kind: ProblemType,
    labels_given: bool,
) -> Result<(), PlanError> {
    if kind == ProblemType::SingleLabel && column.lists > 0 {
        let lines = line_list(&column.list_lines, column.lists);
        let message = format!(
            "column \"{}\" of the {} holds lists in {lines}, but the training file has one label a row",
            shorten(&column.name),
            side.words
        );
        return Err(PlanError::new(side.param, message));
    }
    let distinct = distinct_of(side, column)?;
    let index = LabelIndex::new(&choice.labels, choice.by_id);
    let mut unknown: Vec<(&str, &Distinct)> =
        distinct.iter().filter(|(name, _)| index.id(name).is_none()).map(|(name, entry)| (name.as_str(), entry)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    unknown.sort_by_key(|(_, entry)| entry.first_line);
    let rows: u64 = unknown.iter().map(|(_, entry)| entry.count).sum();
    let source = if labels_given { "data.labels does not list" } else { "the training file lacks" };
    let message = format!(
        "the {} has labels that {source}, in {}, the first in line {}: {}; remove these rows or add the labels",
        side.words,
        counted(rows, "row"),
        unknown[0].1.first_line,
        name_list(unknown.iter().map(|(name, _)| *name))
    );
    Err(PlanError::new(side.param, message))
}
