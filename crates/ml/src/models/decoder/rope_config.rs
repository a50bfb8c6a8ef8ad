//! Position encodings of a configuration: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (4).

use serde_json::{Map, Value};

use super::config::{DecoderFamily, Fields};
use crate::error::{MlError, Result};
use crate::nn::Rope;

/// The ropes of a model: one, or for Gemma 3 that of its full layers and that of its sliding ones.
pub(super) fn rope_of(family: DecoderFamily, f: &Fields, head_dim: usize) -> Result<Vec<Rope>> {
    let empty = Map::new();
    let section = |name: &str| f.0.get(name).and_then(Value::as_object);
    let new = section("rope_parameters");
    let positions = f.size("max_position_embeddings")?.unwrap_or(2048);
    let one = |parameters: &Map<String, Value>, base: f64| rope(&Fields(parameters), base, head_dim, positions);
    let base = f.number("rope_theta")?;
    if family != DecoderFamily::Gemma3 {
        let parameters = new.or(section("rope_scaling")).unwrap_or(&empty);
        return Ok(vec![one(parameters, base.unwrap_or(10_000.0))?]);
    }
    let by_kind = |kind: &str| new.and_then(|n| n.get(kind)).and_then(Value::as_object);
    let full = by_kind("full_attention").or(section("rope_scaling")).unwrap_or(&empty);
    let local = by_kind("sliding_attention").unwrap_or(&empty);
    let local_base = f.number("rope_local_base_freq")?.unwrap_or(10_000.0);
    Ok(vec![one(full, base.unwrap_or(1_000_000.0))?, one(local, local_base)?])
}

fn rope(f: &Fields, base: f64, head_dim: usize, positions: usize) -> Result<Rope> {
    let base = f.number("rope_theta")?.unwrap_or(base);
    let share = f.number("partial_rotary_factor")?.unwrap_or(1.0);
    let rotary = (head_dim as f64 * share) as usize;
    if rotary == 0 || rotary > head_dim || !rotary.is_multiple_of(2) || base.is_nan() || base <= 1.0 {
        return Err(MlError::Format(format!("rope: {rotary} of {head_dim} dimensions with base {base} cannot be turned")));
    }
    let plain = Rope::plain(base, rotary);
    let kind = f.text("rope_type")?.or(f.text("type")?).unwrap_or_else(|| "default".to_owned());
    let needed = |name: &str| f.number(name)?.ok_or_else(|| MlError::Format(format!("rope_scaling.{name} is missing")));
    let original = f.number("original_max_position_embeddings")?.unwrap_or(positions as f64);
    match kind.as_str() {
        // The dynamic form changes nothing up to the length that the model was made for, and nothing longer is served.
        "default" | "dynamic" => Ok(plain),
        "linear" => {
            let factor = needed("factor")? as f32;
            Ok(Rope { inv_freq: plain.inv_freq.iter().map(|v| v / factor).collect(), ..plain })
        }
        "llama3" => {
            let [factor, low, high] = [needed("factor")?, needed("low_freq_factor")?, needed("high_freq_factor")?];
            Ok(llama3(&plain, factor, low, high, original))
        }
        "yarn" => yarn(f, base, rotary, needed("factor")?, original),
        other => Err(MlError::Format(format!("rope_type {other:?} is not supported; supported: default, linear, dynamic, llama3, yarn"))),
    }
}

/// Llama 3.1's: slow pairs are slowed down, fast ones are not, those between in part.
fn llama3(plain: &Rope, factor: f64, low: f64, high: f64, original: f64) -> Rope {
    let scaled = |v: &f32| {
        let v = f64::from(*v);
        let wavelength = std::f64::consts::TAU / v;
        if wavelength < original / high {
            v as f32
        } else if wavelength > original / low {
            (v / factor) as f32
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            ((1.0 - smooth) * v / factor + smooth * v) as f32
        }
    };
    Rope { inv_freq: plain.inv_freq.iter().map(scaled).collect(), factor: 1.0 }
}

/// Peng et al. 2023, as `transformers` computes it.
fn yarn(f: &Fields, base: f64, rotary: usize, factor: f64, original: f64) -> Result<Rope> {
    let mscale = |scale: f64, m: f64| if scale <= 1.0 { 1.0 } else { 0.1 * m * scale.ln() + 1.0 };
    let attention = match (f.number("attention_factor")?, f.number("mscale")?, f.number("mscale_all_dim")?) {
        (Some(given), ..) => given,
        (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => mscale(factor, m) / mscale(factor, all),
        _ => mscale(factor, 1.0),
    };
    let dim = rotary as f64;
    let turns_at = |rotations: f64| dim * (original / (rotations * std::f64::consts::TAU)).ln() / (2.0 * base.ln());
    let low = turns_at(f.number("beta_fast")?.unwrap_or(32.0)).floor().max(0.0);
    let high = turns_at(f.number("beta_slow")?.unwrap_or(1.0)).ceil().min(dim - 1.0);
    let high = if low == high { high + 0.001 } else { high };
    let pair = |i: usize| {
        let slow = 1.0 / base.powf(2.0 * i as f64 / dim);
        let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        (slow / factor * ramp + slow * (1.0 - ramp)) as f32
    };
    Ok(Rope { inv_freq: (0..rotary / 2).map(pair).collect(), factor: attention as f32 })
}
