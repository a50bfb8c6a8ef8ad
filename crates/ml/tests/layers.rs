//! Each layer's backward pass against candle's autograd, natively and composed.
#![allow(clippy::unwrap_used)]

mod reference;

use candle_core::{D, DType, Device, Tensor, Var};
use reference::*;
use tunesmith_ml::models::normal;
use tunesmith_ml::nn::{
    Act, Adapter, Attention, Batch, Ctx, Dropout, Embedding, InputGrad, Kernels, LayerNorm, Linear, LoraLayer, LoraRange, Mode, Param,
    Params,
};
use tunesmith_ops::matmul::Precision;

const CPU: Device = Device::Cpu;

fn random(shape: &[usize], name: &str) -> Tensor {
    normal(shape, 0.7, 9, name, &CPU).unwrap()
}

/// Sequences of the given lengths with arbitrary ids.
fn sequences(lengths: &[usize]) -> Batch {
    let mut batch = Batch::new();
    for (i, n) in lengths.iter().enumerate() {
        let ids: Vec<u32> = (0..*n).map(|j| ((i * 7 + j * 3) % 11) as u32).collect();
        batch.push(&ids, &vec![0; *n], i as u64, 0);
    }
    batch
}

/// The gradient of `sum(y · dy)` by each variable, from candle's autograd.
fn autograd(y: &Tensor, dy: &Tensor, by: &[&Var]) -> Vec<Vec<f32>> {
    let grads = (y * dy).unwrap().sum_all().unwrap().backward().unwrap();
    by.iter().map(|v| flat(grads.get(v.as_tensor()).unwrap())).collect()
}

fn close(ours: &[f32], theirs: &[f32], what: &str) {
    let error = relative(ours, theirs);
    assert!(error < 1e-4, "{what} is off by {error:.2e}");
    assert!(theirs.iter().any(|v| *v != 0.0), "{what}: a reference of zeros proves nothing");
}

#[test]
fn linear_agrees_with_autograd() {
    for kernels in BOTH {
        let (x, w, b, dy) = (random(&[23, 20], "x"), random(&[37, 20], "w"), random(&[37], "b"), random(&[23, 37], "dy"));
        let mut layer = Linear::new(0, Param::new("l.weight", w.clone()), Some(Param::new("l.bias", b.clone()))).unwrap();
        let params = Params::adopt(&CPU, &|_| true, &mut |f| layer.visit(f)).unwrap();
        layer.pack(Precision::F32, true).unwrap();
        let batch = sequences(&[23]);
        let mut ctx = Ctx::train(&batch, kernels, &[], Mode::Eval, Precision::F32, &params.grads);
        let y = layer.forward(&x, &mut ctx).unwrap();
        let dx = layer.backward(&dy, &mut ctx, true).unwrap().unwrap();
        let [vx, vw, vb] = [&x, &w, &b].map(|t| Var::from_tensor(t).unwrap());
        let reference = vx.matmul(&vw.t().unwrap()).unwrap().broadcast_add(&vb).unwrap();
        close(&flat(&y), &flat(&reference), &format!("{kernels:?}: y"));
        let expected = autograd(&reference, &dy, &[&vx, &vw, &vb]);
        close(&flat(&dx), &expected[0], &format!("{kernels:?}: dx"));
        let grads = flat(&params.grads);
        for (info, expected) in params.infos.iter().zip(&expected[1..]) {
            close(&grads[info.slot.range()], expected, &format!("{kernels:?}: {}", info.name));
        }
    }
}

#[test]
fn gradients_of_two_passes_add_up() {
    for kernels in BOTH {
        let (x, w, dy) = (random(&[9, 16], "x"), random(&[16, 16], "w"), random(&[9, 16], "dy"));
        let mut layer = Linear::new(0, Param::new("l.weight", w), None).unwrap();
        let params = Params::adopt(&CPU, &|_| true, &mut |f| layer.visit(f)).unwrap();
        layer.pack(Precision::F32, true).unwrap();
        let batch = sequences(&[9]);
        let pass = || {
            let mut ctx = Ctx::train(&batch, kernels, &[], Mode::Eval, Precision::F32, &params.grads);
            layer.forward(&x, &mut ctx).unwrap();
            layer.backward(&dy, &mut ctx, false).unwrap();
            flat(&params.grads)
        };
        let (once, twice) = (pass(), pass());
        close(&twice, &once.iter().map(|g| 2.0 * g).collect::<Vec<_>>(), "twice");
    }
}

