//! Dropout: the rate is right, masks are reproducible, and neighbours in any direction are unrelated.

use crate::values::{bits, on_any_threads};
use tunesmith_ops::dropout::{DropoutKey, dropout};

const ROWS: usize = 256;
const DIM: usize = 384;

/// 1 where an element is dropped.
fn mask(key: DropoutKey, first_row: u64) -> Vec<f32> {
    let ids: Vec<u64> = (first_row..first_row + ROWS as u64).collect();
    let mut x = vec![1.0; ROWS * DIM];
    dropout(&mut x, DIM, &ids, key);
    x.iter().map(|&v| f32::from(u8::from(v == 0.0))).collect()
}

fn key(p: f32) -> DropoutKey {
    DropoutKey { seed: 42, step: 3, site: 5, p }
}

/// The correlation of two masks of one rate: about 0 ± 1/√n for unrelated ones.
fn correlation(a: &[f32], b: &[f32], p: f32) -> f32 {
    let n = a.len() as f32;
    a.iter().zip(b).map(|(a, b)| (a - p) * (b - p)).sum::<f32>() / (n * p * (1.0 - p))
}

#[test]
fn the_share_of_dropped_elements_is_p_in_every_row_and_column() {
    for p in [0.05, 0.1, 0.5, 0.9] {
        let m = mask(key(p), 0);
        let total = m.iter().sum::<f32>() / m.len() as f32;
        assert!((total - p).abs() < 0.005, "p = {p}: {total}");
        // Five standard deviations, for 256 rows and 384 columns at once.
        let off = |n: usize| 5.0 * (p * (1.0 - p) / n as f32).sqrt();
        for row in m.chunks_exact(DIM) {
            assert!((row.iter().sum::<f32>() / DIM as f32 - p).abs() < off(DIM), "a row's share at p = {p}");
        }
        for c in 0..DIM {
            let share = m.iter().skip(c).step_by(DIM).sum::<f32>() / ROWS as f32;
            assert!((share - p).abs() < off(ROWS), "column {c} at p = {p}: {share}");
        }
    }
}

#[test]
fn neighbouring_rows_columns_sites_steps_and_seeds_are_unrelated() {
    let p = 0.3;
    let m = mask(key(p), 0);
    let others = [
        ("the next row", mask(key(p), 1)),
        ("the next site", mask(DropoutKey { site: 6, ..key(p) }, 0)),
        ("the next step", mask(DropoutKey { step: 4, ..key(p) }, 0)),
        ("the next seed", mask(DropoutKey { seed: 43, ..key(p) }, 0)),
        ("seed and step exchanged", mask(DropoutKey { seed: 3, step: 42, ..key(p) }, 0)),
        ("a far row", mask(key(p), 1 << 40)),
    ];
    let limit = 5.0 / (m.len() as f32).sqrt();
    for (what, other) in &others {
        let c = correlation(&m, other, p);
        assert!(c.abs() < limit, "{what}: correlation {c}");
    }
    for lag in [1, 2, 16, DIM] {
        let c = correlation(&m[lag..], &m[..m.len() - lag], p);
        assert!(c.abs() < limit, "columns {lag} apart: correlation {c}");
    }
}

#[test]
fn rows_are_not_permutations_of_each_other() {
    // A weak mix of row and column would give rows whose ids differ in few bits the same elements in another order.
    let m = mask(key(0.5), 0);
    let counts: std::collections::BTreeSet<u32> = m.chunks_exact(DIM).map(|row| row.iter().sum::<f32>() as u32).collect();
    assert!(counts.len() > 20, "256 rows have only {} different numbers of dropped elements", counts.len());
}

#[test]
fn kept_elements_are_scaled_and_the_gradient_gets_the_same_mask() {
    let ids = [9, 1 << 50, 3];
    let mut x: Vec<f32> = (1..=96).map(|v| v as f32).collect();
    let mut gradient = vec![1.0; 96];
    let before = x.clone();
    dropout(&mut x, 32, &ids, key(0.2));
    dropout(&mut gradient, 32, &ids, key(0.2));
    for ((&x, &before), &g) in x.iter().zip(&before).zip(&gradient) {
        assert!(x == 0.0 && g == 0.0 || x == before * g && g == 1.0 / (1.0 - 0.2), "{before} became {x} with factor {g}");
    }
}

#[test]
fn a_row_keeps_its_mask_wherever_it_stands() {
    let whole = mask(key(0.4), 0);
    let later = mask(key(0.4), 100);
    assert_eq!(bits(&whole[100 * DIM..]), bits(&later[..(ROWS - 100) * DIM]));
    on_any_threads(|| mask(key(0.4), 0));
}

#[test]
fn nothing_is_dropped_at_0_and_everything_at_1() {
    let mut x = [2.0, -3.0];
    dropout(&mut x, 2, &[1], key(0.0));
    assert_eq!(x, [2.0, -3.0]);
    let mut x = vec![1.0; 4096];
    dropout(&mut x, 4096, &[1], key(1.0));
    assert!(x.iter().all(|&v| v == 0.0));
}
