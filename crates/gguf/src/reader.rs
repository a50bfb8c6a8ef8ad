//! A cursor over a file's bytes that believes nothing: every length is checked against what is left before anything is allocated.
//!
//! `file` parses the header, the metadata and the tensors' places with it.

use crate::value::Value;

/// Bytes of one text of the metadata, at most. The longest that are known are chat templates, far below a megabyte.
const MAX_TEXT: u64 = 16 << 20;
/// Items of all lists of the metadata together, at most. Llama 3's tokenizer has half a million.
const MAX_ITEMS: u64 = 8 << 20;
/// Lists within lists, at most.
const MAX_DEPTH: u32 = 3;

/// What a parser meets.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The bytes are no GGUF file, or not all of one.
    Broken(String),
    /// The file may be whole, but is of a kind that is not read.
    Unsupported(String),
}

/// Results of parsing.
pub(crate) type Parsed<T> = std::result::Result<T, Fault>;

pub(crate) fn broken<T>(what: impl Into<String>) -> Parsed<T> {
    Err(Fault::Broken(what.into()))
}

/// The number by which GGUF calls a list.
const LIST: u32 = 9;

/// The cursor.
pub(crate) struct Reader<'a> {
    data: &'a [u8],
    at: usize,
    items_left: u64,
}

impl<'a> Reader<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0, items_left: MAX_ITEMS }
    }

    /// Bytes read so far.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Bytes not read yet.
    pub fn left(&self) -> u64 {
        (self.data.len() - self.at) as u64
    }

    fn take(&mut self, n: u64, what: &str) -> Parsed<&'a [u8]> {
        if n > self.left() {
            return broken(format!("{what} at byte {} needs {n} bytes, and {} are left", self.at, self.left()));
        }
        let bytes = &self.data[self.at..self.at + n as usize];
        self.at += n as usize;
        Ok(bytes)
    }

    /// The next `N` bytes; `what` names them in an error.
    pub fn array<const N: usize>(&mut self, what: &str) -> Parsed<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    pub fn u32(&mut self, what: &str) -> Parsed<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Parsed<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A text of at most `most` bytes after its length. Bytes that are no UTF-8 are replaced.
    pub fn text(&mut self, what: &str, most: u64) -> Parsed<String> {
        let at = self.at;
        let n = self.u64(what)?;
        if n > most {
            return broken(format!("{what} at byte {at} says {n} bytes; at most {most} are read"));
        }
        Ok(String::from_utf8_lossy(self.take(n, what)?).into_owned())
    }

    /// A value of the metadata, after the number of its type.
    pub fn value(&mut self, what: &str) -> Parsed<Value> {
        match self.u32(what)? {
            LIST => self.list(what, 1),
            kind => self.scalar(kind, what),
        }
    }

    fn scalar(&mut self, kind: u32, what: &str) -> Parsed<Value> {
        Ok(match kind {
            0 => Value::Integer(i64::from(u8::from_le_bytes(self.array(what)?))),
            1 => Value::Integer(i64::from(i8::from_le_bytes(self.array(what)?))),
            2 => Value::Integer(i64::from(u16::from_le_bytes(self.array(what)?))),
            3 => Value::Integer(i64::from(i16::from_le_bytes(self.array(what)?))),
            4 => Value::Integer(i64::from(self.u32(what)?)),
            5 => Value::Integer(i64::from(i32::from_le_bytes(self.array(what)?))),
            6 => Value::Float(f64::from(f32::from_le_bytes(self.array(what)?))),
            7 => Value::Bool(self.array::<1>(what)? != [0]),
            8 => Value::Text(self.text(what, MAX_TEXT)?),
            10 => Value::Integer(i64::try_from(self.u64(what)?).unwrap_or(i64::MAX)),
            11 => Value::Integer(i64::from_le_bytes(self.array(what)?)),
            12 => Value::Float(f64::from_le_bytes(self.array(what)?)),
            other => return broken(format!("{what} at byte {} has the unknown type {other}", self.at)),
        })
    }

    fn list(&mut self, what: &str, depth: u32) -> Parsed<Value> {
        if depth > MAX_DEPTH {
            return broken(format!("{what} at byte {} has lists in more than {MAX_DEPTH} levels", self.at));
        }
        let at = self.at;
        let (item, n) = (self.u32(what)?, self.u64(what)?);
        let least: u64 = match item {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            LIST => 12,
            other => return broken(format!("{what} at byte {at} is a list of the unknown type {other}")),
        };
        if n.checked_mul(least).is_none_or(|bytes| bytes > self.left()) {
            return broken(format!("{what} at byte {at} is a list of {n} items, and {} bytes are left", self.left()));
        }
        self.items_left = match self.items_left.checked_sub(n) {
            Some(left) => left,
            None => return broken(format!("{what} at byte {at}: the lists of the metadata have more than {MAX_ITEMS} items")),
        };
        // At least `least` bytes stand behind every item, so this allocates in proportion to the file.
        let room = n as usize;
        Ok(match item {
            LIST => {
                for _ in 0..n {
                    self.list(what, depth + 1)?;
                }
                Value::Nested
            }
            6 | 12 => Value::Floats(self.items(room, |r| r.scalar(item, what), |v| v.float())?),
            7 => Value::Bools(self.items(
                room,
                |r| r.scalar(item, what),
                |v| matches!(v, Value::Bool(_)).then_some(v == Value::Bool(true)),
            )?),
            8 => Value::Texts(self.items(room, |r| r.text(what, MAX_TEXT), Some)?),
            _ => Value::Integers(self.items(room, |r| r.scalar(item, what), |v| v.integer())?),
        })
    }

    fn items<V, T>(&mut self, n: usize, mut read: impl FnMut(&mut Self) -> Parsed<V>, keep: impl Fn(V) -> Option<T>) -> Parsed<Vec<T>> {
        let mut list = Vec::with_capacity(n);
        for _ in 0..n {
            list.extend(keep(read(self)?));
        }
        Ok(list)
    }
}
