//! Which modules an adapter trains, matched by PEFT's rules.

use fancy_regex::Regex;

use crate::error::{MlError, Result};
use crate::models::{Family, Head, Outline};
use crate::nn::Linear;
use crate::spec::TargetModules;

/// The word that means every linear layer but the head's.
pub const ALL_LINEAR: &str = "all-linear";

const TARGETS: &str = "tuning.target_modules";
const SAVED: &str = "tuning.modules_to_save";

/// Full names and numbers of the linear layers that `targets` means. Heads are never among them: they are trained whole.
///
/// # Errors
/// If a name matches nothing, or the expression is malformed or matches nothing.
pub fn target_layers(linears: &[&Linear], targets: &TargetModules) -> Result<Vec<(usize, String)>> {
    let names: Vec<String> = linears.iter().map(|l| l.name().to_owned()).collect();
    let places = matching(&names, &[], targets)?;
    Ok(places.into_iter().map(|i| (linears[i].id, names[i].clone())).collect())
}

/// Checks that every target means a linear layer of the base.
///
/// # Errors
/// As [`target_layers`]; a module that gets no update is told why.
pub fn check_targets(base: &Outline, targets: &TargetModules) -> Result<()> {
    matching(&base.linears, &base.others, targets).map(drop)
}

/// Checks an expression before there is a model to match it with.
///
/// # Errors
/// If it is malformed.
pub fn check_pattern(targets: &TargetModules) -> Result<()> {
    match targets {
        TargetModules::Pattern(pattern) if pattern != ALL_LINEAR => expression(pattern).map(drop),
        _ => Ok(()),
    }
}

fn expression(pattern: &str) -> Result<Regex> {
    // PEFT's patterns match the whole name.
    Regex::new(&format!("^(?:{pattern})$")).map_err(|e| malformed(pattern, &e))
}

fn malformed(pattern: &str, why: &fancy_regex::Error) -> MlError {
    MlError::setting(TARGETS, format!("{pattern:?} is not a regular expression: {why}"))
}

