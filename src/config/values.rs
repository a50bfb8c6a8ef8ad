//! Values of single settings: how they are spelt in files, in the environment and in flags.
//!
//! Each spells itself the same everywhere, through `Display` and `FromStr`.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where models run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The best that this binary supports and this machine has.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The numbered NVIDIA device; needs a binary built with `cuda`.
    Cuda(usize),
    /// The Apple GPU; needs a binary built with `metal`.
    Metal,
}

impl Device {
    /// Whether this binary can use it; whether the machine has one shows when it is opened.
    ///
    /// # Errors
    /// If the binary was built without it.
    pub fn supported(self) -> Result<(), String> {
        let feature = match self {
            Self::Cuda(_) if !cfg!(feature = "cuda") => "cuda",
            Self::Metal if !cfg!(feature = "metal") => "metal",
            _ => return Ok(()),
        };
        Err(format!("--device {self} needs a binary that was built with --features {feature}"))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "metal" => Ok(Self::Metal),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("`{text}` is no device; use auto, cpu, cuda:N or metal")),
        }
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Which models a request may make the server download.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AllowPull {
    /// Only what is already on this machine.
    None,
    /// The entries of the built-in catalogue.
    #[default]
    Catalogue,
    /// Any public repository of the hub too.
    Hub,
}

impl From<AllowPull> for tunesmith_hub::AllowPull {
    fn from(allow: AllowPull) -> Self {
        match allow {
            AllowPull::None => Self::None,
            AllowPull::Catalogue => Self::Catalogue,
            AllowPull::Hub => Self::Hub,
        }
    }
}

/// The arithmetic of encoders' products when they answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ServeDtype {
    /// 32-bit floats.
    #[default]
    #[value(alias = "float32")]
    #[serde(alias = "float32")]
    F32,
    /// bf16 with f32 sums: twice as fast where the processor has a unit for it, slower than f32 without one.
    #[value(alias = "bfloat16")]
    #[serde(alias = "bfloat16")]
    Bf16,
    /// Weights and inputs rounded to int8: faster still on AMD with VNNI, not beside AMX, slower than f32 without VNNI; in a quarter of the
    /// memory.
    Int8,
}

impl From<ServeDtype> for tunesmith_ml::infer::ServeDtype {
    fn from(dtype: ServeDtype) -> Self {
        match dtype {
            ServeDtype::F32 => Self::F32,
            ServeDtype::Bf16 => Self::Bf16,
            ServeDtype::Int8 => Self::Int8,
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Reads a list of strings, or one string with commas between its items.
pub(super) fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    struct List;

    impl<'de> Visitor<'de> for List {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of strings, or one string with commas between them")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let items = text.split(',').map(str::trim).filter(|s| !s.is_empty());
            Ok(items.map(str::to_owned).collect())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = seq.next_element::<String>()? {
                items.push(item);
            }
            Ok(items)
        }
    }

    deserializer.deserialize_any(List)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_device_reads_back_as_it_is_written() {
        for text in ["auto", "cpu", "cuda:3", "metal"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert!("cuda:x".parse::<Device>().is_err());
        assert!("gpu".parse::<Device>().unwrap_err().contains("cuda:N"));
    }
}
