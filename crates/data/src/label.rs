//! What a label is called. The summary counts labels by this name, `plan` gives ids to the names, `load` looks them up, so
//! that 1, "1" and "1.0" of a CSV are one class in all three places.

use serde_json::{Number, Value};

/// Name of a label value: text without surrounding space, numbers in their shortest form. `None` for what is no label: null,
/// objects and lists.
pub(crate) fn label_name(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(number) => Some(number_name(number)),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Whether a row's value is the one that is asked for: 1 and 1.0 are one number, and a number is also what spells it in a text.
pub fn is_value(found: &Value, wanted: &Value) -> bool {
    match (label_name(found), label_name(wanted)) {
        (Some(found), Some(name)) => {
            found == name || (wanted.is_number() && spelled_number_name(&found).is_some_and(|spelled| spelled == name))
        }
        _ => found == wanted,
    }
}

/// `1`, `1.0` and `1e0` are "1"; `2.5` is "2.5".
fn number_name(number: &Number) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => float_name(float),
        _ => number.to_string(),
    }
}

fn float_name(float: f64) -> String {
    // Beyond this, not every integer is a float, and the digits would claim a precision that is not there.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if float.fract() == 0.0 && float.abs() < EXACT { format!("{}", float as i64) } else { float.to_string() }
}

/// The number that a cell of CSV spells, if it spells one as a number is written: no leading zeros (codes such as 007), no
/// words such as inf and nan.
pub(crate) fn spelled_number(text: &str) -> Option<f64> {
    let text = text.trim();
    let digits = text.strip_prefix('-').unwrap_or(text);
    let whole = &digits[..digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len())];
    let plain = !whole.is_empty() && (whole == "0" || !whole.starts_with('0')) && digits.ends_with(|c: char| c.is_ascii_digit());
    if !plain {
        return None;
    }
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

/// The name that a spelled number has as a number: "1.0" is "1". Integers keep all their digits, however many.
pub(crate) fn spelled_number_name(text: &str) -> Option<String> {
    let number = spelled_number(text)?;
    let (whole, fraction) = text.trim().split_once('.').unwrap_or((text.trim(), ""));
    let integer = whole.trim_start_matches('-').bytes().all(|byte| byte.is_ascii_digit());
    if integer && fraction.bytes().all(|byte| byte == b'0') {
        let zero = whole == "-0";
        return Some(if zero { "0" } else { whole }.to_owned());
    }
    Some(float_name(number))
}

/// Whether a cell of CSV or TSV is written as tables write a missing value.
pub(crate) fn is_missing_cell(text: &str) -> bool {
    let text = text.trim();
    text.is_empty() || is_null_word(text) || matches!(text, "NA" | "None")
}

/// The words for a missing value that nobody uses as the name of a class.
pub(crate) fn is_null_word(text: &str) -> bool {
    matches!(text.trim(), "NaN" | "nan" | "null" | "NULL")
}

/// Numbers by value before all other names, those by their bytes.
pub(crate) fn sort_labels(names: &mut [String]) {
    names.sort_by(|a, b| match (spelled_number(a), spelled_number(b)) {
        (Some(x), Some(y)) => x.total_cmp(&y).then_with(|| a.cmp(b)),
        (Some(_), None) => std::cmp::Ordering::Less,
        (None, Some(_)) => std::cmp::Ordering::Greater,
        (None, None) => a.cmp(b),
    });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    #[test]
    fn a_number_is_asked_for_in_any_spelling_and_a_text_as_it_is() {
        for (found, wanted) in
            [(json!(1), json!(1.0)), (json!(1.0), json!(1)), (json!("1.0"), json!(1)), (json!("1"), json!(1.0)), (json!(1), json!("1"))]
        {
            assert!(is_value(&found, &wanted), "{found} {wanted}");
        }
        for (found, wanted) in [(json!("1.10"), json!("1.1")), (json!(1.5), json!(1)), (json!("007"), json!(7)), (json!([1]), json!(1))] {
            assert!(!is_value(&found, &wanted), "{found} {wanted}");
        }
    }

    use super::*;

    #[test]
    fn equal_numbers_have_one_name() {
        for value in [json!(1), json!("1"), json!(1.0), json!(" 1\r")] {
            assert_eq!(label_name(&value).unwrap(), "1");
        }
        assert_eq!(label_name(&json!(2.5)).unwrap(), "2.5");
        assert_eq!(label_name(&json!(u64::MAX)).unwrap(), u64::MAX.to_string());
        assert_eq!(label_name(&json!(-0.0)).unwrap(), "0");
        assert_eq!(label_name(&json!(true)).unwrap(), "true");
        assert_eq!(label_name(&json!(null)), None);
    }

    #[test]
    fn codes_and_words_are_no_numbers() {
        for text in ["007", "inf", "nan", "1.", ".5", "+1", "", "-", "1 2", "0x1", "1e999"] {
            assert_eq!(spelled_number(text), None, "{text}");
        }
        for (text, number) in [("0", 0.0), (" 1.50 ", 1.5), ("-3", -3.0), ("1e3", 1000.0)] {
            assert_eq!(spelled_number(text), Some(number), "{text}");
        }
    }

    #[test]
    fn integers_of_many_digits_stay_apart() {
        let name = |text| spelled_number_name(text).unwrap();
        assert_eq!(name("9007199254740993"), "9007199254740993");
        assert_eq!(name("12345678901234567890.00"), "12345678901234567890");
        assert_eq!((name("-0.0"), name("1e1"), name("-2.50")), ("0".into(), "10".into(), "-2.5".into()));
    }

    #[test]
    fn numbers_are_sorted_by_value() {
        let mut names: Vec<String> = ["10", "9", "9.5", "-1", "b", "a", "B"].map(String::from).to_vec();
        sort_labels(&mut names);
        assert_eq!(names, ["-1", "9", "9.5", "10", "B", "a", "b"]);
    }
}
