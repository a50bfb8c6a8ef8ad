//! The rows of a language model's job as texts: read, filtered, rendered by the model's own template, and divided.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use tunesmith_chat::{ChatTemplate, Conversation, Message, Role, detect, fill_template, left_out_call, parse_row};
use tunesmith_data::{DataError, Row, is_value, rows};
use tunesmith_ml::error::MlError;
use tunesmith_ml::models::Stream;
use tunesmith_ml::models::source::Weights;
use tunesmith_ml::spec::{JobSpec, LanguageData, TextSource};
use tunesmith_ml::text::LanguageTokenizer;
use tunesmith_ml::train::{JobRows, TextRow};

use super::data::{LocalFile, Rows};
use super::failure::Failure;
use crate::config::Config;
use crate::serve::template_of;

/// Reads the rows; without a validation file a share of the training rows, drawn by the seed, is held out.
///
/// # Errors
/// If a file does not hold what its summary said, or the model has no template for conversations.
pub fn read_texts(config: &Config, spec: &JobSpec, base: &Path, train: &LocalFile, eval: Option<&LocalFile>) -> Result<Rows, Failure> {
    let Some(language) = &spec.data.language else {
        return Err(Failure::Panic("a language model's job says nothing of its texts".to_owned()));
    };
    let reader = Reader { config, language, template: template(language, base)?, whole: spec.training.assistant_only_loss == Some(false) };
    let mut all = reader.read(train)?;
    let mut sha256 = train.sha256().to_owned();
    let (train, eval) = match eval {
        Some(eval) => {
            sha256.push_str(&format!(" eval {}", eval.sha256()));
            (all, reader.read(eval)?)
        }
        None => {
            sha256.push_str(&format!(" split {} seed {}", spec.data.validation_split, spec.seed));
            let held_out = hold_out(&mut all, spec.data.validation_split, spec.seed);
            (all, held_out)
        }
    };
    Ok(Rows { rows: JobRows::Texts { train, eval }, warnings: Vec::new(), sha256 })
}

/// The template of the base, for what is a conversation.
fn template(language: &LanguageData, base: &Path) -> Result<Option<ChatTemplate>, Failure> {
    if matches!(language.source, TextSource::Column { .. }) {
        return Ok(None);
    }
    let weights = Weights::open(base)?;
    let config = tunesmith_ml::models::decoder::DecoderConfig::from_map(weights.config()?)?;
    let tokenizer = LanguageTokenizer::read(&weights, base, config.vocab_size)?;
    match template_of(&tokenizer)? {
        Some(template) => Ok(Some(template)),
        None => {
            let message = "the model has no chat template, so conversations cannot be spelled for it; choose an instruction-tuned model, or the task causal_lm";
            Err(MlError::setting("model", message).into())
        }
    }
}

struct Reader<'a> {
    config: &'a Config,
    language: &'a LanguageData,
    template: Option<ChatTemplate>,
    /// Learn everything, not only what the assistant says.
    whole: bool,
}

