//! How a folder's files say that a text's vector is made of its tokens' states: pooling, dense layers, normalisation, prompts.
//!
//! The files are those of sentence-transformers (`modules.json`, `1_Pooling/config.json`, `config_sentence_transformers.json`,
//! `sentence_bert_config.json`; source of the meanings: its 6.2 `Pooling`, `Dense`, `Normalize`). A folder without them gets the
//! mean of its tokens, as there.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use candle_core::Device;
use serde_json::Value;
use tunesmith_ops::activation::Activation;
use tunesmith_ops::matmul::{Epilogue, Layout, Packed, Precision, matmul};

use crate::error::{MlError, Result};
use crate::models::{WeightFile, read_json, short};

/// One way to make one row of several; widths in the order of sentence-transformers where there are more than one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    First,
    Max,
    Mean,
    /// The sum by the root of the length.
    MeanSqrt,
    /// Tokens weigh as much as their place, from 1.
    Weighted,
    Last,
}

/// Older files' names of the modes, in the order in which several are joined.
const FLAGS: [(&str, Pooling); 6] = [
    ("pooling_mode_cls_token", Pooling::First),
    ("pooling_mode_max_tokens", Pooling::Max),
    ("pooling_mode_mean_tokens", Pooling::Mean),
    ("pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrt),
    ("pooling_mode_weightedmean_tokens", Pooling::Weighted),
    ("pooling_mode_lasttoken", Pooling::Last),
];

/// What follows the pooling.
enum Step {
    Dense(Box<Dense>),
    Normalize,
}

struct Dense {
    weight: Packed,
    bias: Option<Vec<f32>>,
    activation: Option<Activation>,
}

/// How a text's vector is made of its tokens' states.
pub struct Recipe {
    pooling: Vec<Pooling>,
    include_prompt: bool,
    steps: Vec<Step>,
    /// Whether the files end with a normalisation to length 1.
    pub normalize: bool,
    /// Whether texts are read in lower case, whatever the tokenizer does.
    pub lower_case: bool,
    prompts: BTreeMap<String, String>,
    default_prompt: Option<String>,
    dimensions: usize,
}

impl Recipe {
    /// Reads the files in `folder` for states `hidden` wide.
    ///
    /// # Errors
    /// [`MlError::Format`] naming the file and what it asks for that is not supported.
    pub(super) fn read(folder: &Path, hidden: usize) -> Result<Self> {
        let mut recipe = Self {
            pooling: vec![Pooling::Mean],
            include_prompt: true,
            steps: Vec::new(),
            normalize: false,
            lower_case: optional(&folder.join("sentence_bert_config.json"))?["do_lower_case"] == true,
            prompts: BTreeMap::new(),
            default_prompt: None,
            dimensions: hidden,
        };
        recipe.read_prompts(&folder.join("config_sentence_transformers.json"))?;
        let modules = optional(&folder.join("modules.json"))?;
        match modules.as_array() {
            Some(modules) => recipe.read_modules(folder, modules)?,
            None => recipe.read_pooling(&folder.join("1_Pooling/config.json"), true)?,
        }
        recipe.normalize = matches!(recipe.steps.last(), Some(Step::Normalize));
        if recipe.normalize {
            recipe.steps.pop();
        }
        Ok(recipe)
    }

    fn read_modules(&mut self, folder: &Path, modules: &[Value]) -> Result<()> {
        let mut pooled = false;
        for (i, module) in modules.iter().enumerate() {
            let kind = module["type"].as_str().unwrap_or_default();
            let place = below(folder, module["path"].as_str().unwrap_or_default())?;
            match (kind.rsplit('.').next().unwrap_or_default(), i, pooled) {
                ("Transformer", 0, _) => {}
                ("Pooling", _, false) => {
                    self.read_pooling(&place.join("config.json"), false)?;
                    pooled = true;
                }
                ("Dense", _, true) => {
                    let dense = Dense::read(&place, self.dimensions)?;
                    self.dimensions = dense.weight.n();
                    self.steps.push(Step::Dense(Box::new(dense)));
                }
                ("Normalize", _, true) => self.steps.push(Step::Normalize),
                // It only acts in training.
                ("Dropout", _, _) => {}
                _ => {
                    return Err(refuse(
                        &folder.join("modules.json"),
                        &format!(
                            "module {i} is {kind:?}, which is not supported there; supported are Transformer, Pooling, then Dense and Normalize"
                        ),
                    ));
                }
            }
        }
        match pooled {
            true => Ok(()),
            false => Err(refuse(&folder.join("modules.json"), "lists no Pooling, so a text has no single vector")),
        }
    }

    fn read_pooling(&mut self, path: &Path, may_lack: bool) -> Result<()> {
        if may_lack && !path.is_file() {
            return Ok(());
        }
        let config = read_json(path)?;
        let hidden = self.dimensions;
        let width = [&config["embedding_dimension"], &config["word_embedding_dimension"]].into_iter().find_map(Value::as_u64);
        if let Some(width) = width.filter(|w| *w != hidden as u64) {
            return Err(refuse(path, &format!("is for states of {width}, but the model's are {hidden} wide")));
        }
        let named = |name: &Value| -> Result<Pooling> {
            Ok(match name.as_str().unwrap_or_default() {
                "cls" => Pooling::First,
                "max" => Pooling::Max,
                "mean" => Pooling::Mean,
                "mean_sqrt_len_tokens" => Pooling::MeanSqrt,
                "weightedmean" => Pooling::Weighted,
                "lasttoken" => Pooling::Last,
                _ => {
                    let known = "cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken";
                    return Err(refuse(path, &format!("pooling_mode {name} is not known; known are {known}")));
                }
            })
        };
        self.pooling = match &config["pooling_mode"] {
            Value::Null => FLAGS.iter().filter(|(flag, _)| config[*flag] == true).map(|(_, mode)| *mode).collect(),
            Value::Array(names) => names.iter().map(named).collect::<Result<_>>()?,
            name => vec![named(name)?],
        };
        if self.pooling.is_empty() {
            self.pooling.push(Pooling::Mean);
        }
        self.include_prompt = config["include_prompt"] != false;
        self.dimensions = hidden * self.pooling.len();
        Ok(())
    }

    fn read_prompts(&mut self, path: &Path) -> Result<()> {
        let config = optional(path)?;
        for (name, text) in config["prompts"].as_object().into_iter().flatten() {
            self.prompts.insert(name.clone(), text.as_str().unwrap_or_default().to_owned());
        }
        if let Some(name) = config["default_prompt_name"].as_str() {
            let text = self.prompts.get(name);
            let missing = || refuse(path, &format!("default_prompt_name is {name:?}, which prompts does not have"));
            self.default_prompt = Some(text.ok_or_else(missing)?.clone());
        }
        Ok(())
    }

    /// The text that a prompt's name stands for, or the default one's; none where the name is not known.
    pub fn prompt(&self, name: Option<&str>) -> Option<&str> {
        let Some(name) = name else { return Some(self.default_prompt.as_deref().unwrap_or_default()) };
        let of_every_model = || matches!(name, "query" | "document").then_some("");
        self.prompts.get(name).map(String::as_str).or_else(of_every_model)
    }

    /// The names of the prompts.
    pub fn prompt_names(&self) -> impl Iterator<Item = &str> {
        self.prompts.keys().map(String::as_str)
    }

    /// Whether the tokens of a prompt are left out when tokens are pooled.
    pub fn leaves_prompt_out(&self) -> bool {
        !self.include_prompt
    }

    /// Numbers of a vector.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Bytes of the dense layers.
    pub(super) fn bytes(&self) -> usize {
        let of = |step: &Step| if let Step::Dense(d) = step { d.weight.bytes() } else { 0 };
        self.steps.iter().map(of).sum()
    }

    /// The row that the pooling makes of a text's states `[tokens, width]`.
    pub(super) fn pool(&self, states: &[f32], width: usize, prompt_tokens: usize) -> Vec<f32> {
        let tokens = states.len() / width;
        let skip = if self.include_prompt { 0 } else { prompt_tokens.min(tokens.saturating_sub(1)) };
        self.pooling.iter().flat_map(|mode| mode.pool(states, width, skip)).collect()
    }

    /// The vectors of pooled rows, joined, before the last normalisation.
    pub(super) fn vectors(&self, pooled: Vec<f32>, rows: usize) -> Vec<Vec<f32>> {
        let joined = self.steps.iter().fold(pooled, |x, step| match step {
            Step::Dense(dense) => dense.forward(&x, rows),
            Step::Normalize => x.chunks_exact(x.len() / rows).flat_map(|row| normalized(row.to_vec())).collect(),
        });
        joined.chunks_exact(joined.len() / rows).map(<[f32]>::to_vec).collect()
    }
}

impl Pooling {
    /// One row of states `[tokens, width]`, the first `skip` of which do not count.
    fn pool(self, states: &[f32], width: usize, skip: usize) -> Vec<f32> {
        let counted = &states[skip * width..];
        let rows = || counted.chunks_exact(width);
        let weighted = |weight: &dyn Fn(usize) -> f32| {
            let mut sum = vec![0.0f32; width];
            for (place, row) in rows().enumerate() {
                let w = weight(place);
                sum.iter_mut().zip(row).for_each(|(s, x)| *s += w * x);
            }
            sum
        };
        let by = |mut sum: Vec<f32>, divisor: f32| {
            sum.iter_mut().for_each(|s| *s /= divisor);
            sum
        };
        let count = rows().len() as f32;
        match self {
            Self::First => counted[..width].to_vec(),
            Self::Last => counted[counted.len() - width..].to_vec(),
            Self::Max => rows().fold(vec![f32::NEG_INFINITY; width], |mut most, row| {
                most.iter_mut().zip(row).for_each(|(m, x)| *m = m.max(*x));
                most
            }),
            Self::Mean => by(weighted(&|_| 1.0), count),
            Self::MeanSqrt => by(weighted(&|_| 1.0), count.sqrt()),
            Self::Weighted => {
                let weight = |place: usize| (skip + place + 1) as f32;
                by(weighted(&weight), (0..rows().len()).map(weight).sum())
            }
        }
    }
}

impl Dense {
    fn read(folder: &Path, input: usize) -> Result<Self> {
        let path = folder.join("config.json");
        let config = read_json(&path)?;
        let number = |key: &str| config[key].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        if number("in_features") != input {
            return Err(refuse(&path, &format!("in_features is {}, but what comes in is {input} wide", config["in_features"])));
        }
        for (key, usual) in [("module_input_name", "sentence_embedding"), ("module_output_name", "sentence_embedding")] {
            if let Some(other) = config[key].as_str().filter(|name| *name != usual) {
                return Err(refuse(&path, &format!("{key} {other:?} is not supported, only {usual:?}")));
            }
        }
        if config["use_residual"] == true {
            return Err(refuse(&path, "use_residual is not supported"));
        }
        let activation = match config["activation_function"].as_str() {
            None | Some("torch.nn.modules.activation.Tanh") => Some(Activation::Tanh),
            Some("torch.nn.modules.linear.Identity") => None,
            Some("torch.nn.modules.activation.ReLU") => Some(Activation::Relu),
            Some("torch.nn.modules.activation.GELU") => Some(Activation::Gelu),
            Some("torch.nn.modules.activation.SiLU") => Some(Activation::Silu),
            Some(other) => {
                return Err(refuse(
                    &path,
                    &format!("activation_function {other:?} is not supported; supported are Identity, Tanh, ReLU, GELU, SiLU"),
                ));
            }
        };
        let out = number("out_features");
        let weights = WeightFile::open(&[folder.join("model.safetensors")])?;
        let get =
            |name: &str, shape: &[usize]| -> Result<Vec<f32>> { Ok(weights.get(name, shape, &Device::Cpu)?.flatten_all()?.to_vec1()?) };
        let weight = Packed::new(&get("linear.weight", &[out, input])?, out, input, Layout::RowMajor, Precision::F32);
        let bias = if config["bias"] == false { None } else { Some(get("linear.bias", &[out])?) };
        Ok(Self { weight, bias, activation })
    }

    fn forward(&self, x: &[f32], rows: usize) -> Vec<f32> {
        let mut y = vec![0.0; rows * self.weight.n()];
        let ep = Epilogue { bias: self.bias.as_deref(), activation: self.activation, ..Epilogue::default() };
        matmul(x, rows, &self.weight, &mut y, ep);
        y
    }
}

/// A vector's first `dimensions` numbers (Matryoshka representation, Kusupati et al. 2022), brought to length 1 where that is wanted.
pub fn finish_vector(mut vector: Vec<f32>, dimensions: Option<usize>, normalize: bool) -> Vec<f32> {
    vector.truncate(dimensions.unwrap_or(usize::MAX));
    if normalize { normalized(vector) } else { vector }
}

fn normalized(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt().max(1e-12);
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    vector
}

/// A JSON file, or null where there is none.
fn optional(path: &Path) -> Result<Value> {
    if path.is_file() { read_json(path) } else { Ok(Value::Null) }
}

/// A folder that a file names, which must lie below its own.
fn below(folder: &Path, path: &str) -> Result<PathBuf> {
    let inside = Path::new(path).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    match inside {
        true => Ok(folder.join(path)),
        false => Err(refuse(&folder.join("modules.json"), &format!("path {path:?} leads out of the folder"))),
    }
}

fn refuse(path: &Path, what: &str) -> MlError {
    MlError::Format(format!("{}: {what}", short(path)))
}
