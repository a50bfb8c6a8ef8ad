//! minijinja set up to render what transformers' Jinja environment renders: `trim_blocks`, `lstrip_blocks`, Python's
//! methods and JSON, `raise_exception`, `strftime_now`, generation blocks; and limits that Python does not have.

use std::io;
use std::sync::Arc;

use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior, Value};

use super::generation_tags::{MARKING_FILTER, PLAIN_FILTER, mark, rewrite};
use super::guard::{self, Allowance, CHECK, NO_LIST, TooMuch};
use super::limits::{MAX_OUTPUT_BYTES, MAX_RECURSION, MAX_TEMPLATE_BYTES, fuel};
use super::scan::measure;
use super::{json_text, products, python_filters, python_methods};
use crate::error::TemplateError;

/// The clock that `strftime_now` reads.
pub(super) type Clock = Arc<dyn Fn() -> DateTime + Send + Sync>;

/// A template that compiled: once as it is, and once with marks around its generation blocks.
pub(super) struct Engine {
    environment: Environment<'static>,
    generation_blocks: usize,
    /// Length of the source.
    bytes: usize,
}

const PLAIN: &str = "chat template";
const MARKED: &str = "chat template, marked";

impl Engine {
    /// Compiles `source`; `named` stands in the error of a model that has several templates.
    pub(super) fn new(source: &str, named: &str, clock: Clock) -> Result<Self, TemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError::TooLong { bytes: source.len(), limit: MAX_TEMPLATE_BYTES });
        }
        // Jinja reads every end of line as a line feed, in text and in strings.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        measure(&source)?;
        let guarded = guard(&source, named)?;
        let (plain, generation_blocks) = rewrite(&guarded, PLAIN_FILTER);
        let mut environment = environment(clock).map_err(|error| syntax(&error, named))?;
        let mut add = |name, text| environment.add_template_owned(name, text).map_err(|error| syntax(&error, named));
        add(PLAIN, plain)?;
        if generation_blocks > 0 {
            add(MARKED, rewrite(&guarded, MARKING_FILTER).0)?;
        }
        Ok(Self { environment, generation_blocks, bytes: source.len() })
    }

    /// Whether the template says itself what the assistant wrote.
    pub(super) fn has_generation_blocks(&self) -> bool {
        self.generation_blocks > 0
    }

    /// Renders the template.
    pub(super) fn render(&self, context: &Context) -> Result<String, TemplateError> {
        self.render_named(PLAIN, context)
    }

    /// Renders it with marks around what generation blocks hold.
    pub(super) fn render_marked(&self, context: &Context) -> Result<String, TemplateError> {
        self.render_named(MARKED, context)
    }

    fn render_named(&self, name: &str, context: &Context) -> Result<String, TemplateError> {
        // A copy of shared tables, so that every rendering has limits of its own.
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel(context.bytes, context.messages)));
        let allowance = Allowance::of(self.bytes, context.bytes);
        environment.add_function(CHECK, move |state: &State, values: Rest<Value>| allowance.check(state, &values));
        let template = environment.get_template(name).map_err(|error| failed(&error))?;
        let mut out = BoundedText { bytes: Vec::new() };
        template.render_captured_to(context.variables.clone(), &mut out).map_err(|error| failed(&error))?;
        String::from_utf8(out.bytes).map_err(|_| TemplateError::Limit("wrote text that is not UTF-8".to_owned()))
    }
}

/// What a template is rendered with.
pub(super) struct Context {
    /// Its variables.
    pub(super) variables: Value,
    /// The size of the texts in them.
    pub(super) bytes: usize,
    /// How many messages are among them.
    pub(super) messages: usize,
}

/// The source with the looks of `guard` and `products` in it.
fn guard(source: &str, named: &str) -> Result<String, TemplateError> {
    let source = products::guarded(source).map_err(|at| TemplateError::Syntax {
        named: quoted_name(named),
        line: source[..at].matches('\n').count() + 1,
        message: "`*` is understood before a number, a text or a name only".to_owned(),
    })?;
    Ok(guard::guarded(&source))
}

fn environment(clock: Clock) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    env.set_recursion_limit(MAX_RECURSION);
    env.set_debug(false);
    env.set_unknown_method_callback(python_methods::call);
    env.add_filter("tojson", json_text::tojson);
    env.add_filter("default", python_filters::default);
    env.add_filter("d", python_filters::default);
    env.add_filter("int", python_filters::int);
    env.add_filter("float", python_filters::float);
    env.add_filter(NO_LIST, guard::no_list);
    env.add_filter(MARKING_FILTER, mark);
    env.add_filter(PLAIN_FILTER, |text: String| text);
    env.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        let raised = Raised(message.to_string());
        Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(raised))
    });
    env.add_function("strftime_now", move |format: &str| -> Result<String, Error> {
        jiff::fmt::strtime::format(format, clock())
            .map_err(|error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {error}")))
    });
    // Python asks for a length and items, which strings and dictionaries have too.
    env.add_test("sequence", |value: Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String));
    Ok(env)
}

/// A template's own refusal, which travels inside the engine's error.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn syntax(error: &Error, named: &str) -> TemplateError {
    TemplateError::Syntax { named: quoted_name(named), line: error.line().unwrap_or(1), message: words(error) }
}

/// ` "tool_use"`, or nothing for a model with one template.
fn quoted_name(named: &str) -> String {
    if named.is_empty() { String::new() } else { format!(" {named:?}") }
}

fn failed(error: &Error) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(at) = cause {
        if let Some(Raised(message)) = at.downcast_ref::<Raised>() {
            return TemplateError::Raised(message.clone());
        }
        if let Some(TooMuch(what)) = at.downcast_ref::<TooMuch>() {
            return TemplateError::Limit(what.clone());
        }
        if at.downcast_ref::<Full>().is_some()
            || at.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::FileTooLarge)
        {
            return TemplateError::Limit(format!("wrote more than {MAX_OUTPUT_BYTES} bytes"));
        }
        if let Some(inner) = at.downcast_ref::<Error>()
            && inner.kind() == ErrorKind::OutOfFuel
        {
            return TemplateError::Limit("ran for too long or made too much data".to_owned());
        }
        cause = at.source();
    }
    TemplateError::Failed { line: error.line().unwrap_or(1), message: words(error) }
}

/// The engine's message without the template's internal name.
fn words(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}

/// Takes the output until it is longer than any conversation may be.
struct BoundedText {
    bytes: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
#[error("the output is full")]
struct Full;

impl io::Write for BoundedText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, Full));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
