//! Answers that keep to a JSON schema, a regular expression or a list of choices, by llguidance: at each token it says which
//! tokens may come next.

use std::collections::BTreeMap;
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::call_grammar::{Beside, CallGrammar};
use super::schema_check;
use crate::error::{MlError, Result};

/// White space in a row outside strings, at most: a small model would otherwise fill its whole answer with it.
const WHITE_SPACE: &str = r"[\x20\x0A\x0D\x09]{1,16}";

/// Bytes of a grammar's text, at most.
const MAX_GRAMMAR_BYTES: usize = 256 << 10;

/// Tokens that a grammar is tried with before it is accepted.
const PROBED: usize = 4;

/// What an answer keeps to.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// A JSON value of this schema.
    JsonSchema(Value),
    /// A JSON object.
    JsonObject,
    /// A text that the whole expression matches.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Calls of functions, with or without text beside them.
    Calls(CallGrammar),
}

/// Compiles grammars for one tokenizer.
pub struct Grammars {
    factory: ParserFactory,
    end: u32,
    /// Special tokens by their text.
    special: BTreeMap<String, usize>,
}

struct Tokens(TokTrie);

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, s: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(s)
    }
}

impl Grammars {
    /// For a tokenizer whose token `i` stands for `bytes[i]` (special ones after the byte 0xFF); `end` may come where the
    /// grammar is complete.
    ///
    /// # Errors
    /// If the tokens cannot be put into a trie.
    pub fn new(bytes: &[Vec<u8>], end: u32) -> Result<Self> {
        let info = TokRxInfo::new(bytes.len() as u32, end);
        let tokens: TokEnv = Arc::new(Tokens(TokTrie::from(&info, bytes)));
        let mut factory =
            ParserFactory::new(&tokens, InferenceCapabilities::default(), &[]).map_err(|e| MlError::Tokenizer(e.to_string()))?;
        factory.quiet();
        // The parser's inner state means nothing to who sent the grammar.
        factory.limits_mut().verbose_errors = false;
        let special = bytes.iter().enumerate().filter_map(|(id, b)| Some((String::from_utf8(b.strip_prefix(&[0xff])?.to_vec()).ok()?, id)));
        Ok(Self { factory, end, special: special.collect() })
    }

    /// A constraint at the beginning of its answer.
    ///
    /// # Errors
    /// [`MlError::Setting`] if the grammar is malformed, too large, uses what is not supported, or cannot be satisfied.
    pub fn compile(&self, grammar: &Grammar) -> Result<Constraint> {
        let refuse = |message: String| MlError::setting("response_format", message);
        let source = match grammar {
            Grammar::JsonSchema(schema) => TopLevelGrammar::from_json_schema(with_white_space(schema)?),
            Grammar::JsonObject => TopLevelGrammar::from_json_schema(with_white_space(&json!({"type": "object"}))?),
            Grammar::Regex(regex) => TopLevelGrammar::from_regex(checked(regex)?),
            Grammar::Choice(choices) => TopLevelGrammar::from_regex(&any_of(choices)?),
            Grammar::Calls(calls) => {
                let told = match &calls.beside {
                    Beside::Format(format) => rule(format)?,
                    Beside::Nothing | Beside::Text => String::new(),
                };
                let call = format!("%json {}", with_white_space(&calls.schema)?);
                TopLevelGrammar::from_lark(calls.lark(&self.special, &call, &told))
            }
        };
        for schema in schemas(grammar) {
            schema_check::has_finite_answer(schema).map_err(refuse)?;
        }
        let parser = self.factory.create_parser(source).map_err(|e| refuse(self.with_place(grammar, in_short(&e))))?;
        let constraint = Constraint { matcher: Matcher::new(Ok(parser)), end: self.end };
        // A grammar without any sentence shows itself at its first token, and one that is too complex mostly within the first few.
        let mut probe = constraint.clone();
        for _ in 0..PROBED {
            let allowed = probe.allowed().map_err(refuse)?;
            let Some(id) = (0..allowed.mask.len() as u32).find(|id| allowed.is_allowed(*id)) else { break };
            if probe.accept(id).map_err(refuse)? {
                break;
            }
        }
        Ok(constraint)
    }

    /// What llguidance says of a grammar, with the place in its schema where that is wrong.
    fn with_place(&self, grammar: &Grammar, why: String) -> String {
        let fails = |part: &Value| {
            let source = TopLevelGrammar::from_json_schema(with_white_space(part).ok()?);
            self.factory.create_parser(source).err().map(|e| in_short(&e))
        };
        for schema in schemas(grammar) {
            // In a grammar around it, a schema's own fault stands behind what says where the grammar has it.
            let Some(own) = fails(schema) else { continue };
            return match schema_check::place_of(schema, &own, &fails) {
                Some(place) => format!("{}: {own}", told_place(schema, &place)),
                None => own,
            };
        }
        why
    }
}

/// A place in a schema, and in that of calls the function and the place in its own schema.
fn told_place(schema: &Value, place: &str) -> String {
    for arguments in ["/properties/arguments", "/properties/parameters"] {
        if let Some((call, inner)) = place.split_once(arguments)
            && let Some(name) = schema.pointer(&format!("{call}/properties/name/const"))
        {
            return format!("function {name} at `{}`", if inner.is_empty() { "#" } else { inner });
        }
    }
    format!("at `{place}`")
}

