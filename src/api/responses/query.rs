//! What may be asked about a kept response in a query string.
//!
//! Read by hand, since clients repeat `include[]` and serde knows no repeated field.

use std::str::FromStr;

use utoipa::IntoParams;

use crate::api::error::{ApiError, shorten};

/// OpenAI's words for `include`. What they name is told wherever it is there.
const INCLUDABLE: [&str; 8] = [
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
];

/// How to read a response.
#[derive(Debug, Default, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct RetrieveQuery {
    /// Whether to tell the response as the typed events that it was or is streamed with. One in the background is followed to its
    /// end.
    pub stream: Option<bool>,
    /// With `stream`: leave out the events up to the one with this `sequence_number`.
    pub starting_after: Option<u64>,
    /// Accepted and without effect: events are told without padding.
    #[param(rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
    /// Accepted and without effect: everything that is there is told. May be repeated.
    #[param(rename = "include")]
    _include: Option<String>,
    /// The same.
    #[param(rename = "include[]")]
    _include_list: Option<String>,
}

impl RetrieveQuery {
    /// Reads the fields.
    ///
    /// # Errors
    /// Naming the field that is unknown, or that stands there with what it does not take.
    pub fn read(fields: Vec<(String, String)>) -> Result<Self, ApiError> {
        let mut fields = Fields(fields);
        fields.include()?;
        let stream = fields.take("stream", "true or false")?;
        let starting_after = fields.take("starting_after", "an event's `sequence_number`: a whole number, 0 or more")?;
        let _include_obfuscation = fields.take("include_obfuscation", "true or false")?;
        fields.end("stream, starting_after, include_obfuscation, include")?;
        if starting_after.is_some() && stream != Some(true) {
            let message = "`starting_after` says where a stream begins; give `stream=true` too, or leave it out.";
            return Err(ApiError::field("starting_after", message));
        }
        Ok(Self { stream, starting_after, _include_obfuscation, ..Self::default() })
    }
}

/// How to page items.
#[derive(Debug, Default, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ItemsQuery {
    /// The last id of the page before.
    pub after: Option<String>,
    /// Most items to answer.
    #[param(minimum = 1, maximum = 100, default = 20)]
    pub limit: Option<usize>,
    /// `desc` for the newest first, as OpenAI has it, or `asc`.
    #[param(default = "desc")]
    pub order: Option<String>,
    /// Accepted and without effect: everything that is there is told. May be repeated.
    #[param(rename = "include")]
    _include: Option<String>,
    /// The same.
    #[param(rename = "include[]")]
    _include_list: Option<String>,
}

impl ItemsQuery {
    /// Reads the fields.
    ///
    /// # Errors
    /// As [`RetrieveQuery::read`].
    pub fn read(fields: Vec<(String, String)>) -> Result<Self, ApiError> {
        let mut fields = Fields(fields);
        fields.include()?;
        let (after, order) = (fields.text("after")?, fields.text("order")?);
        let limit = fields.take("limit", "a whole number, 0 or more")?;
        fields.end("after, limit, order, include")?;
        Ok(Self { after, limit, order, ..Self::default() })
    }
}

/// Fields that were not read yet.
struct Fields(Vec<(String, String)>);

impl Fields {
    fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        let at = |fields: &[(String, String)]| fields.iter().position(|(n, _)| n == name);
        let Some(first) = at(&self.0) else { return Ok(None) };
        let (_, value) = self.0.remove(first);
        match at(&self.0) {
            None => Ok(Some(value)),
            Some(_) => Err(ApiError::field(name, format!("`{name}` stands there twice; give it once."))),
        }
    }

    fn take<T: FromStr>(&mut self, name: &str, wanted: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.text(name)? else { return Ok(None) };
        let wrong = |_| ApiError::field(name, format!("`{name}` is `{}`; it must be {wanted}.", shorten(&value)));
        value.parse().map(Some).map_err(wrong)
    }

    fn include(&mut self) -> Result<(), ApiError> {
        for (name, value) in self.0.extract_if(.., |(name, _)| name == "include" || name == "include[]") {
            if let Some(other) = value.split(',').find(|v| !INCLUDABLE.contains(v)) {
                let message = format!("`{name}` has `{}`; OpenAI knows: {}.", shorten(other), INCLUDABLE.join(", "));
                return Err(ApiError::field(name, message));
            }
        }
        Ok(())
    }

    fn end(self, known: &str) -> Result<(), ApiError> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => {
                let name = shorten(name);
                Err(ApiError::field(name.clone(), format!("`{name}` is not known; this route takes {known}.")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn fields(query: &str) -> Vec<(String, String)> {
        query.split('&').filter_map(|f| f.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn what_openais_client_sends_is_read() {
        let query = "include[]=message.output_text.logprobs&include[]=file_search_call.results&include_obfuscation=false&starting_after=3&stream=true";
        let query = RetrieveQuery::read(fields(query)).unwrap();
        assert_eq!((query.stream, query.starting_after), (Some(true), Some(3)));
        assert_eq!(RetrieveQuery::read(Vec::new()).unwrap().stream, None);
        let items = ItemsQuery::read(fields("include[]=message.output_text.logprobs&limit=2&order=asc")).unwrap();
        assert_eq!((items.limit, items.order.as_deref(), items.after), (Some(2), Some("asc"), None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (query, param) in [
            ("stream=yes", "stream"),
            ("stream=true&starting_after=-1", "starting_after"),
            ("starting_after=1", "starting_after"),
            ("stream=true&stream=true", "stream"),
            ("include_obfuscation=1", "include_obfuscation"),
            ("include[]=everything", "include[]"),
            ("colour=1", "colour"),
        ] {
            assert_eq!(RetrieveQuery::read(fields(query)).unwrap_err().param(), Some(param), "{query}");
        }
        assert_eq!(ItemsQuery::read(fields("limit=x")).unwrap_err().param(), Some("limit"));
    }
}
