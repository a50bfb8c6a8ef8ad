//! Lines of a text file, each within the limit of a row. Read by `jsonl` and `text_lines`.

use std::io::{BufRead, Read};
use std::path::Path;

use crate::error::DataError;
use crate::limits::Limits;
use crate::source::open_text;

/// Reads a file line by line.
pub(crate) struct Lines {
    text: Box<dyn BufRead>,
    /// Most bytes of a line.
    pub(crate) most: u64,
    /// The number of the line that was read last, from 1.
    pub(crate) number: u64,
    /// Its bytes, without the line break.
    pub(crate) bytes: Vec<u8>,
}

impl Lines {
    pub(crate) fn open(path: &Path, gzip: bool, limits: &Limits) -> Result<Self, DataError> {
        Ok(Self { text: open_text(path, gzip, limits)?, most: limits.line_bytes, number: 0, bytes: Vec::new() })
    }

    /// Reads the next line. `None` at the end, `Some(false)` if it is too long.
    pub(crate) fn read(&mut self) -> Result<Option<bool>, DataError> {
        self.bytes.clear();
        let most = self.most.saturating_add(1);
        let count = (&mut self.text).take(most).read_until(b'\n', &mut self.bytes)? as u64;
        if count == 0 {
            return Ok(None);
        }
        self.number += 1;
        if self.bytes.last() == Some(&b'\n') {
            self.bytes.pop();
        } else if count == most {
            self.text.skip_until(b'\n')?;
            return Ok(Some(false));
        }
        Ok(Some(true))
    }
}
