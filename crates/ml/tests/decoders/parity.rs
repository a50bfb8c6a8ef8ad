//! Logits, losses and every gradient of each family, natively and composed; and the same rows out of a cache of pages, in chunks
//! of any size.
#![allow(clippy::unwrap_used)]

use candle_core::Device;
use tunesmith_ml::models::decoder::DecoderBase;
use tunesmith_ml::nn::{Batch, CachedPass, Ctx, Kernels, LayerPages, Mode};
use tunesmith_ml::spec::Tuning;
use tunesmith_ml::text::LanguageTokenizer;
use tunesmith_ml::train::{LanguageModel, Sequence, evaluate_language};
use tunesmith_ops::matmul::Precision;
use tunesmith_ops::optim::AdamW;
use tunesmith_ops::paged::PAGE;

use crate::reference::*;
use crate::*;

#[test]
fn logits_agree_with_transformers() {
    for family in FAMILIES {
        let file = expected(family);
        for kernels in BOTH {
            let ours = logits(&mut base(family), &sequences(&file), kernels, None);
            let error = worst(&ours, &reference_logits(&file, ""));
            assert!(error < 1e-4, "{family} {kernels:?}: logits differ by {error}");
        }
    }
}

#[test]
fn the_loss_and_every_gradient_of_full_fine_tuning_agree_with_transformers() {
    for family in FAMILIES {
        let file = expected(family);
        for (kernels, checkpointing) in [(Kernels::Native, false), (Kernels::Native, true), (Kernels::Composed, false)] {
            let mut spec = spec(Tuning::Full, &[]);
            spec.training.gradient_checkpointing = checkpointing;
            let model = LanguageModel::new(base(family), &spec, Precision::F32, kernels).unwrap();
            let all = sequences(&file);
            let kept: f64 = all.iter().map(Sequence::weight).sum();
            // Two micro-batches: the sum must be that of one.
            let mut loss = model.train_batch(&[&all[0], &all[1]], 0, kept, Mode::Eval).unwrap();
            loss += model.train_batch(&[&all[2]], 2, kept, Mode::Eval).unwrap();
            let what = format!("{family} {kernels:?} checkpointing {checkpointing}");
            let error = (loss.loss / kept - f64::from(values(&file, "loss")[0])).abs();
            assert!(error < 1e-5, "{what}: the loss is off by {error}");
            let evaluated = model.evaluate(&all.iter().collect::<Vec<_>>()).unwrap();
            assert!((evaluated.loss - loss.loss).abs() < 1e-4 * loss.loss, "{what}: {evaluated:?} {loss:?}");
            let grads = flat(&model.params.grads);
            for info in &model.params.infos {
                let mut reference = file.get_any(&format!("grad.{}", info.name), &Device::Cpu).unwrap();
                // GPT-2's linear weights are stored transposed.
                if info.name.contains(".c_") && info.name.ends_with(".weight") {
                    reference = reference.t().unwrap().contiguous().unwrap();
                }
                let error = relative(&grads[info.slot.range()], &flat(&reference));
                assert!(error < 2e-4, "{what}: the gradient of {} is off by {error:.2e}", info.name);
            }
        }
    }
}

/// Logits of a sequence computed in chunks of the given sizes out of a cache.
fn in_chunks(base: &DecoderBase, ids: &[u32], chunks: &[usize], pages: &[u32]) -> Vec<f32> {
    let c = &base.decoder.config;
    let elements = 32 * c.kv_heads * c.head_dim * PAGE;
    // What nobody has written must not matter.
    let mut layers: Vec<LayerPages> =
        c.layers.iter().map(|_| LayerPages { k: vec![f32::NAN; elements], v: vec![f32::NAN; elements] }).collect();
    let (mut done, mut out) = (0, Vec::new());
    for n in chunks {
        let mut batch = Batch::new();
        batch.push_at(&ids[done..done + n], done as u32);
        let (starts, tables) = ([done as u32], [pages]);
        let mut ctx = Ctx::cached(&batch, &[], CachedPass { layers: &mut layers, starts: &starts, tables: &tables });
        let hidden = base.decoder.forward(&mut ctx, NO_TAPE).unwrap();
        let rows: Vec<u32> = (0..*n as u32).collect();
        out.extend(flat(&base.decoder.logits(&hidden, &rows, &mut ctx).unwrap()));
        done += n;
    }
    out
}

#[test]
fn a_cache_gives_the_same_logits_and_the_same_bits_in_chunks_of_any_size() {
    for family in FAMILIES {
        let file = expected(family);
        let mut base = base(family);
        base.decoder.pack(Precision::F32, false).unwrap();
        let ids = integers(&file, "ids.2");
        let whole = in_chunks(&base, &ids, &[24], &[3, 7]);
        let error = worst(&whole, &values(&file, "logits.2"));
        assert!(error < 1e-4, "{family}: logits differ by {error}");
        for chunks in [vec![1; 24], vec![2; 12], vec![3, 17, 4], vec![23, 1]] {
            let parts = in_chunks(&base, &ids, &chunks, &[30, 0]);
            assert!(parts.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits()), "{family}: chunks of {chunks:?}");
        }
    }
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    for family in FAMILIES {
        let file = expected(family);
        let model = LanguageModel::new(base(family), &spec(Tuning::Full, &[]), Precision::F32, Kernels::Native).unwrap();
        for i in 0..3 {
            let ours = model.continue_greedily(&integers(&file, &format!("ids.{i}")), 8, &|_| false).unwrap();
            assert_eq!(ours, integers(&file, &format!("greedy.{i}")), "{family}, sequence {i}");
        }
    }
}

#[test]
fn a_saved_model_and_a_saved_adapter_load_with_the_same_loss() {
    for (family, tuning) in
        [("gpt2-tiny", Tuning::Full), ("gpt2-tiny", lora(4, 8.0)), ("gemma3-tiny", lora(4, 8.0)), ("llama-tiny", Tuning::Full)]
    {
        let all = sequences(&expected(family));
        let rows: Vec<&Sequence> = all.iter().collect();
        let mut model = LanguageModel::new(base(family), &spec(tuning.clone(), &[]), Precision::F32, Kernels::Native).unwrap();
        for step in 1..4 {
            model.zero_grads().unwrap();
            model.train_batch(&rows, 0, 25.0, Mode::Eval).unwrap();
            let adamw = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step };
            model.update(&adamw, 1.0).unwrap();
        }
        let trained = model.evaluate(&rows).unwrap();
        assert!(
            trained.loss
                < LanguageModel::new(base(family), &spec(tuning.clone(), &[]), Precision::F32, Kernels::Native)
                    .unwrap()
                    .evaluate(&rows)
                    .unwrap()
                    .loss
        );
        let out = tempfile::tempdir().unwrap();
        let (weights, config) = (base("chat-tiny"), base("chat-tiny").decoder.config.vocab_size);
        let tokenizer = LanguageTokenizer::read(weights.weights(), &folder("chat-tiny"), config).unwrap();
        let report = match &tuning {
            Tuning::Lora(lora) => {
                model.save_adapter(out.path(), lora, "tiny", &tokenizer).unwrap();
                evaluate_language(&folder(family), Some(out.path()), &all).unwrap()
            }
            _ => {
                model.save_whole(out.path(), &tokenizer).unwrap();
                evaluate_language(out.path(), None, &all).unwrap()
            }
        };
        let again = report.metrics["eval_loss"].as_f64().unwrap();
        assert!((again - trained.loss / trained.weight).abs() < 1e-6, "{family}: {again} {trained:?}");
    }
}
