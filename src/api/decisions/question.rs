//! The questions of `POST /v1/decisions`, read and checked: each becomes a text with the answers that it may have.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::input::{parts_text, wrong};
use super::{Answer, LevelProbability, ValueProbability, best};
use crate::api::error::{ApiError, shorten};
use crate::api::extract::parse_value;
use crate::api::text::options::Options;

/// A question.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Question {
    /// How likely is it that a statement is true?
    Predicate(Predicate),
    /// Which of some values fits?
    Choice(Choice),
    /// Where on a scale does it stand?
    Score(Score),
}

// The kinds have their descriptions with them: beside a description at the field, utoipa would make an object of the inlined word.

/// Of a statement.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PredicateQuestion)]
pub(super) struct Predicate {
    #[serde(rename = "type")]
    #[schema(inline)]
    _kind: PredicateKind,
    /// The statement.
    #[schema(value_type = serde_json::Value)]
    instructions: Value,
    /// Told back in the answer.
    name: Option<String>,
}

/// Of a choice.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ChoiceQuestion)]
pub(super) struct Choice {
    #[serde(rename = "type")]
    #[schema(inline)]
    _kind: ChoiceKind,
    /// The question.
    #[schema(value_type = serde_json::Value)]
    instructions: Value,
    /// The values.
    #[schema(min_items = 2, max_items = 255)]
    choices: Vec<ChoiceValue>,
    /// Told back in the answer.
    name: Option<String>,
}

/// Of a scale.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ScoreQuestion)]
pub(super) struct Score {
    #[serde(rename = "type")]
    #[schema(inline)]
    _kind: ScoreKind,
    /// The question.
    #[schema(value_type = serde_json::Value)]
    instructions: Value,
    /// The steps of the scale, from the lowest on.
    #[schema(min_items = 2, max_items = 10)]
    levels: Vec<Level>,
    /// Told back in the answer.
    name: Option<String>,
}

/// Always `predicate`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum PredicateKind {
    Predicate,
}

/// Always `choice`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ChoiceKind {
    Choice,
}

/// Always `score`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ScoreKind {
    Score,
}

/// A value that may be chosen.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ChoiceValue {
    /// A text, or true or false.
    #[schema(value_type = serde_json::Value)]
    value: Value,
    /// What it means.
    description: Option<String>,
}

/// A step of a scale.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Level {
    /// Its name.
    label: String,
    /// What it means.
    description: Option<String>,
}

/// A question as text with the answers that it may have.
pub(super) struct Asked {
    text: String,
    answers: Vec<String>,
    /// What the answers mean, where that is told.
    descriptions: Vec<Option<String>>,
}

impl Asked {
    /// What a language model is asked.
    pub(super) fn options(&self) -> Options {
        let mut ask = self.text.clone();
        for (answer, description) in self.answers.iter().zip(&self.descriptions) {
            if let Some(description) = description {
                ask.push_str(&format!("\n- {answer}: {description}"));
            }
        }
        ask.push_str("\nAnswer:");
        Options { instruction: String::new(), examples: Vec::new(), ask, answers: self.answers.clone() }
    }
}

impl Question {
    /// Reads a question, so that what is wrong is named by its whole path: serde forgets where it is below a type by its name.
    pub(super) fn read(question: Value, path: &str) -> Result<Self, ApiError> {
        let wanted = "predicate, choice or score";
        if !question.is_object() {
            return Err(wrong(path, &question, &format!("an object with a `type` ({wanted}) and `instructions`")));
        }
        let (kind, at) = (question["type"].clone(), format!("{path}.type"));
        match kind.as_str() {
            Some("predicate") => parse_value(question, path).map(Self::Predicate),
            Some("choice") => parse_value(question, path).map(Self::Choice),
            Some("score") => parse_value(question, path).map(Self::Score),
            _ if kind.is_null() => Err(ApiError::field(at.clone(), format!("`{at}` is missing; it must be {wanted}."))),
            _ => Err(wrong(&at, &kind, wanted)),
        }
    }