/// The places in `linears` of the layers that are meant; `others` are modules that get no update, each with why.
fn matching(linears: &[String], others: &[(String, &'static str)], targets: &TargetModules) -> Result<Vec<usize>> {
    let nothing = |asked: &str, what: &str, means: &dyn Fn(&str) -> bool| {
        let found = match others.iter().find(|(name, _)| means(name)) {
            Some((name, why)) if name == asked || name.ends_with(&format!(".{asked}")) => format!("{asked:?} is {why}"),
            Some((name, why)) => format!("{asked:?} matches {name:?}, which is {why}"),
            None => format!("{asked:?} {what}"),
        };
        MlError::setting(TARGETS, format!("{found}. The model has {}", last_names(linears)))
    };
    match targets {
        TargetModules::Pattern(all) if all == ALL_LINEAR => Ok((0..linears.len()).collect()),
        TargetModules::Pattern(pattern) => {
            let regex = expression(pattern)?;
            let mut found = Vec::new();
            for (i, name) in linears.iter().enumerate() {
                if regex.is_match(name).map_err(|e| malformed(pattern, &e))? {
                    found.push(i);
                }
            }
            match found.is_empty() {
                true => Err(nothing(pattern, "matches the whole name of no linear layer", &|name| regex.is_match(name).unwrap_or(false))),
                false => Ok(found),
            }
        }
        TargetModules::Names(names) => {
            let means = |target: &str, name: &str| name == target || name.ends_with(&format!(".{target}"));
            if names.is_empty() {
                return Err(MlError::setting(TARGETS, "names no module"));
            }
            if let Some(none) = names.iter().find(|target| !linears.iter().any(|name| means(target, name))) {
                return Err(nothing(none, "names no linear layer of the model", &|name| means(none, name)));
            }
            Ok((0..linears.len()).filter(|i| names.iter().any(|target| means(target, &linears[*i]))).collect())
        }
    }
}

/// The last parts of the names, each once: `q_proj, k_proj`.
fn last_names(linears: &[String]) -> String {
    let mut last: Vec<&str> = Vec::new();
    for name in linears.iter().filter_map(|name| name.rsplit('.').next()) {
        if !last.contains(&name) {
            last.push(name);
        }
    }
    last.join(", ")
}

/// Checks that PEFT's `modules_to_save` names modules of the head.
///
/// # Errors
/// If a name is none.
pub fn check_saved_modules(family: Family, asked: Option<&[String]>) -> Result<()> {
    let known = saved_modules(family);
    match asked.unwrap_or_default().iter().find(|name| !known.contains(&name.as_str())) {
        Some(other) => {
            Err(MlError::setting(SAVED, format!("{other:?} is no module of this model's head; there are: {}", known.join(", "))))
        }
        None => Ok(()),
    }
}

fn saved_modules(family: Family) -> &'static [&'static str] {
    match family {
        Family::Bert => &["pooler", "classifier"],
        Family::DistilBert => &["pre_classifier", "classifier"],
        Family::Roberta => &["classifier"],
    }
}

/// PEFT's `modules_to_save` of a head: what the job asks for, or the whole head. The output layer is always among them, and so is
/// a layer whose weights were drawn here, since nobody else has them.
///
/// BERT's pooler counts as part of the head, as the other families' first layer does: sentence encoders such as MiniLM never
/// trained theirs, and with it frozen 50 steps on 800 AG News rows reach 0.80 accuracy in place of 0.85.
///
/// # Errors
/// If a name is no module of the head.
pub fn head_modules_to_save(family: Family, head: &Head, asked: Option<&[String]>) -> Result<Vec<String>> {
    check_saved_modules(family, asked)?;
    let must = |name: &str| name == "classifier" || head.dense_is_new;
    let wanted = |name: &str| asked.is_none_or(|asked| asked.iter().any(|a| a == name));
    Ok(saved_modules(family).iter().filter(|name| wanted(name) || must(name)).map(|name| (*name).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn outline(name: &str) -> Outline {
        Outline::read(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)).unwrap()
    }

    fn refusal(base: &str, targets: &TargetModules) -> String {
        check_targets(&outline(base), targets).unwrap_err().to_string()
    }

    #[test]
    fn targets_that_are_no_layer_are_told_with_those_that_are() {
        let names = |name: &str| TargetModules::Names(vec![name.to_owned()]);
        let pattern = |text: &str| TargetModules::Pattern(text.to_owned());
        const LLAMA: &str = "The model has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj";
        for (targets, says) in [
            (names("query"), "\"query\" names no linear layer of the model. "),
            (names("proj"), "\"proj\" names no linear layer"),
            (pattern("q_proj"), "\"q_proj\" matches the whole name of no linear layer. "),
            (names("lm_head"), "\"lm_head\" is the output layer"),
            (names("embed_tokens"), "\"embed_tokens\" is an embedding"),
            (pattern(".*embed.*"), "\".*embed.*\" matches \"model.embed_tokens\", which is an embedding"),
            (TargetModules::Names(vec!["q_proj".into(), "lm_head".into()]), "\"lm_head\" is the output layer"),
        ] {
            let message = refusal("decoders/llama-tiny", &targets);
            assert!(message.starts_with(says) && message.ends_with(LLAMA), "{message}");
        }
        for head in ["pooler", "classifier"] {
            let message = refusal("bert-tiny", &names(head));
            assert!(message.contains("part of the head") && message.ends_with("The model has query, key, value, dense"), "{message}");
        }
        for good in [names("q_proj"), pattern(ALL_LINEAR), pattern(r".*\.1\.mlp\..*")] {
            check_targets(&outline("decoders/llama-tiny"), &good).unwrap();
        }
        assert!(refusal("decoders/gpt2-tiny", &names("wpe")).contains("embedding"));
        assert!(check_pattern(&pattern("(")).unwrap_err().to_string().contains("regular expression"));
    }
}