#[test]
fn layer_norm_agrees_with_autograd() {
    for kernels in BOTH {
        let (x, g, b, dy) = (random(&[19, 33], "x"), random(&[33], "g"), random(&[33], "b"), random(&[19, 33], "dy"));
        let mut layer = LayerNorm { weight: Param::new("n.weight", g.clone()), bias: Param::new("n.bias", b.clone()), eps: 1e-5 };
        let params = Params::adopt(&CPU, &|_| true, &mut |f| layer.visit(f)).unwrap();
        let batch = sequences(&[19]);
        let mut ctx = Ctx::train(&batch, kernels, &[], Mode::Eval, Precision::F32, &params.grads);
        let y = layer.forward(&x, &mut ctx).unwrap();
        let dx = layer.backward(&dy, &mut ctx).unwrap();
        let [vx, vg, vb] = [&x, &g, &b].map(|t| Var::from_tensor(t).unwrap());
        let centred = vx.broadcast_sub(&vx.mean_keepdim(D::Minus1).unwrap()).unwrap();
        let variance = (centred.sqr().unwrap().mean_keepdim(D::Minus1).unwrap() + 1e-5).unwrap();
        let normed = centred.broadcast_div(&variance.sqrt().unwrap()).unwrap();
        let reference = normed.broadcast_mul(&vg).unwrap().broadcast_add(&vb).unwrap();
        close(&flat(&y), &flat(&reference), "y");
        let expected = autograd(&reference, &dy, &[&vx, &vg, &vb]);
        close(&flat(&dx), &expected[0], &format!("{kernels:?}: dx"));
        let grads = flat(&params.grads);
        for (info, expected) in params.infos.iter().zip(&expected[1..]) {
            close(&grads[info.slot.range()], expected, &format!("{kernels:?}: {}", info.name));
        }
    }
}

#[test]
fn embedding_agrees_with_autograd_and_leaves_other_rows_alone() {
    for kernels in BOTH {
        let (table, dy) = (random(&[13, 20], "table"), random(&[6, 20], "dy"));
        let ids = [3, 0, 3, 7, 12, 3];
        let mut layer = Embedding::new(Param::new("e.weight", table.clone()));
        let params = Params::adopt(&CPU, &|_| true, &mut |f| f(&mut layer.weight)).unwrap();
        let batch = sequences(&[6]);
        let ctx = Ctx::train(&batch, kernels, &[], Mode::Eval, Precision::F32, &params.grads);
        let y = layer.forward(&ids, &ctx).unwrap();
        layer.backward(&dy, &ids, &ctx).unwrap();
        let var = Var::from_tensor(&table).unwrap();
        let reference = var.index_select(&Tensor::new(&ids, &CPU).unwrap(), 0).unwrap();
        assert_eq!(flat(&y), flat(&reference));
        let grads = flat(&params.grads);
        close(&grads, &autograd(&reference, &dy, &[&var])[0], &format!("{kernels:?}"));
        assert!(grads[20..60].iter().all(|g| *g == 0.0), "rows 1 and 2 are not used");
        assert!(layer.forward(&[13], &ctx).unwrap_err().to_string().contains("13 rows"));
    }
}

