//! Encoders in serving: adapters of one base share its weights, and rows of any of them, for labels or for vectors, share a pass.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use tunesmith_ops::allocator::return_freed_pages;
use tunesmith_ops::matmul::Precision;

use super::classifier::ServedClassifier;
use super::recipe::Recipe;
use crate::error::{MlError, Result};
use crate::models::{BackwardPlan, BaseModel, EncoderConfig, Head, load_base, read_json};
use crate::nn::{Adapter, Batch, Ctx, F32View, Kernels, LoraRange};
use crate::peft::{AdapterFacts, load_adapter};
use crate::text::{Encoded, TextTokenizer};

/// The arithmetic of a served encoder's products. Everything between them, heads and adapters are f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServeDtype {
    /// f32: the numbers of the training that made the model.
    F32,
    /// bf16 operands with f32 sums: twice as fast where the processor has a unit for it.
    Bf16,
    /// Weights and inputs in int8, with a scale for each 32 of them.
    Int8,
}

/// An encoder with its tokenizer, packed for serving.
pub struct ServedBase {
    pub(super) model: BaseModel,
    tokenizer: TextTokenizer,
    recipe: std::result::Result<Recipe, String>,
    bytes: usize,
}

impl ServedBase {
    /// Loads the encoder of a Hugging Face folder, in f32.
    ///
    /// # Errors
    /// If the folder does not hold a supported model.
    pub fn load(folder: &Path) -> Result<Self> {
        Self::load_as(folder, ServeDtype::F32)
    }

    /// Loads the encoder of a Hugging Face folder.
    ///
    /// # Errors
    /// If the folder does not hold a supported model, or for int8 a weight is not finite.
    pub fn load_as(folder: &Path, dtype: ServeDtype) -> Result<Self> {
        let mut model = load_base(folder, &Device::Cpu)?;
        match dtype {
            ServeDtype::F32 => model.encoder.pack(Precision::F32, false)?,
            ServeDtype::Bf16 => model.encoder.pack(Precision::Bf16, false)?,
            ServeDtype::Int8 => model.encoder.pack_int8()?,
        }
        let config = &model.encoder.config;
        let limit = crate::train::base_limit(folder, config);
        let tokenizer = TextTokenizer::read(folder, limit, config.vocab_size)?;
        // One that cannot be followed is no reason not to classify.
        let recipe = Recipe::read(folder, config.hidden).map_err(|e| e.to_string());
        let bytes = model.encoder.bytes() + recipe.as_ref().map_or(0, Recipe::bytes);
        return_freed_pages();
        Ok(Self { model, tokenizer, recipe, bytes })
    }

    /// The configuration.
    pub fn config(&self) -> &EncoderConfig {
        &self.model.encoder.config
    }

    /// The tokenizer with the base's own limit.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// How its files say that vectors are made.
    ///
    /// # Errors
    /// [`MlError::Format`] if they ask for what is not supported.
    pub fn recipe(&self) -> Result<&Recipe> {
        self.recipe.as_ref().map_err(|message| MlError::Format(message.clone()))
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// A base as it is, or with an adapter's updates.
pub struct ServedEncoder {
    /// The base, shared with other adapters.
    pub base: Arc<ServedBase>,
    /// What an adapter says of itself.
    pub facts: Option<AdapterFacts>,
    /// What a user should know of it.
    pub warnings: Vec<String>,
    adapter: Adapter,
    tokenizer: Option<TextTokenizer>,
}

impl ServedEncoder {
    /// The base as it is.
    pub fn bare(base: Arc<ServedBase>) -> Self {
        Self { base, facts: None, warnings: Vec::new(), adapter: Adapter::default(), tokenizer: None }
    }

    /// The adapter in a PEFT folder, and its classification head where it brings one.
    ///
    /// # Errors
    /// [`MlError::AdapterMismatch`] if it does not fit the base.
    pub fn adapter(base: Arc<ServedBase>, folder: &Path) -> Result<(Self, Option<Head>)> {
        let mut loaded = load_adapter(folder, &base.model)?;
        loaded.adapter.pack(false)?;
        let tokenizer = match declared_length(folder) {
            Some(n) if n < base.tokenizer.max_length() || n <= base.config().max_tokens() => Some(base.tokenizer.with_max_length(n)?),
            _ => None,
        };
        let (facts, warnings) = (Some(loaded.facts), loaded.warnings);
        Ok((Self { base, facts, warnings, adapter: loaded.adapter, tokenizer }, loaded.head))
    }

    /// The tokenizer with the model's own limit.
    pub fn tokenizer(&self) -> &TextTokenizer {
        self.tokenizer.as_ref().unwrap_or(&self.base.tokenizer)
    }

    /// Bytes of what it does not share.
    pub fn bytes(&self) -> usize {
        self.adapter.bytes()
    }

    /// Logits `[first_rows, labels]` of a head on hidden states.
    fn logits(&self, head: &Head, hidden: &Tensor, first_rows: &[u32], batch: &Batch) -> Result<Vec<f32>> {
        let route = [LoraRange { rows: 0..first_rows.len(), adapter: &self.adapter }];
        let mut ctx = Ctx::infer(batch, Kernels::Native, &route);
        Ok(head.forward(hidden, first_rows, &mut ctx)?.flatten_all()?.to_vec1()?)
    }
}

/// `model_max_length` that our adapters store with their tokenizer.
fn declared_length(folder: &Path) -> Option<usize> {
    let path = folder.join("tokenizer_config.json");
    let json = path.is_file().then(|| read_json(&path).ok())??;
    json["model_max_length"].as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0 && *n < 1_000_000)
}

/// What is wanted of a row.
#[derive(Clone, Copy)]
pub enum Asked<'a> {
    /// A classifier's logits.
    Logits(&'a ServedClassifier),
    /// The text's vector, before it is normalised.
    Vector {
        /// Whose.
        encoder: &'a ServedEncoder,
        /// Tokens of the prompt, which the pooling may leave out.
        prompt_tokens: usize,
    },
}

impl<'a> Asked<'a> {
    fn encoder(self) -> &'a ServedEncoder {
        match self {
            Self::Logits(classifier) => &classifier.encoder,
            Self::Vector { encoder, .. } => encoder,
        }
    }

