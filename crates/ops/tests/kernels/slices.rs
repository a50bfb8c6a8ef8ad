//! The kernels without structure: sums, embeddings, bf16 conversion, the optimiser.

use crate::values::{assert_close, bits, on_any_threads, random};
use half::bf16;
use tunesmith_ops::elementwise::{add, add_assign, column_sums, scale, sum_squares};
use tunesmith_ops::embedding::{gather, scatter_add};
use tunesmith_ops::half::{from_bf16, to_bf16};
use tunesmith_ops::optim::{AdamW, adamw};
use tunesmith_ops::threads::build_pool;

#[test]
fn sums_and_scalings_equal_scalar_arithmetic_bit_for_bit() {
    for n in [0, 1, 17, 40_001] {
        let (a, b) = (random(n, 1), random(n, 2));
        let expected: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        let mut y = vec![9.0; n];
        add(&a, &b, &mut y);
        assert_eq!(bits(&y), bits(&expected));
        let mut y = a.clone();
        add_assign(&mut y, &b);
        assert_eq!(bits(&y), bits(&expected));
        scale(&mut y, -0.3);
        assert_eq!(bits(&y), bits(&expected.iter().map(|v| v * -0.3).collect::<Vec<_>>()));
    }
}

#[test]
fn column_sums_add_rows_in_order() {
    for (rows, n) in [(0, 3), (1, 1), (7, 130), (50, 384)] {
        let dy = random(rows * n, 3);
        let mut expected = vec![0.5f32; n];
        for row in dy.chunks_exact(n) {
            expected.iter_mut().zip(row).for_each(|(e, d)| *e += d);
        }
        let out = on_any_threads(|| {
            let mut out = vec![0.5; n];
            column_sums(&dy, n, &mut out);
            out
        });
        assert_eq!(bits(&out), bits(&expected));
    }
}

#[test]
fn the_sum_of_squares_is_exact_and_the_same_on_any_number_of_threads() {
    for n in [0, 1, 15, 16_384, 100_003] {
        let x = random(n, 5);
        let expected: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
        let one = build_pool(1).unwrap().install(|| sum_squares(&x));
        let three = build_pool(3).unwrap().install(|| sum_squares(&x));
        assert_eq!(one.to_bits(), three.to_bits());
        assert!((one - expected).abs() <= 1e-12 * expected, "{one} is not {expected}");
    }
}

#[test]
fn gathered_rows_are_the_table_rows_and_gradients_return_to_them() {
    let (rows, dim) = (10, 70);
    let table = random(rows * dim, 1);
    let ids: Vec<u32> = (0..100u32).map(|i| i * i % 9).collect();
    let mut y = vec![1.0; ids.len() * dim];
    gather(&table, dim, &ids, &mut y, false);
    for (y, &id) in y.chunks_exact(dim).zip(&ids) {
        assert_eq!(y, &table[id as usize * dim..][..dim]);
    }
    let before = y.clone();
    gather(&table, dim, &ids, &mut y, true);
    assert!(y.iter().zip(&before).all(|(y, b)| *y == b + b));

    let dy = random(ids.len() * dim, 2);
    let mut expected = vec![0.25f32; rows * dim];
    for (dy, &id) in dy.chunks_exact(dim).zip(&ids) {
        expected[id as usize * dim..][..dim].iter_mut().zip(dy).for_each(|(w, d)| *w += d);
    }
    let table_gradient = on_any_threads(|| {
        let mut d = vec![0.25; rows * dim];
        scatter_add(&dy, dim, &ids, &mut d);
        d
    });
    assert_eq!(bits(&table_gradient), bits(&expected));
}

#[test]
#[should_panic(expected = "gather: id 3 is beyond the table's 3 rows")]
fn an_id_beyond_the_table_is_named() {
    gather(&[0.0; 6], 2, &[0, 3], &mut [0.0; 4], false);
}

#[test]
#[should_panic(expected = "scatter_add: id 7 is beyond the table's 3 rows")]
fn a_gradient_for_an_id_beyond_the_table_is_refused() {
    scatter_add(&[0.0; 2], 2, &[7], &mut [0.0; 6]);
}

#[test]
fn bf16_rounds_to_nearest_even_like_the_half_crate() {
    let mut x = random(5_000, 1);
    // Ties, overflow to infinity, subnormals, both zeros, infinities, NaNs with low bits only.
    let special =
        [0x3f80_8000, 0x3f81_8000, 0x7f7f_ffff, 0x0000_8000, 0x8000_0001, 0x8000_0000, 0x7f80_0000, 0xff80_0000, 0x7f80_0001, 0xffff_ffff];
    x.extend(special.map(f32::from_bits));
    let mut y = vec![bf16::ZERO; x.len()];
    to_bf16(&x, &mut y);
    for (&x, &y) in x.iter().zip(&y) {
        assert_eq!(y.to_bits(), bf16::from_f32(x).to_bits(), "{x} ({:#x})", x.to_bits());
    }
    let mut back = vec![0.0; x.len()];
    from_bf16(&y, &mut back);
    assert!(back.iter().zip(&y).all(|(b, y)| b.to_bits() >> 16 == u32::from(y.to_bits()) && b.to_bits() & 0xffff == 0));
}

/// torch.optim.AdamW in f64, several steps over one parameter each.
fn adamw_twin(cfg: AdamW, steps: u64, master: &[f32], gradients: &[Vec<f32>], clip: f64) -> Vec<f64> {
    let (lr, beta1, beta2) = (f64::from(cfg.lr), f64::from(cfg.beta1), f64::from(cfg.beta2));
    let one = |i: usize| {
        let (mut w, mut m, mut v) = (f64::from(master[i]), 0.0, 0.0);
        for step in 1..=steps {
            let g = f64::from(gradients[step as usize - 1][i]) * clip;
            w *= 1.0 - lr * f64::from(cfg.weight_decay);
            m = beta1 * m + (1.0 - beta1) * g;
            v = beta2 * v + (1.0 - beta2) * g * g;
            let (m_hat, v_hat) = (m / (1.0 - beta1.powi(step as i32)), v / (1.0 - beta2.powi(step as i32)));
            w -= lr * m_hat / (v_hat.sqrt() + f64::from(cfg.eps));
        }
        w
    };
    (0..master.len()).map(one).collect()
}

#[test]
fn adamw_follows_torch_over_several_steps() {
    let n = 20_011;
    let cfg = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 0 };
    let master = random(n, 1);
    let gradients: Vec<Vec<f32>> = (0..6).map(|i| random(n, 10 + i)).collect();
    let updated = on_any_threads(|| {
        let (mut w, mut m, mut v) = (master.clone(), vec![0.0; n], vec![0.0; n]);
        for (i, g) in gradients.iter().enumerate() {
            let mut g = g.clone();
            adamw(&AdamW { step: i as u64 + 1, ..cfg }, &mut w, &mut g, 0.5, &mut m, &mut v);
            assert!(g.iter().all(|g| *g == 0.0), "the next step's gradients are added to zeros");
        }
        w
    });
    assert_close("weights", &updated, &adamw_twin(cfg, 6, &master, &gradients, 0.5), 1e-6);
}

#[test]
fn weights_without_decay_and_gradient_do_not_move() {
    let (mut w, mut m, mut v) = (vec![0.3; 5], vec![0.0; 5], vec![0.0; 5]);
    let cfg = AdamW { lr: 0.1, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 1 };
    adamw(&cfg, &mut w, &mut [0.0; 5], 1.0, &mut m, &mut v);
    assert_eq!(w, [0.3; 5]);
}
