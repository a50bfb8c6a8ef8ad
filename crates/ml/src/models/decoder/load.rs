//! Decoders from Hugging Face folders and GGUF files: one set of names, Hugging Face's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};
use tunesmith_ops::quant::QuantPacked;

use super::block::{Block, FeedForward, LINEARS_PER_BLOCK, Norm, Qkv};
use super::config::{DecoderConfig, DecoderFamily};
use super::model::Decoder;
use crate::error::{MlError, Result};
use crate::models::source::{Weights, gguf_of};
use crate::models::{Outline, read_json, short};
use crate::nn::{Attention, Dropout, Embedding, Gated, LayerNorm, Linear, Param, RmsNorm};

/// A decoder as loaded, and where from.
pub struct DecoderBase {
    /// The decoder.
    pub decoder: Decoder,
    /// The folder or the GGUF file that it came from.
    pub folder: PathBuf,
    weights: Weights,
    device: Device,
}

impl DecoderBase {
    /// Loads a Hugging Face folder, or a folder or path with one GGUF file, in f32.
    ///
    /// # Errors
    /// If the architecture is not supported, or a tensor is missing or misshapen.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        Self::read(path, device, false)
    }

    /// As [`Self::load`], for serving on the CPU: matrices stay as their file has them where the products know the form, in the blocks
    /// of a GGUF file or in bf16.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_to_serve(path: &Path) -> Result<Self> {
        Self::read(path, &Device::Cpu, true)
    }

    fn read(path: &Path, device: &Device, keep_form: bool) -> Result<Self> {
        let weights = Weights::open(path)?;
        let config = DecoderConfig::from_map(weights.config()?)?;
        if let Some(warning) = Outline::of_decoder(&config).unused_layers(weights.names().iter().map(String::as_str)) {
            tracing::warn!(model = short(path), "{warning}");
        }
        let reader = Reader { config: &config, weights: &weights, device, keep_form };
        let decoder = reader.decoder().map_err(|e| match e {
            MlError::Format(message) => MlError::Format(format!("{}: {message}", short(path))),
            other => other,
        })?;
        weights.release();
        Ok(Self { decoder, folder: path.to_owned(), weights, device: device.clone() })
    }

    /// Where the weights lie.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The file or files behind it.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// A tensor by its full name, read from the file again in Hugging Face's orientation.
    pub fn reread(&self, name: &str) -> Result<Tensor> {
        let found = find(&self.weights, self.decoder.config.family, name)?;
        self.weights.get_any(&found, &self.device)
    }
}

/// Whether a folder or file holds a decoder, as far as its configuration says.
pub fn is_decoder(path: &Path) -> bool {
    let config = path.join("config.json");
    if config.is_file() {
        let model_type = read_json(&config).ok().and_then(|json| json["model_type"].as_str().map(str::to_owned));
        return model_type.is_some_and(|name| DecoderFamily::by_model_type(&name).is_some());
    }
    gguf_of(path).is_some()
}

/// The name under which a tensor stands in the file: full, or without the family's prefix.
fn find(weights: &Weights, family: DecoderFamily, name: &str) -> Result<String> {
    let prefix = format!("{}.", family.prefix());
    [Some(name), name.strip_prefix(&prefix)]
        .into_iter()
        .flatten()
        .find(|n| weights.contains(n))
        .map(str::to_owned)
        .ok_or_else(|| MlError::Format(format!("tensor {name} is missing")))
}

struct Reader<'a> {
    config: &'a DecoderConfig,
    weights: &'a Weights,
    device: &'a Device,
    /// Whether matrices stay in the form that the file has.
    keep_form: bool,
}

