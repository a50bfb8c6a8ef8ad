//! The questions of `POST /v1/decisions`, read and checked: each becomes a text with the answers that it may have.

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::{Answer, LevelProbability, ValueProbability, best};
use crate::api::error::{ApiError, shorten};
use crate::api::responses::read_part;
use crate::api::text::options::Options;

/// A question.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Question {
    /// How likely is it that a statement is true?
    Predicate {
        /// The statement.
        #[schema(value_type = serde_json::Value)]
        instructions: Value,
        /// Told back in the answer.
        name: Option<String>,
    },
    /// Which of some values fits?
    Choice {
        /// The question.
        #[schema(value_type = serde_json::Value)]
        instructions: Value,
        /// The values.
        #[schema(min_items = 2, max_items = 255)]
        choices: Vec<ChoiceValue>,
        /// Told back in the answer.
        name: Option<String>,
    },
    /// Where on a scale does it stand?
    Score {
        /// The question.
        #[schema(value_type = serde_json::Value)]
        instructions: Value,
        /// The steps of the scale, from the lowest on.
        #[schema(min_items = 2, max_items = 10)]
        levels: Vec<Level>,
        /// Told back in the answer.
        name: Option<String>,
    },
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
        match self {
            Self::Predicate { instructions, .. } => Ok(Asked {
                text: format!("Statement: {}\nIs the statement about the text true?", text(instructions)?),
                answers: vec!["yes".to_owned(), "no".to_owned()],
                descriptions: vec![None, None],
            }),
            Self::Choice { instructions, choices, .. } => {
                count("choices", choices.len(), 255)?;
                let answers: Vec<String> = choices
                    .iter()
                    .enumerate()
                    .map(|(i, c)| spelled(&c.value, &format!("{path}.choices[{i}].value")))
                    .collect::<Result<_, _>>()?;
                let repeated = choices.iter().enumerate().find(|(i, c)| choices[..*i].iter().any(|d| d.value == c.value));
                if let Some((i, c)) = repeated {
                    let path = format!("{path}.choices[{i}].value");
                    return Err(ApiError::field(path.clone(), format!("`{path}`: {} stands there twice.", shorten(&c.value.to_string()))));
                }
                let descriptions = choices.iter().map(|c| c.description.clone()).collect();
                Ok(Asked { text: text(instructions)?, answers, descriptions })
            }
            Self::Score { instructions, levels, .. } => {
                count("levels", levels.len(), 10)?;
                let empty = levels.iter().position(|l| l.label.trim().is_empty());
                if let Some(i) = empty {
                    let path = format!("{path}.levels[{i}].label");
                    return Err(ApiError::field(path.clone(), format!("`{path}` is empty.")));
                }
                let answers = levels.iter().map(|l| l.label.clone()).collect();
                Ok(Asked { text: text(instructions)?, answers, descriptions: levels.iter().map(|l| l.description.clone()).collect() })
            }
        }
    }

    /// Where a classifier's labels are that the question offers.
    pub(super) fn places_of(&self, asked: &Asked, labels: &[String], index: usize) -> Result<Vec<usize>, ApiError> {
        if !matches!(self, Self::Choice { .. }) {
            let path = format!("questions[{index}].type");
            return Err(ApiError::field(path.clone(), format!("`{path}`: a classifier answers questions of type `choice` only.")));
        }
        let place = |(i, answer): (usize, &String)| {
            labels.iter().position(|l| l == answer).ok_or_else(|| {
                let path = format!("questions[{index}].choices[{i}].value");
                let known: Vec<String> = labels.iter().take(20).map(|l| shorten(l)).collect();
                ApiError::field(
                    path.clone(),
                    format!("`{path}`: `{}` is no label of this classifier; its labels: {}.", shorten(answer), known.join(", ")),
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
            Self::Predicate { name, .. } => Answer::Predicate { name, probability: probabilities[0] },
            Self::Choice { choices, name, .. } => Answer::Choice {
                name,
                choice: choices[likeliest].value.clone(),
                confidence,
                probabilities: choices
                    .into_iter()
                    .zip(probabilities)
                    .map(|(c, probability)| ValueProbability { value: c.value, probability })
                    .collect(),
            },
            Self::Score { levels, name, .. } => Answer::Score {
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

/// A value as the model reads it.
fn spelled(value: &Value, path: &str) -> Result<String, ApiError> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Ok(text.clone()),
        Value::Bool(flag) => Ok(flag.to_string()),
        _ => Err(ApiError::field(path, format!("`{path}` must be a text, or true or false."))),
    }
}

/// A text or parts of text and JSON, as one text.
fn parts_text(content: &Value, path: &str) -> Result<String, ApiError> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let one = |(i, part): (usize, &Value)| match part["type"].as_str() {
                Some("input_json") => Ok(part["data"].to_string()),
                _ => read_part(part, &format!("{path}[{i}]")),
            };
            Ok(parts.iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()?.join("\n"))
        }
        _ => Err(ApiError::field(path, format!("`{path}` must be a text or a list of parts."))),
    }
}

fn instructions_text(instructions: &Value, path: &str) -> Result<String, ApiError> {
    let text = parts_text(instructions, path)?;
    match text.trim().is_empty() {
        true => Err(ApiError::field(path, format!("`{path}` is empty; say what is asked."))),
        false => Ok(text),
    }
}

/// What the questions are about, as one text: a lone message of the user's as it is, a conversation with its roles.
pub(super) fn input_text(input: &Value) -> Result<String, ApiError> {
    let items = match input {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(items) if !items.is_empty() => items,
        _ => return Err(ApiError::field("input", "`input` must be a text or a list of at least one item.")),
    };
    let lone = items.len() == 1;
    let mut lines = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let path = format!("input[{i}]");
        let field = |name: &str| {
            let wrong = || ApiError::field(format!("{path}.{name}"), format!("`{path}.{name}` must be a string."));
            item[name].as_str().ok_or_else(wrong)
        };
        lines.push(match item["type"].as_str() {
            None | Some("message") => {
                let role = field("role")?;
                if !matches!(role, "user" | "assistant" | "system" | "developer") {
                    let message = format!("`{path}.role` must be user, assistant, system or developer, not `{}`.", shorten(role));
                    return Err(ApiError::field(format!("{path}.role"), message));
                }
                let text = parts_text(&item["content"], &format!("{path}.content"))?;
                if lone && role == "user" { text } else { format!("{role}: {text}") }
            }
            Some("function_call") => format!("call of {}: {}", field("name")?, field("arguments")?),
            Some("custom_tool_call") => format!("call of {}: {}", field("name")?, field("input")?),
            Some("function_call_output" | "custom_tool_call_output") => {
                format!("result: {}", parts_text(&item["output"], &format!("{path}.output"))?)
            }
            Some(other) => {
                let message = format!("`{path}.type` is `{}`; available: message, function calls and their outputs.", shorten(other));
                return Err(ApiError::field(format!("{path}.type"), message));
            }
        });
    }
    Ok(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn every_shape_of_input_is_a_text() {
        assert_eq!(input_text(&json!("plain")).unwrap(), "plain");
        assert_eq!(
            input_text(
                &json!([{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_json", "data": {"b": 1}}]}])
            )
            .unwrap(),
            "a\n{\"b\":1}"
        );
        let talk = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}]);
        assert_eq!(input_text(&talk).unwrap(), "user: Hi\nassistant: no");
        let error = input_text(&json!([{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}])).unwrap_err();
        assert_eq!(error.param(), Some("input[0].content[0].type"));
    }

    #[test]
    fn a_question_that_cannot_be_asked_is_named() {
        let question = |json: Value| serde_json::from_value::<Question>(json).unwrap().asked("questions[2]").err().unwrap();
        for (wrong, path) in [
            (json!({"type": "choice", "instructions": "?", "choices": [{"value": "a"}]}), "questions[2].choices"),
            (json!({"type": "choice", "instructions": "?", "choices": [{"value": "a"}, {"value": "a"}]}), "questions[2].choices[1].value"),
            (json!({"type": "choice", "instructions": "?", "choices": [{"value": 1}, {"value": "a"}]}), "questions[2].choices[0].value"),
            (json!({"type": "predicate", "instructions": " "}), "questions[2].instructions"),
            (json!({"type": "score", "instructions": "?", "levels": [{"label": "a"}, {"label": ""}]}), "questions[2].levels[1].label"),
        ] {
            assert_eq!(question(wrong).param(), Some(path));
        }
        // A text and a truth value of the same spelling are two choices.
        let both = json!({"type": "choice", "instructions": "?", "choices": [{"value": "true"}, {"value": true}]});
        assert!(serde_json::from_value::<Question>(both).unwrap().asked("q").is_ok());
    }

    #[test]
    fn a_score_is_the_expected_step() {
        let q: Question = serde_json::from_value(
            json!({"type": "score", "instructions": "?", "levels": [{"label": "a"}, {"label": "b"}, {"label": "c"}]}),
        )
        .unwrap();
        let told = serde_json::to_value(q.answer(vec![0.2, 0.5, 0.3])).unwrap();
        assert!((told["score"].as_f64().unwrap() - 1.1).abs() < 1e-12 && told["confidence"] == 0.5, "{told}");
        assert_eq!(told["probabilities"][2], json!({"value": 2, "label": "c", "probability": 0.3}));
    }
}
