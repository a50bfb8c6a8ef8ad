//! Whether a job and its base go together, as far as the base's configuration tells.
//!
//! The server asks before it files a job whose base is on the machine, and every worker before it reads a row, so that both refuse in
//! the same words.

use crate::error::{MlError, Result};
use crate::models::Outline;
use crate::peft::{check_saved_modules, check_targets};
use crate::spec::{JobSpec, Tuning};

/// Checks a job against its base: the kind of model, the length of its rows, the modules that it names.
///
/// # Errors
/// [`MlError::Setting`] with the field that is at fault.
pub fn check_fit(spec: &JobSpec, base: &Outline) -> Result<()> {
    let kind = match (spec.task.is_language(), base.encoder) {
        (false, None) => Some(
            "the base is a language model, and `classification` trains encoders such as all-minilm-l6-v2; name one, or set `task` to `instruction` \
             with a `data.prompt_template` that shows the label",
        ),
        (true, Some(_)) => Some(
            "the base is an encoder, which generates no text; name a language model such as smollm2-135m-instruct, or set `task` to `classification`",
        ),
        _ => None,
    };
    if let Some(message) = kind {
        return Err(MlError::setting("model", message));
    }
    if let Some(asked) = spec.training.max_length.filter(|asked| *asked > base.max_tokens) {
        let message = format!("{asked} tokens are more than the {} that the base model reads; ask for at most as many", base.max_tokens);
        return Err(MlError::setting("training.max_length", message));
    }
    let Tuning::Lora(lora) = &spec.tuning else { return Ok(()) };
    check_targets(base, &lora.target_modules)?;
    match base.encoder {
        Some(family) => check_saved_modules(family, lora.modules_to_save.as_deref()),
        None => Ok(()),
    }
}
