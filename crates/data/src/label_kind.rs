//! What labels may be: which are refused, and whether they are classes, sets of classes or numbers. `plan` applies these rules
//! to the label column of each file. When in doubt a label is refused with its line, since a label that is read wrongly trains
//! a wrong model without an error.

use crate::error::{line_list, shorten};
use crate::label::{is_null_word, spelled_number};
use crate::plan::{PlanError, ProblemType, Side};
use crate::summary::ColumnSummary;

/// Refuses labels that are nothing: null, empty, the words for a missing cell, objects.
pub(crate) fn refuse_unusable_labels(side: Side<'_>, column: &ColumnSummary) -> Result<(), PlanError> {
    let name = shorten(&column.name);
    let mut found = Vec::new();
    if column.nulls > 0 {
        found.push(format!("null in {}", line_list(&column.null_lines, column.nulls)));
    }
    if column.empty > 0 {
        found.push(format!("empty in {}", line_list(&column.empty_lines, column.empty)));
    }
    if side.summary.format.is_delimited() {
        for (word, entry) in column.distinct.iter().flatten().filter(|(word, _)| is_null_word(word)) {
            let rest = entry.count - 1;
            let more = if rest > 0 { format!(" and {rest} more") } else { String::new() };
            found.push(format!("\"{word}\" in line {}{more}", entry.first_line));
        }
    }
    if !found.is_empty() {
        let message = format!(
            "column \"{name}\" of the {} has rows without a label ({}); remove these rows or label them",
            side.words,
            found.join(", ")
        );
        return Err(PlanError::new(side.param, message));
    }
    if column.objects > 0 {
        let lines = line_list(&column.object_lines, column.objects);
        let message = format!(
            "column \"{name}\" of the {} holds objects in {lines}; a label is a string, an integer, a boolean, a number or a list",
            side.words
        );
        return Err(PlanError::new(side.param, message));
    }
    Ok(())
}

/// What the labels are: as requested if the data allow it, else as the data say.
pub(crate) fn choose_problem_type(
    side: Side<'_>,
    column: &ColumnSummary,
    labels_given: bool,
    requested: Option<ProblemType>,
) -> Result<ProblemType, PlanError> {
    let name = shorten(&column.name);
    let lists = || line_list(&column.list_lines, column.lists);
    let refuse = |param: &str, message: String| Err(PlanError::new(param, message));
    match requested {
        Some(ProblemType::Regression) => {
            if labels_given {
                return refuse(
                    "data.labels",
                    "labels are names of classes, which regression has not; leave one of data.labels and data.problem_type out".to_owned(),
                );
            }
            refuse_what_is_no_number(side, column)?;
            Ok(ProblemType::Regression)
        }
        Some(ProblemType::SingleLabel) if column.lists > 0 => refuse(
            "data.problem_type",
            format!(
                "column \"{name}\" holds lists in {}, so these rows have several labels; ask for multi_label_classification or write one label a row",
                lists()
            ),
        ),
        Some(kind) => {
            refuse_fractions_as_classes(side, column, labels_given)?;
            Ok(kind)
        }
        None if column.lists > 0 && column.lists < side.summary.rows => refuse(
            side.param,
            format!(
                "column \"{name}\" holds lists in {} and single labels elsewhere; write all labels as lists, or ask for multi_label_classification",
                lists()
            ),
        ),
        None if column.lists > 0 => {
            refuse_fractions_as_classes(side, column, labels_given)?;
            Ok(ProblemType::MultiLabel)
        }
        None if labels_given => Ok(ProblemType::SingleLabel),
        None if holds_fractions(side, column) => {
            if column.booleans > 0 || column.strings > column.numeric_strings {
                return refuse(
                    side.param,
                    format!(
                        "column \"{name}\" of the {} mixes numbers with fractions and other labels; write all labels as strings to train classes, or all as numbers to train regression",
                        side.words
                    ),
                );
            }
            Ok(ProblemType::Regression)
        }
        None => Ok(ProblemType::SingleLabel),
    }
}

/// Whether the numbers of the column have fractions. In CSV that is only so if all cells are numbers: among other texts, 2.5 is
/// a name.
fn holds_fractions(side: Side<'_>, column: &ColumnSummary) -> bool {
    let all_numbers = column.numeric_strings == column.strings;
    column.fractional && (all_numbers || !side.summary.format.is_delimited())
}

pub(crate) fn refuse_what_is_no_number(side: Side<'_>, column: &ColumnSummary) -> Result<(), PlanError> {
    let name = shorten(&column.name);
    let refuse = |what: String| {
        let message = format!("column \"{name}\" of the {} {what}, but regression needs a number in every row", side.words);
        Err(PlanError::new(side.param, message))
    };
    if column.lists > 0 {
        return refuse(format!("holds lists in {}", line_list(&column.list_lines, column.lists)));
    }
    let words = column.strings - column.numeric_strings;
    if words + column.booleans > 0 {
        let word = column.distinct.iter().flatten().find(|(word, _)| spelled_number(word).is_none());
        return refuse(match word {
            Some((word, entry)) => {
                format!("holds \"{}\" in line {}", shorten(word), entry.first_line)
            }
            None => format!("holds {} values that are no numbers", words + column.booleans),
        });
    }
    Ok(())
}

/// JSON numbers such as 2.5 as classes would need a spelling that survives every writer. Strings have one.
fn refuse_fractions_as_classes(side: Side<'_>, column: &ColumnSummary, labels_given: bool) -> Result<(), PlanError> {
    if !column.fractional || labels_given || side.summary.format.is_delimited() {
        return Ok(());
    }
    let numbers = column.distinct.iter().flatten();
    let first = numbers
        .filter(|(name, _)| spelled_number(name).is_some_and(|number| number.fract() != 0.0))
        .min_by_key(|(_, entry)| entry.first_line);
    let place = first.map_or_else(String::new, |(name, entry)| format!(", such as {name} in line {}", entry.first_line));
    let message = format!(
        "column \"{}\" of the {} holds numbers with fractions{place}, which are no class names; leave problem_type out or ask for regression, or write the labels as strings",
        shorten(&column.name),
        side.words
    );
    Err(PlanError::new("data.problem_type", message))
}
