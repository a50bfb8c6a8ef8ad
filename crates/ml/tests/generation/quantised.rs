//! Weights that are kept in the form of their file, against the same weights as f32.

use std::path::Path;

use candle_core::Device;
use tunesmith_ml::models::BackwardPlan;
use tunesmith_ml::models::decoder::DecoderBase;
use tunesmith_ml::nn::{Batch, Ctx, Kernels};
use tunesmith_ops::matmul::Precision;

use crate::tiny::{VOCABULARY, file};

fn logits(base: &mut DecoderBase, ids: &[u32]) -> Vec<f32> {
    base.decoder.pack(Precision::F32, false).unwrap();
    let mut batch = Batch::new();
    batch.push(ids, &vec![0; ids.len()], 0, 0);
    let mut ctx = Ctx::infer(&batch, Kernels::Native, &[]);
    let hidden = base.decoder.forward(&mut ctx, BackwardPlan { first: usize::MAX, checkpointing: false }).unwrap();
    let rows: Vec<u32> = (0..ids.len() as u32).collect();
    base.decoder.logits(&hidden, &rows, &mut ctx).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn kept_blocks_give_the_logits_of_their_values_but_for_the_rounding_of_activations() {
    let folder = file();
    let ids: Vec<u32> = (0..40).map(|i| i * 5 % VOCABULARY).collect();
    let dense = logits(&mut DecoderBase::load(folder.path(), &Device::Cpu).unwrap(), &ids);
    let kept = logits(&mut DecoderBase::load_to_serve(folder.path()).unwrap(), &ids);
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|v| v * v).sum::<f64>().sqrt();
    let off = norm(&mut dense.iter().zip(&kept).map(|(a, b)| f64::from(a - b))) / norm(&mut dense.iter().map(|v| f64::from(*v)));
    // Activations keep 8 bits of a block's largest value: half a percent a product, and there are fifteen of them.
    assert!(off > 0.0 && off < 0.04, "logits are off by {off}");
}

#[test]
fn memory_is_that_of_the_file_and_a_tied_output_layer_takes_none() {
    let folder = file();
    let size = std::fs::metadata(folder.path().join("tiny.gguf")).unwrap().len() as f64;
    let mut kept = DecoderBase::load_to_serve(folder.path()).unwrap();
    kept.decoder.pack(Precision::F32, false).unwrap();
    let ratio = kept.decoder.bytes() as f64 / size;
    assert!((0.95..1.05).contains(&ratio), "{} bytes of a file of {size}", kept.decoder.bytes());
    let mut dense = DecoderBase::load(folder.path(), &Device::Cpu).unwrap();
    dense.decoder.pack(Precision::F32, false).unwrap();
    assert!(dense.decoder.bytes() > 5 * kept.decoder.bytes());
}

#[test]
fn a_model_in_bf16_takes_half_the_memory_and_has_the_logits_of_f32_bit_for_bit() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/decoders/llama-bf16");
    let mut dense = DecoderBase::load(&folder, &Device::Cpu).unwrap();
    let mut kept = DecoderBase::load_to_serve(&folder).unwrap();
    let vocabulary = dense.decoder.config.vocab_size as u32;
    for rows in [1, 3, 40] {
        let ids: Vec<u32> = (0..rows).map(|i| i * 5 % vocabulary).collect();
        let (dense, kept) = (logits(&mut dense, &ids), logits(&mut kept, &ids));
        assert!(dense.iter().zip(&kept).all(|(a, b)| a.to_bits() == b.to_bits()), "{rows} rows");
    }
    // Its embedding is the output layer, which f32 holds twice; matrices as narrow as here fill their panels badly.
    let ratio = kept.decoder.bytes() as f64 / dense.decoder.bytes() as f64;
    assert!(ratio < 0.6, "{ratio} of the memory");
}
