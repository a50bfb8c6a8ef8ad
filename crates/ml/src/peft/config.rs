//! What adapter_config.json says: read as PEFT reads it, with everything that would change the result honoured or refused by name.
//!
//! Called by `load.rs`. Fields that only matter in training (dropout, `megatron_config`, …) are PEFT's own affairs.

use std::path::Path;

use fancy_regex::Regex;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::targets::ALL_LINEAR;
use crate::error::{MlError, Result};
use crate::models::read_json;

/// PEFT's word for adapters of classifiers, which bring a head.
pub(super) const CLASSIFIES: &str = "SEQ_CLS";

/// PEFT's words for tasks.
const TASKS: [&str; 6] = ["SEQ_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"];

/// What an adapter is to stand on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BaseKind {
    /// An encoder, whose adapters classify or make vectors.
    Encoder,
    /// A language model; `conv1d` says whether it has linear layers that are stored transposed.
    Decoder {
        /// Whether it is GPT-2.
        conv1d: bool,
    },
}

/// The fields that change the result.
#[derive(Deserialize)]
struct Fields {
    base_model_name_or_path: Option<String>,
    task_type: Option<String>,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    bias: Option<String>,
    rank_pattern: Option<Map<String, Value>>,
    alpha_pattern: Option<Map<String, Value>>,
    #[serde(default)]
    target_modules: Value,
    #[serde(default)]
    exclude_modules: Value,
    #[serde(default)]
    layers_to_transform: Value,
    #[serde(default)]
    layers_pattern: Value,
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    init_lora_weights: Value,
}

/// A configuration that can be served.
pub(super) struct AdapterConfig {
    pub base_name: Option<String>,
    pub task_type: Option<String>,
    pub r: usize,
    pub lora_alpha: f64,
    pub use_rslora: bool,
    /// As it is told, for listings.
    pub target_modules: Value,
    pub modules_to_save: Vec<String>,
    pub warnings: Vec<String>,
    rank_pattern: Vec<(Regex, f64)>,
    alpha_pattern: Vec<(Regex, f64)>,
    targets: Modules,
    excluded: Modules,
    saved: Vec<Regex>,
    layers: Option<Vec<usize>>,
    layer_index: Vec<Regex>,
}

/// Modules by their names.
enum Modules {
    /// Not told.
    Untold,
    /// Every linear layer.
    All,
    /// Those whose whole name fits.
    Pattern(Regex),
    /// Those that have these names, or end with them.
    Names(Vec<String>),
}

impl AdapterConfig {
    /// Reads the file in `folder`.
    ///
    /// # Errors
    /// [`MlError::AdapterMismatch`] naming the field.
    pub fn read(folder: &Path, base: BaseKind) -> Result<Self> {
        let value = read_json(&folder.join("adapter_config.json")).map_err(|e| MlError::AdapterMismatch(e.to_string()))?;
        Self::of(value, base)
    }