    /// What rows have in common that stand side by side.
    fn key(self) -> (usize, usize) {
        let head = match self {
            Self::Logits(classifier) => std::ptr::from_ref(classifier) as usize,
            Self::Vector { .. } => 0,
        };
        (std::ptr::from_ref(self.encoder()) as usize, head)
    }
}

/// The answer of each row, in order. All rows' encoders must share one base; an answer depends on nothing but its row.
///
/// # Errors
/// If the rows' encoders stand on different bases, a token id lies outside the vocabulary, or the base's files say nothing of
/// vectors that could be followed.
pub fn answer(rows: &[(&Encoded, Asked)]) -> Result<Vec<Vec<f32>>> {
    let Some((_, first)) = rows.first() else { return Ok(Vec::new()) };
    let base = &first.encoder().base;
    if rows.iter().any(|(_, asked)| !Arc::ptr_eq(&asked.encoder().base, base)) {
        return Err(MlError::Format("the rows of a batch stand on different base models".to_owned()));
    }
    // Rows of one adapter stand together, so that each is one range of rows, and within them those of one head.
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|i| rows[*i].1.key());
    let mut batch = Batch::new();
    let mut route: Vec<LoraRange> = Vec::new();
    let mut last = None;
    for i in &order {
        let (encoded, asked) = rows[*i];
        let start = batch.tokens();
        batch.push(&encoded.ids, &encoded.type_ids, 0, base.config().position_offset);
        let encoder = std::ptr::from_ref(asked.encoder());
        match route.last_mut() {
            Some(range) if last == Some(encoder) => range.rows.end = batch.tokens(),
            _ => route.push(LoraRange { rows: start..batch.tokens(), adapter: &asked.encoder().adapter }),
        }
        last = Some(encoder);
    }
    let mut ctx = Ctx::infer(&batch, Kernels::Native, &route);
    let plan = BackwardPlan { first: usize::MAX, checkpointing: false };
    let hidden = base.model.encoder.forward(&mut ctx, plan)?;
    let mut answers = vec![Vec::new(); rows.len()];
    let mut from = 0;
    for group in order.chunk_by(|a, b| rows[*a].1.key() == rows[*b].1.key()) {
        let places = from..from + group.len();
        from = places.end;
        for (i, answer) in group.iter().zip(answer_group(rows, group, &hidden, &batch, places)?) {
            answers[*i] = answer;
        }
    }
    Ok(answers)
}

/// The answers of rows that ask the same of the same encoder; `places` are their sequences in the batch.
fn answer_group(
    rows: &[(&Encoded, Asked)],
    group: &[usize],
    hidden: &Tensor,
    batch: &Batch,
    places: Range<usize>,
) -> Result<Vec<Vec<f32>>> {
    match rows[group[0]].1 {
        Asked::Logits(classifier) => {
            let head = classifier.head();
            let logits = classifier.encoder.logits(head, hidden, &batch.first_rows()[places], batch)?;
            Ok(logits.chunks_exact(head.outputs()).map(<[f32]>::to_vec).collect())
        }
        Asked::Vector { encoder, .. } => {
            let (recipe, width) = (encoder.base.recipe()?, encoder.base.config().hidden);
            let states = F32View::new(hidden)?;
            let one = |(i, place): (&usize, usize)| {
                let [from, to] = [place, place + 1].map(|p| batch.cu_seqlens[p] as usize * width);
                let prompt_tokens = match rows[*i].1 {
                    Asked::Vector { prompt_tokens, .. } => prompt_tokens,
                    Asked::Logits(_) => 0,
                };
                recipe.pool(&states[from..to], width, prompt_tokens)
            };
            let pooled = group.iter().zip(places).flat_map(one).collect();
            Ok(recipe.vectors(pooled, group.len()))
        }
    }
}