    /// The question as text, with everything checked.
    pub(super) fn asked(&self, path: &str) -> Result<Asked, ApiError> {
        let text = |instructions: &Value| instructions_text(instructions, &format!("{path}.instructions"));
        let count = |name: &str, n: usize, most: usize| match (2..=most).contains(&n) {
            true => Ok(()),
            false => {
                let path = format!("{path}.{name}");
                Err(ApiError::field(path.clone(), format!("`{path}` has {n} items; it takes 2 to {most}.")))
            }
        };
        let twice = |(first, second): (usize, usize), list: &str, field: &str, value: String| {
            let (first, second) = (format!("{path}.{list}[{first}].{field}"), format!("{path}.{list}[{second}].{field}"));
            ApiError::field(second.clone(), format!("`{second}` is `{}`, as `{first}` is; give each once.", shorten(&value)))
        };
        match self {
            Self::Predicate(q) => Ok(Asked {
                text: format!("Statement: {}\nIs the statement about the text true?", text(&q.instructions)?),
                answers: vec!["yes".to_owned(), "no".to_owned()],
                descriptions: vec![None, None],
            }),
            Self::Choice(q) => {
                count("choices", q.choices.len(), 255)?;
                let spelled = |(i, c): (usize, &ChoiceValue)| spelled(&c.value, &format!("{path}.choices[{i}].value"));
                let answers: Vec<String> = q.choices.iter().enumerate().map(spelled).collect::<Result<_, _>>()?;
                // As the model reads them: true and the text `true` are one answer to it.
                if let Some(places) = repeated(&answers, |a, b| a == b) {
                    return Err(twice(places, "choices", "value", answers[places.1].clone()));
                }
                let descriptions = q.choices.iter().map(|c| c.description.clone()).collect();
                Ok(Asked { text: text(&q.instructions)?, answers, descriptions })
            }
            Self::Score(q) => {
                count("levels", q.levels.len(), 10)?;
                if let Some(i) = q.levels.iter().position(|l| l.label.trim().is_empty()) {
                    let path = format!("{path}.levels[{i}].label");
                    return Err(ApiError::field(path.clone(), format!("`{path}` is empty; name the step.")));
                }
                if let Some(places) = repeated(&q.levels, |a, b| a.label == b.label) {
                    return Err(twice(places, "levels", "label", q.levels[places.1].label.clone()));
                }
                let answers = q.levels.iter().map(|l| l.label.clone()).collect();
                let descriptions = q.levels.iter().map(|l| l.description.clone()).collect();
                Ok(Asked { text: text(&q.instructions)?, answers, descriptions })
            }
        }
    }

    /// Where a classifier's labels are that the question offers.
    pub(super) fn places_of(&self, asked: &Asked, labels: &[String], index: usize) -> Result<Vec<usize>, ApiError> {
        let kind = match self {
            Self::Choice(_) => None,
            Self::Predicate(_) => Some("predicate"),
            Self::Score(_) => Some("score"),
        };
        if let Some(kind) = kind {
            let path = format!("questions[{index}].type");
            let message = format!("`{path}` is `{kind}`; a classifier answers questions of type `choice` between its labels only.");
            return Err(ApiError::field(path, message));
        }
        let place = |(i, answer): (usize, &String)| {
            labels.iter().position(|l| l == answer).ok_or_else(|| {
                let path = format!("questions[{index}].choices[{i}].value");
                let known: Vec<String> = labels.iter().take(20).map(|l| shorten(l)).collect();
                ApiError::field(
                    path.clone(),
                    format!("`{path}` is `{}`, which is no label of this classifier; its labels: {}.", shorten(answer), known.join(", ")),
                )
            })
        };
        asked.answers.iter().enumerate().map(place).collect()
    }

    /// The answer object.
    pub(super) fn answer(self, probabilities: Vec<f64>) -> Answer {
        let likeliest = best(&probabilities);
        let confidence = probabilities[likeliest];
        match self {
            Self::Predicate(Predicate { name, .. }) => Answer::Predicate { name, probability: probabilities[0] },
            Self::Choice(Choice { choices, name, .. }) => Answer::Choice {
                name,
                choice: choices[likeliest].value.clone(),
                confidence,
                probabilities: choices
                    .into_iter()
                    .zip(probabilities)
                    .map(|(c, probability)| ValueProbability { value: c.value, probability })
                    .collect(),
            },
            Self::Score(Score { levels, name, .. }) => Answer::Score {
                name,
                score: probabilities.iter().enumerate().map(|(i, p)| i as f64 * p).sum(),
                confidence,
                probabilities: levels
                    .into_iter()
                    .zip(probabilities)
                    .enumerate()
                    .map(|(value, (l, probability))| LevelProbability { value, label: l.label, probability })
                    .collect(),
            },
        }
    }
}

