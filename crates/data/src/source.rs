//! From a stored file to a stream of UTF-8 bytes: gzip is unpacked under guard, UTF-16 with a byte-order mark is transcoded,
//! the mark itself is dropped. The text formats read from here; invalid UTF-8 passes through, so that they can name the line.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use encoding_rs::{Decoder, DecoderResult, Encoding, UTF_16BE, UTF_16LE};
use flate2::bufread::MultiGzDecoder;

use crate::error::{DataError, Problem};
use crate::limits::Limits;

const BUFFER: usize = 64 << 10;

/// Below this, a high ratio is no bomb but a short text that repeats.
const RATIO_FLOOR: u64 = 1 << 20;

/// Opens the stored bytes, unpacked if they are gzip.
pub(crate) fn open_bytes(path: &Path, gzip: bool, limits: &Limits) -> Result<Box<dyn BufRead>, DataError> {
    let file = File::open(path).map_err(DataError::Io)?;
    let stored = checked_size(&file, limits)?;
    let file = BufReader::with_capacity(BUFFER, file);
    if !gzip {
        return Ok(Box::new(file));
    }
    let unpacked = Guard {
        inner: MultiGzDecoder::new(file),
        seen: 0,
        limit: limits.unpacked_bytes,
        ratio: limits.ratio,
        ratio_bytes: stored.saturating_mul(limits.ratio).max(RATIO_FLOOR),
    };
    Ok(Box::new(BufReader::with_capacity(BUFFER, unpacked)))
}

/// Opens the text of a file as UTF-8 without a byte-order mark.
pub(crate) fn open_text(path: &Path, gzip: bool, limits: &Limits) -> Result<Box<dyn BufRead>, DataError> {
    let mut bytes = open_bytes(path, gzip, limits)?;
    let mut head = Vec::new();
    bytes.by_ref().take(4).read_to_end(&mut head)?;
    let (mark, utf16) = match head.as_slice() {
        [0xFF, 0xFE, 0, 0] | [0, 0, 0xFE, 0xFF] => {
            return Err(DataError::problem(Problem::of_line(
                1,
                "found the byte-order mark of UTF-32",
                "UTF-8; save the file in that encoding",
            )));
        }
        [0xEF, 0xBB, 0xBF, ..] => (3, None),
        [0xFF, 0xFE, ..] => (2, Some(UTF_16LE)),
        [0xFE, 0xFF, ..] => (2, Some(UTF_16BE)),
        _ => (0, None),
    };
    let rest = io::Cursor::new(head.split_off(mark)).chain(bytes);
    Ok(match utf16 {
        None => Box::new(rest),
        Some(encoding) => Box::new(Transcoder::new(rest, encoding)),
    })
}

/// The size of the file, if the limit allows it.
pub(crate) fn checked_size(file: &File, limits: &Limits) -> Result<u64, DataError> {
    let found = file.metadata().map_err(DataError::Io)?.len();
    if found > limits.file_bytes {
        return Err(DataError::FileTooLarge { found, limit: limits.file_bytes });
    }
    Ok(found)
}

/// Counts what gzip unpacks and stops a bomb.
struct Guard<R> {
    inner: R,
    seen: u64,
    limit: u64,
    ratio: u64,
    ratio_bytes: u64,
}

impl<R: Read> Read for Guard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match self.inner.read(buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) if error.raw_os_error().is_some() => return Err(error),
            Err(error) => return Err(DataError::Gzip(error.to_string()).into_io()),
        };
        self.seen += count as u64;
        if self.seen > self.limit {
            return Err(DataError::UnpackedTooLarge { limit: self.limit }.into_io());
        }
        if self.seen > self.ratio_bytes {
            return Err(DataError::RatioTooLarge { ratio: self.ratio }.into_io());
        }
        Ok(count)
    }
}

/// Turns UTF-16 into UTF-8 as it is read. It has a buffer of its own, since a reader may ask for less than one character.
struct Transcoder<R> {
    inner: R,
    decoder: Decoder,
    line: u64,
    ended: bool,
    text: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<R: BufRead> Transcoder<R> {
    fn new(inner: R, encoding: &'static Encoding) -> Self {
        Self {
            inner,
            decoder: encoding.new_decoder_without_bom_handling(),
            line: 1,
            ended: false,
            text: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }
}

impl<R: BufRead> BufRead for Transcoder<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.start == self.end && !self.ended {
            let input = self.inner.fill_buf()?;
            let last = input.is_empty();
            let (result, taken, written) = self.decoder.decode_to_utf8_without_replacement(input, &mut self.text, last);
            self.inner.consume(taken);
            (self.start, self.end) = (0, written);
            let breaks = self.text[..written].iter().filter(|byte| **byte == b'\n');
            self.line += breaks.count() as u64;
            match result {
                DecoderResult::Malformed(..) => {
                    return Err(DataError::problem(Problem::of_line(
                        self.line,
                        "found half of a UTF-16 character",
                        "whole characters; save the file as UTF-8",
                    ))
                    .into_io());
                }
                DecoderResult::InputEmpty => self.ended = last,
                DecoderResult::OutputFull => {}
            }
        }
        Ok(&self.text[self.start..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }
}

impl<R: BufRead> Read for Transcoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn text_of(bytes: &[u8]) -> Result<String, DataError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        let mut text = String::new();
        open_text(&path, false, &Limits::default())?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn utf16_of_both_byte_orders_becomes_utf8_across_buffer_borders() {
        let text: String = "häß 😀\n".repeat(40_000);
        let little: Vec<u8> = [0xFF, 0xFE].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect();
        let big: Vec<u8> = [0xFE, 0xFF].into_iter().chain(text.encode_utf16().flat_map(u16::to_be_bytes)).collect();
        assert_eq!(text_of(&little).unwrap(), text);
        assert_eq!(text_of(&big).unwrap(), text);
    }

    #[test]
    fn half_a_utf16_character_is_named_with_its_line() {
        let mut bytes = vec![0xFF, 0xFE];
        bytes.extend("a\nb".encode_utf16().flat_map(u16::to_le_bytes));
        bytes.push(0x41);
        let error = text_of(&bytes).unwrap_err().to_string();
        assert!(error.starts_with("line 2: found half of a UTF-16 character"), "{error}");
    }

    #[test]
    fn utf32_is_refused_by_name() {
        let error = text_of(&[0xFF, 0xFE, 0, 0, b'{', 0, 0, 0]).unwrap_err().to_string();
        assert!(error.contains("UTF-32"), "{error}");
    }

    #[test]
    fn a_utf8_mark_is_dropped_and_short_files_are_kept() {
        assert_eq!(text_of(b"\xEF\xBB\xBFx").unwrap(), "x");
        assert_eq!(text_of(b"").unwrap(), "");
        assert_eq!(text_of(b"ab").unwrap(), "ab");
    }
}
