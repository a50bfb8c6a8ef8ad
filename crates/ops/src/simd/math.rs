//! The exponential, tanh and the normal distribution's tail on vectors, for activations and attention.
//!
//! Polynomials fitted for this crate; each function is within about two units in the last place (the tail: 1e-8 absolute).
//! NaN goes in and comes out, so that a diverged training run shows itself.

use super::Simd;

/// c[0] + x·(c[1] + x·(…)).
#[inline(always)]
fn horner<S: Simd, const N: usize>(s: S, x: S::F, c: [f32; N]) -> S::F {
    let mut y = s.splat(c[N - 1]);
    for i in (0..N - 1).rev() {
        y = s.fma(y, x, s.splat(c[i]));
    }
    y
}

/// The absolute value.
#[inline(always)]
pub fn abs<S: Simd>(s: S, x: S::F) -> S::F {
    s.float(s.iand(s.bits(x), s.isplat(0x7fff_ffff)))
}

/// x limited to ±limit; NaN stays.
#[inline(always)]
pub fn clamp<S: Simd>(s: S, x: S::F, limit: f32) -> S::F {
    s.max(s.splat(-limit), s.min(s.splat(limit), x))
}

/// eˣ: 0 below −87.3, and constant above 88.3 rather than infinite.
#[inline(always)]
pub fn exp<S: Simd>(s: S, x: S::F) -> S::F {
    const SMALLEST: f32 = -87.3;
    let within = s.max(s.splat(SMALLEST), s.min(s.splat(88.3), x));
    // eˣ = 2ⁿ · eʳ with |r| ≤ ln 2 / 2; ln 2 in two parts, the first with few enough bits that n times it is exact.
    let n = s.round(s.mul(within, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), within);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let tail = horner(s, r, [0.5, 0.166_665_2, 0.041_666_206, 0.008_368_89, 0.001_395_049]);
    let mantissa = s.add(s.fma(s.mul(r, r), tail, r), s.splat(1.0));
    let power = s.float(s.shl::<23>(s.iadd(s.to_int(n), s.isplat(127))));
    s.select_lt(x, s.splat(SMALLEST), s.splat(0.0), s.mul(mantissa, power))
}

/// The hyperbolic tangent.
#[inline(always)]
pub fn tanh<S: Simd>(s: S, x: S::F) -> S::F {
    let a = abs(s, x);
    let e = exp(s, s.mul(a, s.splat(-2.0)));
    let far = s.div(s.sub(s.splat(1.0), e), s.add(s.splat(1.0), e));
    // Near 0 the difference above would cancel: a + a³ · P(a²).
    let u = s.mul(a, a);
    let p = horner(s, u, TANH);
    let near = s.fma(s.mul(a, u), p, a);
    let magnitude = s.select_lt(a, s.splat(0.625), near, far);
    s.float(s.ior(s.bits(magnitude), s.iand(s.bits(x), s.isplat(0x8000_0000))))
}

const TANH: [f32; 5] = [-0.333_332_4, 0.133_305_45, -0.053_676_333, 0.020_456_486, -0.005_519_935_6];

/// The normal distribution's density times √2π, and its tail: e^(−a²/2) and Φ(−a), for a ≥ 0.
///
/// The tail is the density times a rational of a, so its error relative to itself stays small where the tail is tiny.
#[inline(always)]
pub fn normal_tail<S: Simd>(s: S, a: S::F) -> (S::F, S::F) {
    const TAIL: [f32; 7] = [0.107_790_134, 0.072_884_34, 0.186_806_35, -0.031_789_64, 0.086_250_78, 0.130_087_33, -0.052_029_333];
    let density = exp(s, s.mul(s.mul(a, a), s.splat(-0.5)));
    let t = s.div(s.splat(1.0), s.fma(a, s.splat(0.26), s.splat(1.0)));
    let tail = s.mul(density, s.mul(t, horner(s, t, TAIL)));
    (density, tail)
}

/// 1 / (1 + e⁻ˣ) and e⁻ˣ / (1 + e⁻ˣ).
#[inline(always)]
pub fn sigmoid<S: Simd>(s: S, x: S::F) -> (S::F, S::F) {
    let e = exp(s, s.sub(s.splat(0.0), x));
    let up = s.div(s.splat(1.0), s.add(s.splat(1.0), e));
    (up, s.mul(e, up))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::dispatch;

    dispatch! { fn exp_of(x: &[f32], y: &mut [f32]) = exp_with; }

    #[inline(always)]
    fn exp_with<S: Simd>(s: S, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.chunks(S::LANES).zip(y.chunks_mut(S::LANES)) {
            s.store_some(exp(s, s.load_some(x)), y);
        }
    }

    #[test]
    fn the_exponential_is_within_two_units_in_the_last_place() {
        let x: Vec<f32> = (-87_000..88_000).map(|i| i as f32 / 1_000.0).collect();
        let mut y = vec![0.0; x.len()];
        exp_of(&x, &mut y);
        for (&x, &y) in x.iter().zip(&y) {
            let expected = f64::from(x).exp();
            assert!((f64::from(y) / expected - 1.0).abs() <= 2.0 * f64::from(f32::EPSILON), "exp({x}) = {y}, not {expected}");
        }
    }

    #[test]
    fn the_exponential_is_exact_at_0_and_ends_in_0_and_keeps_nan() {
        let mut y = [9.0; 5];
        exp_of(&[0.0, -88.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN], &mut y);
        assert_eq!(y[..3], [1.0, 0.0, 0.0]);
        assert!(y[3] > 2e38 && y[4].is_nan());
    }
}
