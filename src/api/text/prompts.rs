//! The prompts of `/v1/completions`, as texts and as tokens.

use super::run::{check_room, off_thread};
use super::tokens::{Places, places_in};
use crate::api::error::ApiError;
use crate::api::passages::{Passage, Passages};
use crate::serve::Language;
use tunesmith_ml::text::check_ids;

/// Most prompts of one request.
const MOST: usize = 256;

/// A prompt with its text, for `echo`.
pub struct Prompt {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Its text.
    pub text: String,
    /// Where each of the tokens stands in the text, in characters.
    pub places: Vec<usize>,
}

impl Prompt {
    /// The prompts, of which each leaves room for an answer of `least` tokens.
    ///
    /// # Errors
    /// If there is none, or too many, or one is empty or too long, or has tokens that the model lacks.
    pub async fn read_all(field: Passages, language: &Language, least: usize) -> Result<Vec<Self>, ApiError> {
        let Passages { items, is_list } = field;
        match items.len() {
            0 => return Err(ApiError::field("prompt", "`prompt` is empty; send at least one text.")),
            n if n > MOST => return Err(ApiError::field("prompt", format!("`prompt` has {n} texts; a request takes at most {MOST}."))),
            _ => {}
        }
        let field = move |i: usize| if is_list { format!("prompt[{i}]") } else { "prompt".to_owned() };
        let model = language.model.clone();
        let made = off_thread(move || {
            let tokenizer = model.tokenizer();
            let text = |text: String| -> Result<Prompt, ApiError> {
                let tokens = tokenizer.encode_with_offsets(&text, true).map_err(ApiError::internal)?;
                let (ids, spans): (Vec<u32>, Vec<_>) = tokens.into_iter().unzip();
                Ok(Prompt { ids, places: places_in(&text, spans), text })
            };
            let tokens = |ids: Vec<u32>, field: String| -> Result<Prompt, ApiError> {
                check_ids(&ids, model.decoder().config.vocab_size)
                    .map_err(|e| ApiError::field(field.clone(), format!("`{field}`: {e}.")))?;
                let mut places = Places::default();
                let places = ids.iter().map(|id| places.next(tokenizer.bytes_of(*id, false))).collect();
                Ok(Prompt { text: tokenizer.text_of(&ids, false), places, ids })
            };
            let one = |(i, item)| match item {
                Passage::Text(one) => text(one),
                Passage::Tokens(ids) => tokens(ids, field(i)),
            };
            items.into_iter().enumerate().map(one).collect::<Result<Vec<_>, _>>()
        })
        .await?;
        made.iter().enumerate().try_for_each(|(i, p)| check_room(language, p.ids.len(), least, &field(i)))?;
        Ok(made)
    }
}
