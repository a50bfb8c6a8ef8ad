//! Classifiers in serving: adapters of one encoder share its weights, and rows with different adapters share a batch.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use serde::{Deserialize, Serialize};
use tunesmith_ops::matmul::Precision;

use crate::error::{MlError, Result};
use crate::models::{BackwardPlan, BaseModel, EncoderConfig, Head, WeightFile, head_modules, label_names, load_base, read_json};
use crate::nn::{Adapter, Batch, Ctx, Kernels, LoraRange};
use crate::peft::{AdapterFacts, load_adapter};
use crate::spec::ProblemType;
use crate::text::{Encoded, TextTokenizer};

/// An encoder with its tokenizer, packed for serving in f32.
pub struct ServedBase {
    model: BaseModel,
    tokenizer: TextTokenizer,
    bytes: usize,
}

/// What our folders say of a classifier beside the ecosystem's files: `tunesmith.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The loss that it was trained with, and so the shape of its answer.
    pub problem_type: ProblemType,
    /// Labels of multi-label rows count from this probability on.
    pub threshold: f32,
}

/// Probability from which a label of a multi-label answer counts, unless the model or the request says otherwise.
pub const DEFAULT_THRESHOLD: f32 = 0.5;

/// The file's name.
const ANSWER_FILE: &str = "tunesmith.json";

impl Answer {
    /// Writes it into a model's folder.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let json = serde_json::to_value(self).map_err(|e| MlError::Format(e.to_string()))?;
        crate::models::write_json(&folder.join(ANSWER_FILE), &json)
    }

    fn read(folder: &Path, config: &serde_json::Map<String, serde_json::Value>) -> Result<Self> {
        let path = folder.join(ANSWER_FILE);
        if path.is_file() {
            return serde_json::from_value(read_json(&path)?).map_err(|e| MlError::Format(format!("{ANSWER_FILE}: {e}")));
        }
        let problem_type = config.get("problem_type").and_then(|v| serde_json::from_value(v.clone()).ok());
        Ok(Self { problem_type: problem_type.unwrap_or(ProblemType::SingleLabelClassification), threshold: DEFAULT_THRESHOLD })
    }
}

/// A classifier that answers.
pub struct ServedClassifier {
    /// The encoder, shared with other adapters.
    pub base: Arc<ServedBase>,
    /// Label names in the order of their ids.
    pub labels: Vec<String>,
    /// The shape of the answer.
    pub answer: Answer,
    /// What an adapter says of itself.
    pub facts: Option<AdapterFacts>,
    /// What a user should know of it.
    pub warnings: Vec<String>,
    adapter: Adapter,
    head: Head,
    tokenizer: Option<TextTokenizer>,
}

impl ServedBase {
    /// Loads the encoder of a Hugging Face folder.
    ///
    /// # Errors
    /// If the folder does not hold a supported model.
    pub fn load(folder: &Path) -> Result<Self> {
        let mut model = load_base(folder, &Device::Cpu)?;
        model.encoder.pack(Precision::F32, false)?;
        let limit = crate::train::base_limit(folder, &model.encoder.config);
        let tokenizer = TextTokenizer::read(folder, limit, model.encoder.config.vocab_size)?;
        let bytes = model.encoder.bytes();
        Ok(Self { model, tokenizer, bytes })
    }

    /// The configuration.
    pub fn config(&self) -> &EncoderConfig {
        &self.model.encoder.config
    }

    /// The tokenizer with the base's own limit.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl ServedClassifier {
    /// A whole model's classifier, or none where the folder holds a bare encoder: `folder` is the one that `base` was loaded from.
    ///
    /// # Errors
    /// If the classification head does not fit the encoder.
    pub fn whole(base: Arc<ServedBase>, folder: &Path) -> Result<Option<Self>> {
        let config = base.config();
        let (h, (dense, out)) = (config.hidden, head_modules(config.family));
        let weights = WeightFile::open_folder(folder)?;
        let weight = format!("{out}.weight");
        let Some(shape) = weights.shape(&weight)? else { return Ok(None) };
        let outputs = shape.first().copied().unwrap_or(0);
        let get = |name: &str, shape: &[usize]| weights.get(name, shape, &Device::Cpu);
        let head = Head::from_tensors(
            config,
            get(&format!("{dense}.weight"), &[h, h])?,
            get(&format!("{dense}.bias"), &[h])?,
            get(&weight, &[outputs, h])?,
            get(&format!("{out}.bias"), &[outputs])?,
            false,
        )?;
        let labels = label_names(&config.raw);
        let answer = Answer::read(folder, &config.raw)?;
        Self { base, labels, answer, facts: None, warnings: Vec::new(), adapter: Adapter::default(), head, tokenizer: None }
            .checked()
            .map(Some)
    }

