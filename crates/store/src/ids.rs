//! Ids and names: typed, sortable by time of creation, made without coordination.
//!
//! Called wherever a row is made or named. The one thing to know: an id is a prefix and a UUIDv7 in
//! hexadecimal, so the order of ids is the order of creation, and lists page by id alone.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use uuid::{ContextV7, Timestamp, Uuid};

use crate::{Clock, StoreError};

/// One counter for all ids of a process: ids stay in order when the wall clock jumps back.
static ORDER: Mutex<Option<ContextV7>> = Mutex::new(None);

fn new_uuid(clock: &dyn Clock) -> Uuid {
    let mut order = ORDER.lock().unwrap_or_else(PoisonError::into_inner);
    let order = order.get_or_insert_with(ContextV7::new);
    let ms = u64::try_from(clock.now_ms()).unwrap_or(0);
    // The remainder is below 1,000, so the product is below 10^9 and fits.
    let nanos = u32::try_from(ms % 1000 * 1_000_000).unwrap_or(0);
    Uuid::new_v7(Timestamp::from_unix(&*order, ms / 1000, nanos))
}

macro_rules! id {
    ($name:ident, $prefix:literal, $what:literal) => {
        #[doc = concat!("The id of ", $what, ": `", $prefix, "` and a UUIDv7 without dashes.")]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(Uuid);

        impl $name {
            /// How ids of this kind start.
            pub const PREFIX: &'static str = $prefix;

            /// A new id at the clock's wall time, greater than every id that this process made
            /// before.
            pub fn generate(clock: &dyn Clock) -> Self {
                Self(new_uuid(clock))
            }

            /// The UUID behind the prefix.
            pub fn uuid(&self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", $prefix, self.0.simple())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = StoreError;

            fn from_str(text: &str) -> Result<Self, StoreError> {
                parse_uuid(text, $prefix).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = StoreError;

            fn try_from(text: String) -> Result<Self, StoreError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

id!(FileId, "file-", "a file");
id!(JobId, "ftjob-", "a fine-tuning job");
id!(EventId, "ftevent-", "an event");
id!(CheckpointId, "ftckpt-", "a checkpoint");

/// Accepts exactly what `Display` writes, so that one id has one spelling.
fn parse_uuid(text: &str, prefix: &'static str) -> Result<Uuid, StoreError> {
    let bad = || StoreError::BadId { prefix, given: text.chars().take(80).collect() };
    let hex = text.strip_prefix(prefix).ok_or_else(bad)?;
    let canonical = hex.len() == 32 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if !canonical {
        return Err(bad());
    }
    Uuid::try_parse(hex).map_err(|_| bad())
}

/// The name of the model that a job makes: `ft:<base>:<suffix>:<id>`.
///
/// The base is the last segment of its path in lower case, the suffix may be empty, the id is the
/// last 12 characters of the job's UUID in base32 (RFC 4648 letters in lower case, no padding),
/// which are random bits.
pub fn model_name(base: &str, suffix: Option<&str>, job: JobId) -> String {
    // A colon ends a source's scheme (`file:`), and separates the parts of our own names.
    let base = base.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or(base).to_lowercase();
    format!("ft:{base}:{}:{}", suffix.unwrap_or(""), short_id(job.uuid()))
}

/// The name of a checkpoint of a model: `<model>:ckpt-step-<step>`.
pub fn checkpoint_name(model: &str, step: i64) -> String {
    format!("{model}:ckpt-step-{step}")
}

/// Splits a checkpoint's name into its model and its step; `None` for any other name.
pub fn split_checkpoint_name(name: &str) -> Option<(&str, i64)> {
    let (model, step) = name.rsplit_once(":ckpt-step-")?;
    let digits = !step.is_empty() && step.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| step.parse().ok()).flatten().map(|step| (model, step))
}

/// 128 bits are 26 base32 characters of which the first holds 3 bits; the last 12 hold the lowest
/// 60 bits.
fn short_id(uuid: Uuid) -> String {
    const LETTERS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let bits = uuid.as_u128();
    (0..12).rev().map(|i| char::from(LETTERS[(bits >> (5 * i) & 31) as usize])).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::TestClock;

    #[test]
    fn ids_grow_even_when_the_wall_clock_jumps_back() {
        let clock = TestClock::at(1_700_000_000_000);
        let mut last = FileId::generate(&clock);
        for i in 0..2_000 {
            if i == 1_000 {
                clock.jump_wall(-3_600_000);
            }
            let next = FileId::generate(&clock);
            assert!(next > last && next.to_string() > last.to_string(), "{next} after {last}");
            last = next;
        }
    }

    #[test]
    fn an_id_has_one_spelling() {
        let id = JobId::generate(&TestClock::at(1_700_000_000_000));
        let text = id.to_string();
        assert_eq!(text.len(), "ftjob-".len() + 32);
        assert_eq!(text.parse::<JobId>().unwrap(), id);
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{text}\""));
        let hex = &text["ftjob-".len()..];
        let dashed = format!("ftjob-{}", id.uuid().hyphenated());
        for bad in [&text.to_uppercase(), hex, &format!("file-{hex}"), "ftjob-nothing", "ftjob-", "", &dashed] {
            let error = bad.parse::<JobId>().unwrap_err();
            assert!(matches!(error, StoreError::BadId { prefix: "ftjob-", .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn names_follow_the_contract() {
        let job: JobId = "ftjob-018bcfe568007000800000000000001f".parse().unwrap();
        let name = model_name("sentence-transformers/All-MiniLM-L6-v2", Some("ag-news"), job);
        assert_eq!(name, "ft:all-minilm-l6-v2:ag-news:aaaaaaaaaaa7");
        assert_eq!(model_name("bert", None, job), "ft:bert::aaaaaaaaaaa7");
        assert_eq!(model_name("file:bert", None, job), "ft:bert::aaaaaaaaaaa7");
        let checkpoint = checkpoint_name(&name, 40);
        assert_eq!(split_checkpoint_name(&checkpoint), Some((name.as_str(), 40)));
        for other in [name.as_str(), "x:ckpt-step-", "x:ckpt-step-+4", "x:ckpt-step-99999999999999999999"] {
            assert_eq!(split_checkpoint_name(other), None, "{other}");
        }
    }
}