/// The schemas in a grammar.
fn schemas(grammar: &Grammar) -> Vec<&Value> {
    match grammar {
        Grammar::JsonSchema(schema) => vec![schema],
        Grammar::Calls(calls) => match &calls.beside {
            Beside::Format(format) => schemas(format).into_iter().chain([&calls.schema]).collect(),
            Beside::Nothing | Beside::Text => vec![&calls.schema],
        },
        Grammar::JsonObject | Grammar::Regex(_) | Grammar::Choice(_) => Vec::new(),
    }
}

/// A grammar as the right side of a rule.
fn rule(grammar: &Grammar) -> Result<String> {
    Ok(match grammar {
        Grammar::JsonSchema(schema) => format!("%json {}", with_white_space(schema)?),
        Grammar::JsonObject => format!("%json {}", with_white_space(&json!({"type": "object"}))?),
        Grammar::Regex(regex) => format!("/{}/", in_slashes(checked(regex)?)),
        Grammar::Choice(choices) => format!("/{}/", in_slashes(&any_of(choices)?)),
        Grammar::Calls(_) => return Err(MlError::setting("response_format", "calls are no format of a text".to_owned())),
    })
}

/// An expression that matches these texts; one expression, since as many rules would be more than a parser keeps in a row.
fn any_of(choices: &[String]) -> Result<String> {
    if choices.is_empty() {
        return Err(MlError::setting("response_format", "a list of choices needs at least one".to_owned()));
    }
    check_size(choices.iter().map(String::len).sum())?;
    Ok(choices.iter().map(|c| escaped(c)).collect::<Vec<_>>().join("|"))
}

/// An expression that is not too long.
fn checked(regex: &str) -> Result<&str> {
    check_size(regex.len()).map(|()| regex)
}

/// An expression between the slashes of Lark.
fn in_slashes(regex: &str) -> String {
    let mut out = String::with_capacity(regex.len());
    let mut escaped = false;
    for c in regex.chars() {
        match c {
            '/' if !escaped => out.push_str("\\/"),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
        escaped = c == '\\' && !escaped;
    }
    out
}

/// The text as a regular expression that matches it alone.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c if c.is_ascii_punctuation() => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out
}

/// What llguidance says, in one line.
fn in_short(error: &impl std::fmt::Display) -> String {
    const LONGEST: usize = 300;
    let text = error.to_string();
    if text.starts_with("NoExtension") {
        return "no answer can satisfy it".to_owned();
    }
    // What only a caller of the library could act on, in words for who wrote the grammar.
    let known = [
        ("too many expressions", "it is too complex"),
        ("coerce_one_of", "`oneOf` between schemas that may both hold is not available; `anyOf` is"),
    ];
    if let Some((_, told)) = known.iter().find(|(said, _)| text.contains(said)) {
        return (*told).to_owned();
    }
    let text = text.replace("Unimplemented keys:", "not available here:").replace("<non-verbose/>", "");
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.trim_end_matches('.');
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

fn check_size(bytes: usize) -> Result<()> {
    match bytes <= MAX_GRAMMAR_BYTES {
        true => Ok(()),
        false => Err(MlError::setting("response_format", format!("the grammar has {bytes} bytes; at most {MAX_GRAMMAR_BYTES} are read"))),
    }
}

/// The schema with our rule for white space in place of its own.
fn with_white_space(schema: &Value) -> Result<Value> {
    check_size(schema.to_string().len())?;
    let mut schema = schema.clone();
    match &mut schema {
        Value::Object(map) => {
            map.insert("x-guidance".to_owned(), json!({"whitespace_pattern": WHITE_SPACE}));
            Ok(schema)
        }
        // A schema that allows everything, or nothing.
        Value::Bool(true) => Ok(json!({"x-guidance": {"whitespace_pattern": WHITE_SPACE}})),
        other => Err(MlError::setting("response_format", format!("a schema must be a JSON object, this is {other}"))),
    }
}

/// A grammar with what an answer has used of it.
pub struct Constraint {
    matcher: Matcher,
    end: u32,
}

impl Clone for Constraint {
    /// Apart from the original: two answers share nothing that one of them changes.
    fn clone(&self) -> Self {
        Self { matcher: self.matcher.deep_clone(), end: self.end }
    }
}

/// The tokens that may come next.
pub struct Allowed {
    mask: SimpleVob,
    /// Whether the answer may end here.
    pub may_end: bool,
}

impl Allowed {
    /// Whether the token may come next.
    pub fn is_allowed(&self, id: u32) -> bool {
        (id as usize) < self.mask.len() && self.mask.is_allowed(id)
    }
}

impl Constraint {
    /// The tokens that may come next.
    ///
    /// # Errors
    /// If the grammar became too complex.
    pub fn allowed(&mut self) -> std::result::Result<Allowed, String> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|e| in_short(&e))?;
        let may_end = mask.is_allowed(self.end);
        Ok(Allowed { mask, may_end })
    }

    /// Takes the next token in; true when nothing may follow it.
    ///
    /// # Errors
    /// If the token was not allowed, or the grammar became too complex.
    pub fn accept(&mut self, id: u32) -> std::result::Result<bool, String> {
        self.matcher.consume_token(id).map_err(|e| in_short(&e))?;
        Ok(self.matcher.is_stopped())
    }
}