impl Reader<'_> {
    fn param(&self, name: &str, shape: &[usize]) -> Result<Param> {
        let found = find(self.weights, self.config.family, name)?;
        Ok(Param::new(name, self.weights.get(&found, shape, self.device)?))
    }

    fn inner(&self, name: &str, shape: &[usize]) -> Result<Param> {
        self.param(&format!("{}.{name}", self.config.family.prefix()), shape)
    }

    /// The blocks of a matrix `[n, k]`, where they are kept.
    fn blocks(&self, name: &str, n: usize, k: usize) -> Result<Option<Arc<QuantPacked>>> {
        if !self.keep_form {
            return Ok(None);
        }
        let found = find(self.weights, self.config.family, name)?;
        Ok(self.weights.quantised(&found, n, k)?.map(Arc::new))
    }

    /// A linear layer `[out, in]`; GPT-2 stores its own the other way round.
    fn linear(&self, id: usize, module: &str, out: usize, input: usize, bias: bool) -> Result<Linear> {
        let name = format!("{module}.weight");
        let bias = if bias { Some(self.inner(&format!("{module}.bias"), &[out])?) } else { None };
        let full = format!("{}.{name}", self.config.family.prefix());
        if let Some(blocks) = self.blocks(&full, out, input)? {
            return Linear::quantised(id, &full, blocks, bias);
        }
        let weight = if self.config.family == DecoderFamily::Gpt2 {
            let stored = self.inner(&name, &[input, out])?;
            Param { value: stored.value.t()?.contiguous()?, transposed: true, ..stored }
        } else {
            self.inner(&name, &[out, input])?
        };
        self.dense(id, &full, weight, bias)
    }

    /// A linear layer of a weight that was read as f32; it stays in bf16 where the file has it so under `name` and forms are kept.
    fn dense(&self, id: usize, name: &str, weight: Param, bias: Option<Param>) -> Result<Linear> {
        let mut linear = Linear::new(id, weight, bias)?;
        if self.keep_form && self.weights.is_bf16(&find(self.weights, self.config.family, name)?) {
            linear.pack_halves()?;
        }
        Ok(linear)
    }

    fn norm(&self, module: &str) -> Result<Norm> {
        let c = self.config;
        let weight = self.inner(&format!("{module}.weight"), &[c.hidden])?;
        Ok(if c.family == DecoderFamily::Gpt2 {
            Norm::Layer(LayerNorm { weight, bias: self.inner(&format!("{module}.bias"), &[c.hidden])?, eps: c.norm_eps })
        } else {
            Norm::Rms(RmsNorm { weight, offset: c.norm_offset, eps: c.norm_eps })
        })
    }

    fn decoder(&self) -> Result<Decoder> {
        let c = self.config;
        let gpt2 = c.family == DecoderFamily::Gpt2;
        let (embedding, output) = self.vocabulary()?;
        let positions = if gpt2 { Some(Embedding::new(self.inner("wpe.weight", &[c.max_positions, c.hidden])?)) } else { None };
        Ok(Decoder {
            embedding,
            positions,
            embed_dropout: Dropout { p: c.embed_dropout, site: 0 },
            blocks: (0..c.layers.len()).map(|i| self.block(i)).collect::<Result<_>>()?,
            norm: self.norm(if gpt2 { "ln_f" } else { "norm" })?,
            output,
            config: c.clone(),
        })
    }

    /// The embedding and the output layer, which share what they hold where they are tied.
    fn vocabulary(&self) -> Result<(Embedding, Linear)> {
        let c = self.config;
        let (id, shape) = (LINEARS_PER_BLOCK * c.layers.len(), [c.vocab_size, c.hidden]);
        let name = format!("{}.{}.weight", c.family.prefix(), c.family.embedding());
        const OUTPUT: &str = "lm_head.weight";
        let (embedding, tied) = match self.blocks(&name, c.vocab_size, c.hidden)? {
            Some(blocks) => (Embedding::quantised(&name, blocks.clone())?, Linear::quantised(id, OUTPUT, blocks, None)?),
            None => {
                let table = self.param(&name, &shape)?;
                let output = self.dense(id, &name, Param { name: OUTPUT.into(), ..table.clone() }, None)?;
                match output.packed().cloned() {
                    Some(halves) => (Embedding::halves(&name, halves)?, output),
                    None => (Embedding::new(table), output),
                }
            }
        };
        if c.tied {
            return Ok((embedding, tied));
        }
        let output = match self.blocks(OUTPUT, c.vocab_size, c.hidden)? {
            Some(blocks) => Linear::quantised(id, OUTPUT, blocks, None)?,
            None => self.dense(id, OUTPUT, self.param(OUTPUT, &shape)?, None)?,
        };
        Ok((embedding, output))
    }

    fn block(&self, i: usize) -> Result<Block> {
        let c = self.config;
        let (h, wide, q_width, kv_width) = (c.hidden, c.intermediate, c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let gpt2 = c.family == DecoderFamily::Gpt2;
        let at = |name: &str| format!("{}.{i}.{name}", c.family.blocks());
        let names = c.family.linears();
        let linear = |j: usize, out, input, bias| self.linear(LINEARS_PER_BLOCK * i + j, &at(names[j]), out, input, bias);
        let site = 1 + 3 * i as u32;
        let qkv = if gpt2 {
            Qkv::Fused(linear(0, 3 * h, h, true)?)
        } else {
            Qkv::Split(Box::new([
                linear(0, q_width, h, c.qkv_bias)?,
                linear(1, kv_width, h, c.qkv_bias)?,
                linear(2, kv_width, h, c.qkv_bias)?,
            ]))
        };
        let head_norm = |name: &str| -> Result<RmsNorm> {
            let weight = self.inner(&at(&format!("self_attn.{name}.weight")), &[c.head_dim])?;
            Ok(RmsNorm { weight, offset: c.norm_offset, eps: c.norm_eps })
        };
        let [norm, feed_forward_norm] = match (gpt2, c.post_norms) {
            (true, _) => ["ln_1", "ln_2"],
            (false, true) => ["input_layernorm", "pre_feedforward_layernorm"],
            (false, false) => ["input_layernorm", "post_attention_layernorm"],
        };
        let post = |name: &str| if c.post_norms { self.norm(&at(name)).map(Some) } else { Ok(None) };
        let feed_forward = if gpt2 {
            FeedForward::Plain { up: linear(5, wide, h, true)?, act: c.act, down: linear(6, h, wide, true)? }
        } else {
            FeedForward::Gated {
                gate: linear(4, wide, h, c.mlp_bias)?,
                up: linear(5, wide, h, c.mlp_bias)?,
                act: Gated(c.act),
                down: linear(6, h, wide, c.mlp_bias)?,
            }
        };
        let kind = c.layers[i];
        Ok(Block {
            norm: self.norm(&at(norm))?,
            qkv,
            qk_norm: if c.qk_norm { Some([head_norm("q_norm")?, head_norm("k_norm")?]) } else { None },
            rope: kind.rope,
            attention: Attention {
                heads: c.heads,
                kv_heads: c.kv_heads,
                head_dim: c.head_dim,
                scale: c.attention_scale,
                causal: true,
                window: kind.window,
                softcap: c.attention_softcap,
                dropout: Dropout { p: c.attention_dropout, site },
                layer: i,
            },
            out: linear(3, h, q_width, c.out_bias)?,
            out_dropout: Dropout { p: c.residual_dropout, site: site + 1 },
            out_norm: post("post_attention_layernorm")?,
            feed_forward_norm: self.norm(&at(feed_forward_norm))?,
            feed_forward,
            down_dropout: Dropout { p: c.residual_dropout, site: site + 2 },
            down_norm: post("post_feedforward_layernorm")?,
        })
    }
}