#[test]
fn attention_agrees_with_autograd_within_each_sequence() {
    let lengths = [5, 1, 17];
    let batch = sequences(&lengths);
    let (heads, head_dim) = (3, 8);
    let layer = Attention::bidirectional(0, heads, head_dim, Dropout { p: 0.0, site: 1 });
    let [q, k, v, dout] = ["q", "k", "v", "dout"].map(|n| random(&[23, heads * head_dim], n));
    let vars = [&q, &k, &v].map(|t| Var::from_tensor(t).unwrap());
    let mut start = 0;
    let mut parts = Vec::new();
    for n in lengths {
        let [q, k, v] = vars
            .each_ref()
            .map(|x| x.narrow(0, start, n).unwrap().reshape((n, heads, head_dim)).unwrap().transpose(0, 1).unwrap().contiguous().unwrap());
        let scores = (q.matmul(&k.t().unwrap()).unwrap() / (head_dim as f64).sqrt()).unwrap();
        let exp = scores.exp().unwrap();
        let probabilities = exp.broadcast_div(&exp.sum_keepdim(D::Minus1).unwrap()).unwrap();
        let out = probabilities.matmul(&v).unwrap().transpose(0, 1).unwrap().contiguous().unwrap();
        parts.push(out.reshape((n, heads * head_dim)).unwrap());
        start += n;
    }
    let reference = Tensor::cat(&parts, 0).unwrap();
    let expected = autograd(&reference, &dout, &vars.each_ref());
    let none = Tensor::zeros(1, DType::F32, &CPU).unwrap();
    for kernels in BOTH {
        let mut ctx = Ctx::train(&batch, kernels, &[], Mode::Eval, Precision::F32, &none);
        let out = layer.forward(&q, &k, &v, &mut ctx).unwrap();
        close(&flat(&out), &flat(&reference), &format!("{kernels:?}: out"));
        let grads = layer.backward(&dout, &mut ctx).unwrap();
        for (ours, (theirs, name)) in grads.iter().zip(expected.iter().zip(["dq", "dk", "dv"])) {
            close(&flat(ours), theirs, &format!("{kernels:?}: {name}"));
        }
    }
}

#[test]
fn activations_agree_with_autograd() {
    let (x, dy) = (random(&[31, 9], "x"), random(&[31, 9], "dy"));
    let x = (x * 3.0).unwrap();
    let batch = sequences(&[31]);
    let none = Tensor::zeros(1, DType::F32, &CPU).unwrap();
    for name in ["gelu", "gelu_new", "relu", "tanh", "silu"] {
        let act = Act::by_name(name).unwrap();
        let var = Var::from_tensor(&x).unwrap();
        let reference = match name {
            "gelu" => var.gelu_erf(),
            "gelu_new" => var.gelu(),
            "relu" => var.relu(),
            "tanh" => var.tanh(),
            _ => var.silu(),
        };
        let reference = reference.unwrap();
        let expected = autograd(&reference, &dy, &[&var]);
        for kernels in BOTH {
            let mut ctx = Ctx::train(&batch, kernels, &[], Mode::Eval, Precision::F32, &none);
            close(&flat(&act.forward(&x, &mut ctx).unwrap()), &flat(&reference), &format!("{name} {kernels:?}"));
            close(&flat(&act.backward(&dy, &mut ctx).unwrap()), &expected[0], &format!("{name} {kernels:?}: dx"));
        }
    }
}

/// An adapter of one layer.
fn update(a: &Tensor, b: &Tensor, dropout: f32) -> Adapter {
    let mut adapter = Adapter::default();
    let layer = LoraLayer::new(0, Param::new("l.lora_A.weight", a.clone()), Param::new("l.lora_B.weight", b.clone()), 1.7, dropout);
    adapter.insert(0, layer.unwrap());
    adapter
}