impl Reader<'_> {
    fn read(&self, file: &LocalFile) -> Result<Vec<TextRow>, Failure> {
        let mut texts = Vec::new();
        for row in rows(file.path(), file.name(), &self.config.data_limits()).map_err(|e| file.fault(e))? {
            let row = row.map_err(|e| file.fault(e))?;
            if self.is_used(&row) {
                texts.push(self.text(&row, file)?);
            }
        }
        match texts.is_empty() {
            // A file without rows is refused when it is uploaded.
            true => Err(MlError::setting(file.param(), "no row of the file has the values that `data.filter` asks for").into()),
            false => Ok(texts),
        }
    }

    fn is_used(&self, row: &Row) -> bool {
        let matches =
            |name: &String, wanted: &Vec<Value>| row.values.get(name).is_some_and(|found| wanted.iter().any(|w| is_value(found, w)));
        self.language.filter.iter().all(|(name, wanted)| matches(name, wanted))
    }

    fn text(&self, row: &Row, file: &LocalFile) -> Result<TextRow, Failure> {
        match &self.language.source {
            TextSource::Column { name } => match row.values.get(name).and_then(Value::as_str) {
                Some(text) if !text.is_empty() => {
                    Ok(TextRow { line: row.line, text: text.to_owned(), learned: None, rendered: false, append_end: true })
                }
                _ => Err(file.fault(DataError::of_field(row.line, name, "is not a text", "a text"))),
            },
            TextSource::Conversation => {
                let columns: Vec<&str> = row.values.keys().map(String::as_str).collect();
                let wrong = |path: &str, found: String, expected: String| file.fault(DataError::of_field(row.line, path, found, expected));
                let format = detect(&columns)
                    .ok_or_else(|| wrong("", format!("has the columns {}", columns.join(", ")), "the columns of a conversation".into()))?;
                let conversation = parse_row(format, &row.values).map_err(|e| wrong(&e.path, format!("is {}", e.found), e.expected))?;
                self.conversation(row.line, &conversation, file)
            }
            TextSource::Template { prompt, completion, labels } => {
                let prompt = fill_template(prompt, &row.values, labels)
                    .map_err(|e| file.fault(DataError::of_field(row.line, &e.path, format!("is {}", e.found), e.expected)))?;
                let answer = match row.values.get(completion) {
                    None => String::new(),
                    Some(Value::String(answer)) => answer.clone(),
                    Some(Value::Null) => {
                        return Err(file.fault(DataError::of_field(row.line, completion, "is null", "an answer to learn")));
                    }
                    Some(other) => other.to_string(),
                };
                let messages = vec![Message::new(Role::User, prompt), Message::new(Role::Assistant, answer)];
                self.conversation(row.line, &Conversation { messages, tools: Vec::new() }, file)
            }
        }
    }

    fn conversation(&self, line: u64, conversation: &Conversation, file: &LocalFile) -> Result<TextRow, Failure> {
        let Some(template) = &self.template else {
            return Err(Failure::Panic("a conversation without a template".to_owned()));
        };
        let tools = (!conversation.tools.is_empty()).then_some(&conversation.tools[..]);
        let rendered = template.render_for_training(&conversation.messages, tools, &Map::new()).map_err(|e| {
            let found = format!("cannot be rendered: {e}");
            file.fault(DataError::of_field(line, "messages", found, "a conversation that the model's template takes"))
        })?;
        if let Some(i) = left_out_call(&conversation.messages, &rendered.text) {
            let path = format!("messages[{i}].tool_calls");
            let expected = "no calls: the model's chat template leaves them out, so it would learn to say nothing there";
            return Err(file.fault(DataError::of_field(line, &path, "is a call", expected)));
        }
        let weights = conversation.messages.iter().filter(|m| m.is_learned()).map(|m| m.weight.unwrap_or(1.0));
        let learned = (!self.whole).then(|| rendered.assistant.iter().cloned().zip(weights.chain(std::iter::repeat(1.0))).collect());
        Ok(TextRow { line, text: rendered.text, learned, rendered: true, append_end: !rendered.learns_end })
    }
}

/// Takes a share of the rows out, drawn by the seed; at least one stays.
fn hold_out(rows: &mut Vec<TextRow>, share: f64, seed: u64) -> Vec<TextRow> {
    let n = ((rows.len() as f64 * share).round() as usize).min(rows.len().saturating_sub(1));
    let n = if share > 0.0 && rows.len() > 1 { n.max(1) } else { n };
    let mut order: Vec<usize> = (0..rows.len()).collect();
    let mut stream = Stream::new(seed, "validation split");
    for i in (1..order.len()).rev() {
        order.swap(i, stream.below(i + 1));
    }
    order.truncate(n);
    order.sort_unstable();
    let mut taken = BTreeMap::new();
    for i in order.into_iter().rev() {
        taken.insert(i, rows.remove(i));
    }
    taken.into_values().collect()
}