    fn of(value: Value, base: BaseKind) -> Result<Self> {
        let Value::Object(map) = &value else { return Err(refuse("is no JSON object")) };
        match map.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            Some(other) => return Err(refuse(&format!("peft_type {other:?} is not supported; supported: LORA"))),
            None => return Err(refuse("peft_type is missing; supported: LORA")),
        }
        refuse_unsupported(map)?;
        let fields: Fields = serde_json::from_value(value).map_err(|e| refuse(&e.to_string()))?;
        check_task(fields.task_type.as_deref(), base)?;
        if fields.r == 0 {
            return Err(refuse("r: must be at least 1"));
        }
        if let Some(bias) = fields.bias.as_deref().filter(|b| *b != "none") {
            return Err(refuse(&format!("bias {bias:?}: biases that were trained are not supported, only \"none\"")));
        }
        if let Some(init) = changes_base(&fields.init_lora_weights) {
            return Err(refuse(&format!(
                "init_lora_weights {init:?} changes the base's weights too; save the adapter converted to plain LoRA \
                 (path_initial_model_for_weight_conversion), or merge it into its base"
            )));
        }
        let mut warnings = Vec::new();
        if fields.fan_in_fan_out && !matches!(base, BaseKind::Decoder { conv1d: true }) {
            warnings.push("fan_in_fan_out is set, but the base model has no Conv1D layers; it is ignored, as PEFT does".to_owned());
        }
        let modules_to_save = fields.modules_to_save.unwrap_or_default();
        let saved = modules_to_save.iter().map(|m| regex("modules_to_save", m, &format!(r"\A(?:.*\.)?(?:{m})(?:\z|\.)")));
        Ok(Self {
            base_name: fields.base_model_name_or_path,
            task_type: fields.task_type,
            r: fields.r,
            lora_alpha: fields.lora_alpha,
            use_rslora: fields.use_rslora,
            warnings,
            rank_pattern: patterns("rank_pattern", fields.rank_pattern)?,
            alpha_pattern: patterns("alpha_pattern", fields.alpha_pattern)?,
            targets: Modules::read("target_modules", &fields.target_modules)?,
            excluded: Modules::read("exclude_modules", &fields.exclude_modules)?,
            saved: saved.collect::<Result<_>>()?,
            layers: layers(&fields.layers_to_transform)?,
            layer_index: layer_index(&fields.layers_pattern)?,
            target_modules: fields.target_modules,
            modules_to_save,
        })
    }

    /// `(rank, scale)` of a module; patterns match PEFT's way, at the end of the name, and the first one counts.
    pub fn rank_and_scale(&self, module: &str) -> (usize, f64) {
        let found = |patterns: &[(Regex, f64)]| patterns.iter().find(|(p, _)| matches(p, module)).map(|(_, value)| *value);
        let r = found(&self.rank_pattern).map_or(self.r, |r| r as usize);
        let alpha = found(&self.alpha_pattern).unwrap_or(self.lora_alpha);
        (r, alpha / if self.use_rslora { (r as f64).sqrt() } else { r as f64 })
    }

    /// Names in `target_modules` that must each have tensors.
    pub fn named_targets(&self) -> &[String] {
        match &self.targets {
            Modules::Names(names) => names,
            _ => &[],
        }
    }

    /// Whether the adapter updates the module of that name; none where the configuration does not tell.
    pub fn targets(&self, module: &str) -> Option<bool> {
        if self.excluded.has(module) || self.saved.iter().any(|m| matches(m, module)) {
            return Some(false);
        }
        match &self.targets {
            Modules::Untold => None,
            Modules::Names(names) if !names.iter().any(|n| n == module) => {
                Some(self.targets.has(module) && self.layers.as_ref().is_none_or(|layers| self.is_in(layers, module)))
            }
            other => Some(other.has(module)),
        }
    }

    fn is_in(&self, layers: &[usize], module: &str) -> bool {
        let index = self.layer_index.iter().find_map(|r| r.captures(module).ok().flatten()?.get(1)?.as_str().parse().ok());
        index.is_some_and(|index: usize| layers.contains(&index))
    }

    /// Checks that what was trained whole is in the file: `file` has its tensors' names, `base` those that the model knows.
    ///
    /// # Errors
    /// [`MlError::AdapterMismatch`] naming the module. PEFT would warn, and answer with the base's own weights.
    pub fn check_saved(&mut self, file: &[&str], base: &[String]) -> Result<()> {
        for (i, module) in self.modules_to_save.iter().enumerate() {
            if self.modules_to_save[..i].contains(module) {
                continue;
            }
            let mut there = base.iter().filter(|name| matches(&self.saved[i], name)).peekable();
            // PEFT itself writes both names for a classifier, whichever the model has.
            if there.peek().is_none() && module != "classifier" && module != "score" && !file.iter().any(|n| matches(&self.saved[i], n)) {
                self.warnings
                    .push(format!("modules_to_save names {module:?}, which the base model does not have; it is ignored, as PEFT does"));
            }
            if let Some(missing) = there.find(|name| !file.contains(&name.as_str())) {
                return Err(MlError::AdapterMismatch(format!(
                    "tensor base_model.model.{missing} is missing: modules_to_save names {module:?}, which was not saved whole"
                )));
            }
        }
        Ok(())
    }
}

