//! The block formats: which they are, and how their repacked form lies in memory. Packing and kernels both read it from here.
//!
//! A panel holds [`WIDTH`] outputs, unit after unit along K. A unit is a block of 32 inputs or, in the K-formats, 256; it begins with the
//! halves of all outputs, then come its groups of 32 inputs: nested scales, four-bit codes, then the codes' upper bits.

/// Outputs of a panel: vectors run along them.
pub(super) const WIDTH: usize = 16;
/// Inputs of a group.
pub(super) const GROUP: usize = 32;

/// A block format of GGUF, by ggml's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(non_camel_case_types, reason = "the names by which everybody knows the formats")]
pub enum QuantKind {
    /// 32 values: a scale, 4 bits each, centred.
    Q4_0,
    /// 32 values: scale and minimum, 4 bits each.
    Q4_1,
    /// 32 values: a scale, 5 bits each, centred.
    Q5_0,
    /// 32 values: scale and minimum, 5 bits each.
    Q5_1,
    /// 32 values: a scale, 8 bits each.
    Q8_0,
    /// 256 values in groups of 32 with a scale and a minimum, 4 bits each.
    Q4_K,
    /// 256 values in groups of 32 with a scale and a minimum, 5 bits each.
    Q5_K,
    /// 256 values in groups of 16 with a scale, 6 bits each.
    Q6_K,
}

impl QuantKind {
    /// All formats.
    pub const ALL: [QuantKind; 8] = [
        QuantKind::Q4_0,
        QuantKind::Q4_1,
        QuantKind::Q5_0,
        QuantKind::Q5_1,
        QuantKind::Q8_0,
        QuantKind::Q4_K,
        QuantKind::Q5_K,
        QuantKind::Q6_K,
    ];

    /// Inputs of a block in a file.
    pub const fn block(self) -> usize {
        self.form().groups() * GROUP
    }

    /// Bytes of a block in a file.
    pub const fn block_bytes(self) -> usize {
        match self {
            QuantKind::Q4_0 => 18,
            QuantKind::Q4_1 => 20,
            QuantKind::Q5_0 => 22,
            QuantKind::Q5_1 => 24,
            QuantKind::Q8_0 => 34,
            QuantKind::Q4_K => 144,
            QuantKind::Q5_K => 176,
            QuantKind::Q6_K => 210,
        }
    }

    /// How the format's repacked units look.
    pub(super) const fn form(self) -> Form {
        match self {
            QuantKind::Q4_0 => Form { bits: 4, centre: 8, scales: Scales::One },
            QuantKind::Q4_1 => Form { bits: 4, centre: 0, scales: Scales::WithMinimum },
            QuantKind::Q5_0 => Form { bits: 5, centre: 16, scales: Scales::One },
            QuantKind::Q5_1 => Form { bits: 5, centre: 0, scales: Scales::WithMinimum },
            QuantKind::Q8_0 => Form { bits: 8, centre: 128, scales: Scales::One },
            QuantKind::Q4_K => Form { bits: 4, centre: 0, scales: Scales::Nested },
            QuantKind::Q5_K => Form { bits: 5, centre: 0, scales: Scales::Nested },
            QuantKind::Q6_K => Form { bits: 6, centre: 32, scales: Scales::NestedHalves },
        }
    }
}

/// What a code is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scales {
    /// A half: `d · code`.
    One,
    /// Two halves: `d · code + m`.
    WithMinimum,
    /// Two halves a unit and two bytes a group: `d · s · code − m · t`.
    Nested,
    /// A half a unit and two signed bytes a group: `d · s · code`, s one of 16 inputs each.
    NestedHalves,
}

/// How codes, which are unsigned, become weights, and where everything lies within a unit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Form {
    /// Bits of a code.
    pub bits: u32,
    /// What is subtracted from a code.
    pub centre: i32,
    /// What it is multiplied with.
    pub scales: Scales,
}

impl Form {
    /// Groups of a unit.
    pub const fn groups(self) -> usize {
        match self.scales {
            Scales::One | Scales::WithMinimum => 1,
            Scales::Nested | Scales::NestedHalves => 8,
        }
    }

    /// Whether there is a second half for each output, after all the first ones.
    pub const fn has_minimum(self) -> bool {
        matches!(self.scales, Scales::WithMinimum | Scales::Nested)
    }

    /// Bytes of a unit's halves.
    pub const fn head(self) -> usize {
        2 * WIDTH * if self.has_minimum() { 2 } else { 1 }
    }

    /// Bytes of a group's nested scales: a byte of each output, then a second byte of each.
    pub const fn group_head(self) -> usize {
        if self.groups() == 1 { 0 } else { 2 * WIDTH }
    }

    /// Bytes of a group. Its codes are vectors of four inputs of each output: of four-bit codes vector i holds inputs 4i … 4i + 3 in the
    /// lower and 16 + 4i … in the upper halves of its bytes, of bytes vector i holds inputs 4i … . After four-bit codes come vectors of
    /// upper bits: byte b of an output holds the fifth bits of inputs b, 4 + b, …, 28 + b, lowest first, or, in two vectors, the two upper
    /// bits of inputs b, 4 + b, 8 + b, 12 + b and of 16 + b, ….
    pub const fn group(self) -> usize {
        self.group_head() + WIDTH * GROUP / 8 * self.bits as usize
    }

    /// Bytes of a unit.
    pub const fn unit(self) -> usize {
        self.head() + self.groups() * self.group()
    }
}