#[test]
fn low_rank_updates_of_two_ranges_agree_with_autograd() {
    let (x, w, dy) = (random(&[23, 20], "x"), random(&[37, 20], "w"), random(&[23, 37], "dy"));
    let (a1, b1, a2, b2) = (random(&[4, 20], "a1"), random(&[37, 4], "b1"), random(&[6, 20], "a2"), random(&[37, 6], "b2"));
    let [vx, va1, vb1, va2, vb2] = [&x, &a1, &b1, &a2, &b2].map(|t| Var::from_tensor(t).unwrap());
    let plain = vx.matmul(&w.t().unwrap()).unwrap();
    let part = |rows: std::ops::Range<usize>, a: &Var, b: &Var| {
        let u = vx.narrow(0, rows.start, rows.len()).unwrap().matmul(&a.t().unwrap()).unwrap();
        ((u.matmul(&b.t().unwrap()).unwrap() * 1.7).unwrap() + plain.narrow(0, rows.start, rows.len()).unwrap()).unwrap()
    };
    // Rows 0..3 have no adapter.
    let reference = Tensor::cat(&[plain.narrow(0, 0, 3).unwrap(), part(3..10, &va1, &vb1), part(10..23, &va2, &vb2)], 0).unwrap();
    let expected = autograd(&reference, &dy, &[&vx, &va1, &vb1, &va2, &vb2]);
    for kernels in BOTH {
        let (mut first, mut second) = (update(&a1, &b1, 0.0), update(&a2, &b2, 0.0));
        let mut layer = Linear::new(0, Param::new("l.weight", w.clone()), None).unwrap();
        let params = Params::adopt(&CPU, &|p| p.name.contains("lora"), &mut |f| {
            first.visit(f)?;
            second.visit(f)
        })
        .unwrap();
        if kernels == Kernels::Native {
            layer.pack(Precision::F32, true).unwrap();
            first.pack(true).unwrap();
            second.pack(true).unwrap();
        }
        let batch = sequences(&[3, 7, 13]);
        let route = [LoraRange { rows: 3..10, adapter: &first }, LoraRange { rows: 10..23, adapter: &second }];
        let mut ctx = Ctx::train(&batch, kernels, &route, Mode::Eval, Precision::F32, &params.grads);
        let y = layer.forward(&x, &mut ctx).unwrap();
        close(&flat(&y), &flat(&reference), &format!("{kernels:?}: y"));
        let dx = layer.backward(&dy, &mut ctx, true).unwrap().unwrap();
        close(&flat(&dx), &expected[0], &format!("{kernels:?}: dx"));
        let grads = flat(&params.grads);
        for (info, expected) in params.infos.iter().zip(&expected[1..]) {
            close(&grads[info.slot.range()], expected, &format!("{kernels:?}: {}", info.name));
        }
    }
}

/// y, dx added to ones, and the gradients of an adapter's A and B, in bf16; the adapter has a range from each border to the next.
fn pass_of(layer: &Linear, adapter: &mut Adapter, borders: &[usize], mode: Mode) -> [Vec<f32>; 3] {
    let (x, dy) = (random(&[23, 64], "x"), random(&[23, 48], "dy"));
    let params = Params::adopt(&CPU, &|_| true, &mut |f| adapter.visit(f)).unwrap();
    adapter.pack(true).unwrap();
    let batch = sequences(&[23]);
    let route: Vec<LoraRange> = borders.windows(2).map(|w| LoraRange { rows: w[0]..w[1], adapter }).collect();
    let mut ctx = Ctx::train(&batch, Kernels::Native, &route, mode, Precision::Bf16, &params.grads);
    let y = layer.forward(&x, &mut ctx).unwrap();
    let onto = InputGrad::AddedTo(Tensor::ones((23, 64), DType::F32, &CPU).unwrap());
    let dx = layer.backward_onto(&dy, &mut ctx, onto).unwrap().unwrap();
    [flat(&y), flat(&dx), flat(&params.grads)]
}

#[test]
fn a_frozen_weight_gives_the_bits_of_a_plain_one_and_an_update_those_of_its_parts() {
    let (w, a, b) = (random(&[48, 64], "w"), random(&[5, 64], "a"), random(&[48, 5], "b"));
    let layer = |frozen: bool| {
        let mut layer = Linear::new(0, Param::new("l.weight", w.clone()), None).unwrap();
        if frozen {
            layer.pack_frozen().unwrap();
            assert_eq!(layer.weight.value.elem_count(), 0, "the plain copy is still held");
        }
        layer.pack(Precision::Bf16, true).unwrap();
        layer
    };
    for (mode, dropout) in [(Mode::Eval, 0.0), (Mode::Train { seed: 3, step: 1 }, 0.3)] {
        let run = |frozen, borders: &[usize]| pass_of(&layer(frozen), &mut update(&a, &b, dropout), borders, mode);
        let plain = run(false, &[0, 23]);
        assert_eq!(run(true, &[0, 23]), plain, "dropout {dropout}: frozen");
        let parts = run(false, &[0, 9, 23]);
        assert_eq!(parts[..2], plain[..2], "dropout {dropout}: parts");
        close(&parts[2], &plain[2], "gradients of parts");
    }
}