fn refuse(what: &str) -> MlError {
    MlError::AdapterMismatch(format!("adapter_config.json: {what}"))
}

/// Kinds of LoRA whose answers would be other ones.
fn refuse_unsupported(map: &Map<String, Value>) -> Result<()> {
    let kinds = [
        ("use_dora", "DoRA adapters are not supported"),
        ("use_qalora", "QA-LoRA adapters are not supported"),
        ("use_bdlora", "BD-LoRA adapters are not supported"),
        ("lora_bias", "biases beside lora_B are not supported"),
        ("trainable_token_indices", "token embeddings that were trained are not supported; merge the adapter into its base"),
        ("target_parameters", "updates of bare parameters are not supported"),
        ("layer_replication", "bases with repeated layers are not supported"),
        ("alora_invocation_tokens", "adapters that begin at a token (aLoRA) are not supported"),
        ("arrow_config", "routed adapters (Arrow) are not supported"),
        ("kasa_config", "KaSA adapters are not supported"),
        ("monteclora_config", "MonteCLoRA adapters are not supported"),
    ];
    let set = |name: &str| match map.get(name) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(items)) => !items.is_empty(),
        Some(_) => true,
    };
    match kinds.iter().find(|(name, _)| set(name)) {
        None => Ok(()),
        Some((name, why)) => Err(refuse(&format!("{name}: {why}"))),
    }
}

fn check_task(task: Option<&str>, base: BaseKind) -> Result<()> {
    let (fits, what): (&[&str], _) = match base {
        BaseKind::Encoder => (&[CLASSIFIES, "FEATURE_EXTRACTION"], "an encoder"),
        BaseKind::Decoder { .. } => (&["CAUSAL_LM"], "a language model"),
    };
    match task {
        None => Ok(()),
        Some(task) if fits.contains(&task) => Ok(()),
        Some(task) if TASKS.contains(&task) => {
            let fits = fits.join(" or ");
            Err(refuse(&format!("task_type {task:?} does not fit: the base is {what}, whose adapters have task_type {fits}")))
        }
        Some(other) => Err(refuse(&format!("task_type {other:?} is not known; PEFT has {}", TASKS.join(", ")))),
    }
}

/// Ways to begin an adapter by which PEFT moves a part of the base's weights into it.
fn changes_base(init: &Value) -> Option<&str> {
    let name = init.as_str()?;
    let begins = ["pissa", "corda", "olora", "loftq", "lora_ga"];
    begins.iter().any(|b| name.to_ascii_lowercase().starts_with(b)).then_some(name)
}

fn regex(field: &str, told: &str, pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|e| refuse(&format!("{field}: {told:?} is no regular expression: {e}")))
}

/// An expression that gives up on a name does not fit it.
fn matches(pattern: &Regex, name: &str) -> bool {
    pattern.is_match(name).unwrap_or(false)
}

fn patterns(field: &str, map: Option<Map<String, Value>>) -> Result<Vec<(Regex, f64)>> {
    let one = |(told, value): (String, Value)| {
        let good = value.as_f64().filter(|n| field != "rank_pattern" || (n.fract() == 0.0 && *n >= 1.0 && *n <= 65536.0));
        let value = good.ok_or_else(|| refuse(&format!("{field}: {told:?} is {value}, which it cannot be")))?;
        Ok((regex(field, &told, &format!(r"\A(?:.*\.)?(?:{told})\z"))?, value))
    };
    map.into_iter().flatten().map(one).collect()
}

fn layers(told: &Value) -> Result<Option<Vec<usize>>> {
    let wrong = || refuse(&format!("layers_to_transform: {told} is neither a layer's number nor a list of them"));
    let number = |v: &Value| v.as_u64().map(|n| n as usize).ok_or_else(wrong);
    match told {
        Value::Null => Ok(None),
        Value::Array(all) if all.is_empty() => Ok(None),
        Value::Array(all) => all.iter().map(number).collect::<Result<_>>().map(Some),
        one => Ok(Some(vec![number(one)?])),
    }
}

