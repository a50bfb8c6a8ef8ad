//! Which modules an adapter trains, matched by PEFT's rules.

use fancy_regex::Regex;

use crate::error::{MlError, Result};
use crate::models::{Encoder, Family, Head};
use crate::spec::TargetModules;

/// The word that means every linear layer but the head's.
pub const ALL_LINEAR: &str = "all-linear";

/// Full names and numbers of the linear layers that `targets` means. Heads are never among them: they are trained whole.
///
/// # Errors
/// If a name matches nothing, or the expression is malformed or matches nothing.
pub fn target_layers(encoder: &Encoder, targets: &TargetModules) -> Result<Vec<(usize, String)>> {
    const PARAM: &str = "tuning.target_modules";
    let layers: Vec<(usize, String)> = encoder.linears().map(|l| (l.id, l.name().to_owned())).collect();
    let known = || {
        let mut last: Vec<&str> = layers.iter().filter_map(|(_, n)| n.split(".layer.0.").nth(1)).collect();
        last.sort_unstable();
        last.join(", ")
    };
    match targets {
        TargetModules::Pattern(all) if all == ALL_LINEAR => Ok(layers),
        TargetModules::Pattern(pattern) => {
            let bad = |e: &dyn std::fmt::Display| MlError::setting(PARAM, format!("{pattern:?} is not a regular expression: {e}"));
            let regex = Regex::new(&format!("^(?:{pattern})$")).map_err(|e| bad(&e))?;
            let mut found = Vec::new();
            for layer in &layers {
                if regex.is_match(&layer.1).map_err(|e| bad(&e))? {
                    found.push(layer.clone());
                }
            }
            if found.is_empty() {
                return Err(MlError::setting(
                    PARAM,
                    format!("{pattern:?} matches the whole name of no linear layer; there are: {}", known()),
                ));
            }
            Ok(found)
        }
        TargetModules::Names(names) => {
            let matches = |name: &str, target: &str| name == target || name.ends_with(&format!(".{target}"));
            if let Some(none) = names.iter().find(|t| !layers.iter().any(|(_, n)| matches(n, t))) {
                return Err(MlError::setting(PARAM, format!("{none:?} names no linear layer of the encoder; there are: {}", known())));
            }
            if names.is_empty() {
                return Err(MlError::setting(PARAM, "names no module"));
            }
            Ok(layers.iter().filter(|(_, n)| names.iter().any(|t| matches(n, t))).cloned().collect())
        }
    }
}

/// PEFT's `modules_to_save` of a head: what the job asks for, or the head's trained layers. A layer whose weights were drawn
/// here is always among them, since nobody else has them.
///
/// # Errors
/// If a name is no module of the head.
pub fn head_modules_to_save(family: Family, head: &Head, asked: Option<&[String]>) -> Result<Vec<String>> {
    let (known, mut modules): (&[&str], Vec<&str>) = match family {
        Family::Bert => (&["classifier", "pooler"], vec!["classifier"]),
        Family::DistilBert => (&["classifier", "pre_classifier"], vec!["pre_classifier", "classifier"]),
        Family::Roberta => (&["classifier"], vec!["classifier"]),
    };
    for name in asked.unwrap_or_default() {
        match known.iter().find(|k| *k == name) {
            Some(name) if !modules.contains(name) => modules.insert(0, name),
            Some(_) => {}
            None => {
                return Err(MlError::setting(
                    "tuning.modules_to_save",
                    format!("{name:?} is no module of this model's head; there are: {}", known.join(", ")),
                ));
            }
        }
    }
    if family == Family::Bert && head.dense_is_new && !modules.contains(&"pooler") {
        modules.insert(0, "pooler");
    }
    Ok(modules.into_iter().map(str::to_owned).collect())
}
