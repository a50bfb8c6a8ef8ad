//! Metadata values of a GGUF file, in the few kinds that a reader tells apart.

/// A value of the metadata. Integers of all widths are one kind; a u64 beyond i64 is kept as i64's largest.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any signed or unsigned integer.
    Integer(i64),
    /// f32 or f64.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text; broken UTF-8 is replaced.
    Text(String),
    /// Integers.
    Integers(Vec<i64>),
    /// Floats.
    Floats(Vec<f64>),
    /// Truth values.
    Bools(Vec<bool>),
    /// Texts.
    Texts(Vec<String>),
    /// Lists of lists, which no model here needs; their items are checked and dropped.
    Nested,
}

impl Value {
    /// The integer.
    pub fn integer(&self) -> Option<i64> {
        match self {
            Self::Integer(v) => Some(*v),
            _ => None,
        }
    }

    /// The number, whatever its type.
    pub fn float(&self) -> Option<f64> {
        match self {
            Self::Float(v) => Some(*v),
            Self::Integer(v) => Some(*v as f64),
            _ => None,
        }
    }

    /// The text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(v) => Some(v),
            _ => None,
        }
    }

    /// The texts.
    pub fn texts(&self) -> Option<&[String]> {
        match self {
            Self::Texts(v) => Some(v),
            _ => None,
        }
    }
}