/// The first two that are the same.
fn repeated<T>(items: &[T], same: impl Fn(&T, &T) -> bool) -> Option<(usize, usize)> {
    items.iter().enumerate().find_map(|(i, item)| items[..i].iter().position(|other| same(other, item)).map(|first| (first, i)))
}

/// A value as the model reads it.
fn spelled(value: &Value, path: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Ok(text.clone()),
        Value::Bool(flag) => Ok(flag.to_string()),
        _ => Err(wrong(path, value, "a text that is not empty, or true or false")),
    }
}

fn instructions_text(instructions: &Value, path: &str) -> Result<String, ApiError> {
    let text = parts_text(instructions, path)?;
    match text.trim().is_empty() {
        true => Err(ApiError::field(path, format!("`{path}` is empty; say what is asked."))),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn a_question_that_cannot_be_asked_is_named() {
        let question = |json: Value| {
            let read = Question::read(json, "questions[2]");
            read.and_then(|q| q.asked("questions[2]").map(|_| ())).err().unwrap()
        };
        for (wrong, path) in [
            (json!({"type": "choice", "instructions": "?", "choices": [{"value": "a"}]}), "questions[2].choices"),
            (json!({"type": "choice", "instructions": "?", "choices": [{"value": "a"}, {"value": "a"}]}), "questions[2].choices[1].value"),
            (json!({"type": "choice", "instructions": "?", "choices": [{"value": 1}, {"value": "a"}]}), "questions[2].choices[0].value"),
            (
                json!({"type": "choice", "instructions": "?", "choices": [{"value": true}, {"value": "true"}]}),
                "questions[2].choices[1].value",
            ),
            (json!({"type": "score", "instructions": "?", "levels": [{"label": "a", "x": 1}, {"label": "b"}]}), "questions[2].levels[0].x"),
            (json!({"type": "predicate", "instructions": " "}), "questions[2].instructions"),
            (json!({"type": "score", "instructions": "?", "levels": [{"label": "a"}, {"label": ""}]}), "questions[2].levels[1].label"),
            (json!({"type": "score", "instructions": "?", "levels": [{"label": "a"}, {"label": "a"}]}), "questions[2].levels[1].label"),
            (json!({"type": "score", "instructions": "?", "levels": [{"label": "a"}, {"label": 7}]}), "questions[2].levels[1].label"),
            (json!({"type": "choice", "instructions": "?", "choices": [{"value": "a"}, {"text": "b"}]}), "questions[2].choices[1].text"),
            (json!({"type": "choice", "instructions": "?", "choices": [{"value": "a"}, {}]}), "questions[2].choices[1].value"),
            (json!({"type": "choice", "instructions": "?", "choices": ["a", "b"]}), "questions[2].choices[0]"),
            (json!({"type": "choice", "instructions": "?"}), "questions[2].choices"),
            (json!({"type": "predicate", "instructions": [{"type": "input_text"}]}), "questions[2].instructions[0].text"),
            (json!({"type": "predicate", "instructions": "?", "colour": 1}), "questions[2].colour"),
            (json!({"type": "predicate", "instructions": "?", "name": 1}), "questions[2].name"),
            (json!({"type": "rank", "instructions": "?"}), "questions[2].type"),
            (json!({"instructions": "?"}), "questions[2].type"),
            (json!("?"), "questions[2]"),
        ] {
            let error = question(wrong);
            assert_eq!(error.param(), Some(path), "{error}");
            assert!(error.to_string().contains(path), "{error}");
        }
    }

    #[test]
    fn a_score_is_the_expected_step() {
        let levels = json!([{"label": "a"}, {"label": "b"}, {"label": "c"}]);
        let q = Question::read(json!({"type": "score", "instructions": "?", "levels": levels}), "q").unwrap();
        let told = serde_json::to_value(q.answer(vec![0.2, 0.5, 0.3])).unwrap();
        assert!((told["score"].as_f64().unwrap() - 1.1).abs() < 1e-12 && told["confidence"] == 0.5, "{told}");
        assert_eq!(told["probabilities"][2], json!({"value": 2, "label": "c", "probability": 0.3}));
    }
}
