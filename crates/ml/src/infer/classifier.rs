//! Classifiers in serving: an encoder, bare or with an adapter, with a head and the names of its labels.

use std::path::Path;
use std::sync::Arc;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::encoder::{Asked, ServedBase, ServedEncoder, answer};
use crate::error::{MlError, Result};
use crate::models::{Head, WeightFile, head_modules, label_names, read_json};
use crate::nn::Kernels;
use crate::spec::ProblemType;
use crate::text::{Encoded, TextTokenizer};

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
    /// The encoder.
    pub encoder: Arc<ServedEncoder>,
    /// Label names in the order of their ids.
    pub labels: Vec<String>,
    /// The shape of the answer.
    pub answer: Answer,
    head: Head,
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
        Self { encoder: Arc::new(ServedEncoder::bare(base)), labels, answer, head }.checked().map(Some)
    }

    /// The adapter in a PEFT folder, which must bring a head.
    ///
    /// # Errors
    /// [`MlError::AdapterMismatch`] if it does not fit the base, or has no head.
    pub fn adapter(base: Arc<ServedBase>, folder: &Path) -> Result<Self> {
        let (encoder, head) = ServedEncoder::adapter(base, folder)?;
        let missing = || MlError::AdapterMismatch("the adapter was not trained to classify".to_owned());
        Self::of(Arc::new(encoder), head.ok_or_else(missing)?, folder)
    }

    /// An adapter's encoder with the head and the names that stand in its PEFT folder.
    ///
    /// # Errors
    /// [`MlError::AdapterMismatch`] if the names do not fit the head.
    pub fn of(encoder: Arc<ServedEncoder>, head: Head, folder: &Path) -> Result<Self> {
        let path = folder.join("labels.json");
        let outputs = head.outputs();
        let from_base = label_names(&encoder.base.config().raw);
        let labels = if path.is_file() {
            serde_json::from_value(read_json(&path)?)
                .map_err(|e| MlError::AdapterMismatch(format!("labels.json: {e}; expected a list of names")))?
        } else if from_base.len() == outputs {
            from_base
        } else {
            (0..outputs).map(|i| format!("LABEL_{i}")).collect()
        };
        let answer = Answer::read(folder, &serde_json::Map::new())?;
        Self { encoder, labels, answer, head }.checked()
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
        self.encoder.tokenizer()
    }

    /// Bytes of what this classifier does not share.
    pub fn bytes(&self) -> usize {
        self.encoder.bytes() + self.head.bytes()
    }

    pub(super) fn head(&self) -> &Head {
        &self.head
    }
}

/// Logits of each row, in order; see [`answer`].
///
/// # Errors
/// As [`answer`].
pub fn classify(rows: &[(&Encoded, &ServedClassifier)]) -> Result<Vec<Vec<f32>>> {
    answer(&rows.iter().map(|(row, classifier)| (*row, Asked::Logits(classifier))).collect::<Vec<_>>())
}