#[test]
fn a_gradient_is_added_to_another() {
    let (x, w, dy, other) = (random(&[9, 20], "x"), random(&[16, 20], "w"), random(&[9, 16], "dy"), random(&[9, 20], "other"));
    let expected = flat(&(dy.matmul(&w).unwrap() + &other).unwrap());
    for kernels in BOTH {
        let mut layer = Linear::new(0, Param::new("l.weight", w.clone()), None).unwrap();
        layer.pack(Precision::F32, true).unwrap();
        let (batch, none) = (sequences(&[9]), Tensor::zeros(1, DType::F32, &CPU).unwrap());
        let mut ctx = Ctx::train(&batch, kernels, &[], Mode::Eval, Precision::F32, &none);
        layer.forward(&x, &mut ctx).unwrap();
        let onto = InputGrad::AddedTo(other.copy().unwrap());
        let dx = layer.backward_from(&dy, &mut ctx, onto, |_| Ok(x.clone())).unwrap().unwrap();
        close(&flat(&dx), &expected, &format!("{kernels:?}"));
    }
}

#[test]
fn the_dropped_inputs_of_an_update_are_those_of_its_gradient() {
    // With x = 1 everywhere and a single row, dA is scale · (Bᵀdy) times the mask, and dx is (Bᵀdy)·A times the same mask.
    let (x, w) = (Tensor::ones((1, 64), DType::F32, &CPU).unwrap(), random(&[16, 64], "w"));
    let (a, b, dy) = (random(&[1, 64], "a"), random(&[16, 1], "b"), random(&[1, 16], "dy"));
    for kernels in BOTH {
        let run = |dropout: f32| {
            let mut adapter = update(&a, &b, dropout);
            let mut layer = Linear::new(0, Param::new("l.weight", w.clone()), None).unwrap();
            let params = Params::adopt(&CPU, &|_| true, &mut |f| adapter.visit(f)).unwrap();
            if kernels == Kernels::Native {
                layer.pack(Precision::F32, true).unwrap();
                adapter.pack(true).unwrap();
            }
            let batch = sequences(&[1]);
            let route = [LoraRange { rows: 0..1, adapter: &adapter }];
            let mut ctx = Ctx::train(&batch, kernels, &route, Mode::Train { seed: 3, step: 0 }, Precision::F32, &params.grads);
            let y = flat(&layer.forward(&x, &mut ctx).unwrap());
            let dx = flat(&layer.backward(&dy, &mut ctx, true).unwrap().unwrap());
            (y, dx, flat(&params.grads)[params.infos[0].slot.range()].to_vec())
        };
        let (plain, dropped) = (run(0.0), run(0.5));
        assert!(plain.0 != dropped.0);
        let zeros = dropped.2.iter().filter(|g| **g == 0.0).count();
        assert!((16..48).contains(&zeros), "{kernels:?}: {zeros} of 64 inputs were dropped");
        let base = dy.matmul(&w).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (i, base) in base.iter().enumerate() {
            let keep = if dropped.2[i] == 0.0 { 0.0 } else { 2.0 };
            assert!((dropped.2[i] - keep * plain.2[i]).abs() < 1e-4, "{kernels:?}: dA {i}");
            let from_update = (dropped.1[i] - base, plain.1[i] - base);
            assert!((from_update.0 - keep * from_update.1).abs() < 1e-3, "{kernels:?}: dx {i}");
        }
    }
}

#[test]
fn a_backward_pass_without_its_forward_pass_is_an_error() {
    let layer = LayerNorm { weight: Param::new("w", random(&[4], "w")), bias: Param::new("b", random(&[4], "b")), eps: 1e-5 };
    let none = Tensor::zeros(1, DType::F32, &CPU).unwrap();
    let batch = sequences(&[2]);
    let mut ctx = Ctx::train(&batch, Kernels::Native, &[], Mode::Eval, Precision::F32, &none);
    let error = layer.backward(&random(&[2, 4], "dy"), &mut ctx).unwrap_err().to_string();
    assert!(error.contains("tape is empty"), "{error}");
}
