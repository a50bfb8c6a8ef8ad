//! Filters that Jinja has in another form than the engine: `default` with its named argument, and `int` and `float`, which give a
//! default instead of failing.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, Value};

/// `value | default(default_value="", boolean=false)`.
pub(super) fn default(value: Value, other: Option<Value>, boolean: Option<bool>, kwargs: Kwargs) -> Result<Value, Error> {
    let other = match other {
        Some(other) => other,
        None => kwargs.get::<Option<Value>>("default_value")?.unwrap_or_else(|| Value::from("")),
    };
    let boolean = match boolean {
        Some(boolean) => boolean,
        None => kwargs.get::<Option<bool>>("boolean")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    let absent = value.is_undefined() || (boolean && !value.is_true());
    Ok(if absent { other } else { value })
}

/// `value | int(default=0)`.
pub(super) fn int(value: Value, other: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let other = fallback(other, &kwargs, Value::from(0))?;
    kwargs.assert_all_used()?;
    Ok(match value.kind() {
        ValueKind::Bool => Value::from(i64::from(value.is_true())),
        ValueKind::Number if value.is_integer() => value,
        _ => match number(&value) {
            // Python cuts towards zero; beyond i64 nobody counts in a chat template.
            Some(number) if number.is_finite() => Value::from(number as i64),
            _ => other,
        },
    })
}

/// `value | float(default=0.0)`.
pub(super) fn float(value: Value, other: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let other = fallback(other, &kwargs, Value::from(0.0))?;
    kwargs.assert_all_used()?;
    Ok(number(&value).map_or(other, Value::from))
}

fn fallback(other: Option<Value>, kwargs: &Kwargs, zero: Value) -> Result<Value, Error> {
    match other {
        Some(other) => Ok(other),
        None => Ok(kwargs.get::<Option<Value>>("default")?.unwrap_or(zero)),
    }
}

fn number(value: &Value) -> Option<f64> {
    match value.as_str() {
        Some(text) => text.trim().parse().ok(),
        None => f64::try_from(value.clone()).ok(),
    }
}