/// Where a module's name has the number of its layer.
fn layer_index(told: &Value) -> Result<Vec<Regex>> {
    let names: Vec<&str> = match told {
        Value::String(name) if !name.is_empty() => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if names.is_empty() {
        return Ok(vec![regex("layers_pattern", "", r"\A.*?\.[^.]*\.(\d+)\.")?]);
    }
    names.into_iter().map(|n| regex("layers_pattern", n, &format!(r"\A(?:.*?\.)??(?:{n})\.(\d+)\."))).collect()
}

impl Modules {
    fn read(field: &str, told: &Value) -> Result<Self> {
        match told {
            Value::Null => Ok(Self::Untold),
            Value::String(all) if all == ALL_LINEAR => Ok(Self::All),
            Value::String(pattern) => Ok(Self::Pattern(regex(field, pattern, &format!(r"\A(?:{pattern})\z"))?)),
            Value::Array(names) => {
                let name = |v: &Value| v.as_str().map(str::to_owned).ok_or_else(|| refuse(&format!("{field}: {v} is no module's name")));
                Ok(Self::Names(names.iter().map(name).collect::<Result<_>>()?))
            }
            other => Err(refuse(&format!("{field}: {other} is neither a list of names nor a pattern"))),
        }
    }

    fn has(&self, module: &str) -> bool {
        match self {
            Self::Untold => false,
            Self::All => true,
            Self::Pattern(pattern) => matches(pattern, module),
            Self::Names(names) => names.iter().any(|n| module == n || module.strip_suffix(n).is_some_and(|rest| rest.ends_with('.'))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    const LLAMA: BaseKind = BaseKind::Decoder { conv1d: false };

    fn config(extra: Value) -> Result<AdapterConfig> {
        let mut all = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]});
        all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        AdapterConfig::of(all, LLAMA)
    }

    fn targets(extra: Value) -> Vec<String> {
        let config = config(extra).unwrap();
        let modules =
            (0..3).flat_map(|i| ["self_attn.q_proj", "self_attn.xq_proj", "mlp.up_proj"].map(|m| format!("model.layers.{i}.{m}")));
        modules.filter(|m| config.targets(m) == Some(true)).collect()
    }

    #[test]
    fn what_would_change_the_answer_is_refused_by_name() {
        for (extra, name) in [
            (json!({"peft_type": "IA3", "r": null}), "IA3"),
            (json!({"peft_type": null}), "peft_type"),
            (json!({"task_type": "SEQ_CLS"}), "SEQ_CLS"),
            (json!({"task_type": "QUESTION_ANS"}), "QUESTION_ANS"),
            (json!({"task_type": "POETRY"}), "POETRY"),
            (json!({"bias": "lora_only"}), "bias"),
            (json!({"use_dora": true}), "use_dora"),
            (json!({"lora_bias": true}), "lora_bias"),
            (json!({"trainable_token_indices": [1]}), "trainable_token_indices"),
            (json!({"trainable_token_indices": {"embed_tokens": [1]}}), "trainable_token_indices"),
            (json!({"target_parameters": ["x"]}), "target_parameters"),
            (json!({"layer_replication": [[0, 2]]}), "layer_replication"),
            (json!({"alora_invocation_tokens": [5]}), "alora_invocation_tokens"),
            (json!({"init_lora_weights": "pissa_niter_16"}), "pissa_niter_16"),
            (json!({"r": 0}), "r"),
            (json!({"rank_pattern": {"q_proj": 0}}), "rank_pattern"),
            (json!({"rank_pattern": {"(": 2}}), "rank_pattern"),
            (json!({"layers_to_transform": "all"}), "layers_to_transform"),
            (json!({"target_modules": 7}), "target_modules"),
            (json!({"target_modules": [7]}), "target_modules"),
        ] {
            let error = config(extra.clone()).err().unwrap_or_else(|| panic!("{extra} was taken"));
            assert!(matches!(error, MlError::AdapterMismatch(_)) && error.to_string().contains(name), "{extra}: {error}");
        }
        let encoder = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16});
        assert!(AdapterConfig::of(encoder, BaseKind::Encoder).err().unwrap().to_string().contains("SEQ_CLS"));
    }

    #[test]
    fn what_changes_nothing_is_taken() {
        let unused = json!({
            "use_dora": false, "lora_bias": false, "trainable_token_indices": null, "layer_replication": [], "eva_config": null,
            "init_lora_weights": "gaussian", "megatron_config": {"a": 1}, "lora_dropout": 0.5, "task_type": null, "bias": "none",
            "target_modules": null,
        });
        let taken = config(unused).unwrap();
        assert!(taken.warnings.is_empty() && taken.targets("model.layers.0.mlp.up_proj").is_none());
        let flagged = config(json!({"fan_in_fan_out": true})).unwrap();
        assert!(flagged.warnings[0].contains("fan_in_fan_out"), "{:?}", flagged.warnings);
    }

    #[test]
    fn modules_are_matched_as_peft_matches_them() {
        let all = |name: &str| (0..3).map(|i| format!("model.layers.{i}.{name}")).collect::<Vec<_>>();
        let q = all("self_attn.q_proj");
        assert_eq!(targets(json!({})), q);
        assert_eq!(targets(json!({"target_modules": "all-linear"})).len(), 9);
        assert_eq!(targets(json!({"target_modules": r".*\.q_proj"})), q);
        assert_eq!(targets(json!({"target_modules": "q_proj"})), [""; 0]);
        assert_eq!(targets(json!({"layers_to_transform": [0, 2]})), [q[0].clone(), q[2].clone()]);
        assert_eq!(targets(json!({"layers_to_transform": 1, "layers_pattern": "layers"})), q[1..2]);
        assert_eq!(targets(json!({"layers_to_transform": [1], "layers_pattern": ["h"]})), [""; 0]);
        // A whole name counts in any layer, and layers are for lists of names only.
        assert_eq!(targets(json!({"layers_to_transform": [0], "target_modules": [q[2]]})), q[2..]);
        assert_eq!(targets(json!({"exclude_modules": ["layers.1.self_attn.q_proj"]})), [q[0].clone(), q[2].clone()]);
        assert_eq!(targets(json!({"exclude_modules": r".*\.[12]\..*"})), q[..1]);
        assert_eq!(targets(json!({"modules_to_save": ["self_attn"]})), [""; 0]);
    }

    #[test]
    fn the_first_pattern_that_fits_gives_rank_and_scale() {
        let patterns = json!({
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, ".*q_proj": 4}, "alpha_pattern": {"xq_proj": 99, "q_proj": 32},
        });
        let plain = config(patterns.clone()).unwrap();
        assert_eq!(plain.rank_and_scale("model.layers.0.self_attn.q_proj"), (2, 16.0));
        assert_eq!(plain.rank_and_scale("model.layers.1.self_attn.q_proj"), (4, 8.0));
        // A pattern fits whole parts of a name.
        assert_eq!(plain.rank_and_scale("model.layers.1.mlp.up_proj"), (8, 2.0));
        let mut stable = patterns;
        stable["use_rslora"] = json!(true);
        assert_eq!(config(stable).unwrap().rank_and_scale("model.layers.1.self_attn.q_proj"), (4, 16.0));
    }

    #[test]
    fn modules_that_were_to_be_saved_are_there_or_not_known() {
        let check = |modules: Value, file: &[&str]| {
            let mut config = config(json!({"modules_to_save": modules})).unwrap();
            config.check_saved(file, &["model.embed_tokens.weight".to_owned(), "lm_head.weight".to_owned()]).map(|()| config.warnings)
        };
        let error = check(json!(["embed_tokens"]), &[]).err().unwrap().to_string();
        assert!(error.contains("embed_tokens\"") && error.contains("base_model.model.model.embed_tokens.weight is missing"), "{error}");
        assert!(check(json!(["lm_head"]), &["lm_head.weight"]).unwrap().is_empty());
        assert!(check(json!(["classifier", "score"]), &[]).unwrap().is_empty());
        assert!(check(json!(["value_head"]), &[]).unwrap()[0].contains("value_head"));
    }
}