    /// The adapter in a PEFT folder.
    ///
    /// # Errors
    /// [`MlError::AdapterMismatch`] if it does not fit the base.
    pub fn adapter(base: Arc<ServedBase>, folder: &Path) -> Result<Self> {
        let mut loaded = load_adapter(folder, &base.model)?;
        loaded.adapter.pack(false)?;
        let path = folder.join("labels.json");
        let outputs = loaded.head.outputs();
        let from_base = label_names(&base.config().raw);
        let labels = if path.is_file() {
            serde_json::from_value(read_json(&path)?)
                .map_err(|e| MlError::AdapterMismatch(format!("labels.json: {e}; expected a list of names")))?
        } else if from_base.len() == outputs {
            from_base
        } else {
            (0..outputs).map(|i| format!("LABEL_{i}")).collect()
        };
        let answer = Answer::read(folder, &serde_json::Map::new())?;
        let tokenizer = match declared_length(folder) {
            Some(n) if n < base.tokenizer.max_length() || n <= base.config().max_tokens() => Some(base.tokenizer.with_max_length(n)?),
            _ => None,
        };
        let (facts, warnings) = (Some(loaded.facts), loaded.warnings);
        Self { base, labels, answer, facts, warnings, adapter: loaded.adapter, head: loaded.head, tokenizer }.checked()
    }

    fn checked(mut self) -> Result<Self> {
        let outputs = self.head.outputs();
        if self.answer.problem_type == ProblemType::Regression {
            self.labels = vec!["value".to_owned()];
        }
        if self.labels.len() != outputs {
            return Err(MlError::AdapterMismatch(format!("{} label names for {outputs} outputs of the classifier", self.labels.len())));
        }
        self.head.pack(Kernels::Native, false)?;
        Ok(self)
    }

    /// The tokenizer with the model's own limit.
    pub fn tokenizer(&self) -> &TextTokenizer {
        self.tokenizer.as_ref().unwrap_or(&self.base.tokenizer)
    }

    /// Bytes of what this classifier does not share.
    pub fn bytes(&self) -> usize {
        self.adapter.bytes() + self.head.bytes()
    }
}

/// `model_max_length` that our adapters store with their tokenizer.
fn declared_length(folder: &Path) -> Option<usize> {
    let path = folder.join("tokenizer_config.json");
    let json = path.is_file().then(|| read_json(&path).ok())??;
    json["model_max_length"].as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0 && *n < 1_000_000)
}

/// Logits of each row, in order. All rows' classifiers must share one base; a row's logits depend on nothing but the row.
///
/// # Errors
/// If the rows' classifiers stand on different bases, or a token id lies outside the vocabulary.
pub fn classify(rows: &[(&Encoded, &ServedClassifier)]) -> Result<Vec<Vec<f32>>> {
    let Some((_, first)) = rows.first() else { return Ok(Vec::new()) };
    let base = &first.base;
    if rows.iter().any(|(_, c)| !Arc::ptr_eq(&c.base, base)) {
        return Err(MlError::Format("the rows of a batch stand on different base models".to_owned()));
    }
    // Rows of one classifier stand together, so that each adapter is one range of rows.
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|i| std::ptr::from_ref(rows[*i].1) as usize);
    let mut batch = Batch::new();
    let mut groups: Vec<(&ServedClassifier, Vec<u32>, std::ops::Range<usize>)> = Vec::new();
    for i in &order {
        let (encoded, classifier) = rows[*i];
        let start = batch.tokens();
        batch.push(&encoded.ids, &encoded.type_ids, 0, base.config().position_offset);
        match groups.last_mut() {
            Some((last, firsts, range)) if std::ptr::eq(*last, classifier) => {
                firsts.push(start as u32);
                range.end = batch.tokens();
            }
            _ => groups.push((classifier, vec![start as u32], start..batch.tokens())),
        }
    }
    let route: Vec<LoraRange> = groups.iter().map(|(c, _, range)| LoraRange { rows: range.clone(), adapter: &c.adapter }).collect();
    let mut ctx = Ctx::infer(&batch, Kernels::Native, &route);
    let plan = BackwardPlan { first: usize::MAX, checkpointing: false };
    let hidden = base.model.encoder.forward(&mut ctx, plan)?;
    let mut answers = vec![Vec::new(); rows.len()];
    let mut place = order.into_iter();
    for (classifier, firsts, _) in &groups {
        let route = [LoraRange { rows: 0..firsts.len(), adapter: &classifier.adapter }];
        let mut ctx = Ctx::infer(&batch, Kernels::Native, &route);
        let logits: Vec<f32> = classifier.head.forward(&hidden, firsts, &mut ctx)?.flatten_all()?.to_vec1()?;
        for row in logits.chunks_exact(classifier.head.outputs()) {
            if let Some(i) = place.next() {
                answers[i] = row.to_vec();
            }
        }
    }
    Ok(answers)
}
