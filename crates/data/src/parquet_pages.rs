//! Walks the page headers of a row group before `parquet_rows` lets the parquet crate read it: that crate allocates what a
//! header claims (up to 2 GiB a page), so a file of a few bytes could take the memory of the server. Only the numbers that
//! matter are read from the headers (Thrift's compact protocol); no page is unpacked here.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};

use crate::error::DataError;
use crate::limits::Limits;

/// Bytes of one unpacked page. Writers aim at 1 MiB.
const PAGE_BYTES: u64 = 512 << 20;

/// Values of one list column in one row group; a row is assembled in memory, and one row may claim them all.
const LIST_VALUES: u64 = 64 << 20;

/// Checks the pages of every column of a row group against the limits and against the size of the file.
pub(crate) fn check_pages(file: &mut File, group: &RowGroupMetaData, limits: &Limits) -> Result<(), DataError> {
    let file_bytes = file.metadata().map_err(DataError::Io)?.len();
    let mut unpacked = 0_u64;
    for column in group.columns() {
        let (start, end) =
            chunk_range(column).filter(|(_, end)| *end <= file_bytes).ok_or_else(|| damaged(column, "lies outside of the file"))?;
        let repeated = column.column_descr().max_rep_level() > 0;
        let mut values = 0_u64;
        let mut at = start;
        while at < end {
            let page = read_page_header(file, at, end).map_err(|error| damaged(column, &format!("has a damaged page header ({error})")))?;
            at = at
                .checked_add(page.header_bytes + page.packed_bytes)
                .filter(|next| *next <= end)
                .ok_or_else(|| damaged(column, "has a page that is larger than the column"))?;
            unpacked = unpacked.saturating_add(page.unpacked_bytes);
            values = values.saturating_add(page.values);
            if page.unpacked_bytes > PAGE_BYTES {
                return Err(damaged(column, "has a page of more than 512 MiB"));
            }
            if unpacked > limits.unpacked_bytes {
                return Err(DataError::UnpackedTooLarge { limit: limits.unpacked_bytes });
            }
            if repeated && values > LIST_VALUES {
                return Err(damaged(column, "has lists of more than 67108864 values in one row group"));
            }
        }
    }
    Ok(())
}

fn damaged(column: &ColumnChunkMetaData, what: &str) -> DataError {
    DataError::Parquet(format!("column \"{}\" {what}", column.column_path().string()))
}

/// Where the pages of a column stand; the crate's own method asserts instead.
fn chunk_range(column: &ColumnChunkMetaData) -> Option<(u64, u64)> {
    let data = column.data_page_offset();
    let start = column.dictionary_page_offset().map_or(data, |dictionary| dictionary.min(data));
    let start = u64::try_from(start).ok()?;
    let length = u64::try_from(column.compressed_size()).ok()?;
    Some((start, start.checked_add(length)?))
}

struct PageHeader {
    header_bytes: u64,
    packed_bytes: u64,
    unpacked_bytes: u64,
    values: u64,
}

fn read_page_header(file: &mut File, at: u64, end: u64) -> io::Result<PageHeader> {
    file.seek(SeekFrom::Start(at))?;
    let mut thrift = Thrift { input: BufReader::with_capacity(256, file).take(end - at) };
    let mut unpacked = None;
    let mut packed = None;
    let mut values = 0;
    let mut field = 0;
    while let Some(kind) = thrift.next_field(&mut field)? {
        match (field, kind) {
            (2, Kind::INT32) => unpacked = Some(thrift.size()?),
            (3, Kind::INT32) => packed = Some(thrift.size()?),
            // Header of a data page (v1, v2) or of a dictionary: each has the number of values first.
            (5 | 7 | 8, Kind::STRUCT) => {
                let mut inner = 0;
                while let Some(kind) = thrift.next_field(&mut inner)? {
                    match (inner, kind) {
                        (1, Kind::INT32) => values = thrift.size()?,
                        (_, kind) => thrift.skip(kind, 0)?,
                    }
                }
            }
            (_, kind) => thrift.skip(kind, 0)?,
        }
    }
    let (Some(packed_bytes), Some(unpacked_bytes)) = (packed, unpacked) else {
        return Err(io::Error::other("it has no sizes"));
    };
    Ok(PageHeader { header_bytes: (end - at) - thrift.input.limit(), packed_bytes, unpacked_bytes, values })
}

/// The type of a value in Thrift's compact protocol.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Kind(u8);

impl Kind {
    const TRUE: Self = Self(1);
    const FALSE: Self = Self(2);
    const INT8: Self = Self(3);
    const INT16: Self = Self(4);
    const INT32: Self = Self(5);
    const INT64: Self = Self(6);
    const DOUBLE: Self = Self(7);
    const BINARY: Self = Self(8);
    const LIST: Self = Self(9);
    const SET: Self = Self(10);
    const STRUCT: Self = Self(12);
}

struct Thrift<R> {
    input: io::Take<R>,
}

impl<R: Read> Thrift<R> {
    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(io::Error::other("a number is too long"))
    }

    fn zigzag(&mut self) -> io::Result<i64> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A number that must not be negative.
    fn size(&mut self) -> io::Result<u64> {
        u64::try_from(self.zigzag()?).map_err(|_| io::Error::other("a size is negative"))
    }

    /// Reads the head of the next field of a struct; `None` at its end.
    fn next_field(&mut self, id: &mut i64) -> io::Result<Option<Kind>> {
        let head = self.byte()?;
        let kind = Kind(head & 0x0F);
        if kind.0 == 0 {
            return Ok(None);
        }
        *id = match head >> 4 {
            0 => self.zigzag()?,
            delta => id.wrapping_add(i64::from(delta)),
        };
        Ok(Some(kind))
    }

    fn skip_bytes(&mut self, count: u64) -> io::Result<()> {
        let skipped = io::copy(&mut (&mut self.input).take(count), &mut io::sink())?;
        if skipped < count {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn skip(&mut self, kind: Kind, depth: u32) -> io::Result<()> {
        if depth > 8 {
            return Err(io::Error::other("it is nested too deeply"));
        }
        match kind {
            Kind::TRUE | Kind::FALSE => Ok(()),
            Kind::INT8 => self.skip_bytes(1),
            Kind::INT16 | Kind::INT32 | Kind::INT64 => self.varint().map(drop),
            Kind::DOUBLE => self.skip_bytes(8),
            Kind::BINARY => {
                let length = self.varint()?;
                self.skip_bytes(length)
            }
            Kind::LIST | Kind::SET => {
                let head = self.byte()?;
                let count = match head >> 4 {
                    15 => self.varint()?,
                    count => u64::from(count),
                };
                let member = match Kind(head & 0x0F) {
                    // A boolean in a list takes a byte, one in a struct none.
                    Kind::TRUE | Kind::FALSE => Kind::INT8,
                    member => member,
                };
                // Each member takes at least a byte, so the end of the column ends a lying count.
                (0..count).try_for_each(|_| self.skip(member, depth + 1))
            }
            Kind::STRUCT => {
                let mut id = 0;
                while let Some(kind) = self.next_field(&mut id)? {
                    self.skip(kind, depth + 1)?;
                }
                Ok(())
            }
            Kind(other) => Err(io::Error::other(format!("it has a value of type {other}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    fn header_of(bytes: &[u8]) -> io::Result<PageHeader> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        read_page_header(&mut file, 0, bytes.len() as u64)
    }

    #[test]
    fn the_sizes_are_read_and_the_rest_is_passed_over() {
        // type 0, sizes 300 and 5, crc, data page header { 100 values, encoding, statistics { max "ab", list } }, stop.
        let bytes = [
            0x15, 0x00, 0x15, 0xD8, 0x04, 0x15, 0x0A, 0x15, 0x01, 0x1C, 0x15, 0xC8, 0x01, 0x15, 0x00, 0x3C, 0x18, 0x02, b'a', b'b', 0x19,
            0x21, 0x01, 0x00, 0x11, 0x00, 0x00, 0x00, 0xAA,
        ];
        let header = header_of(&bytes).unwrap();
        assert_eq!((header.packed_bytes, header.unpacked_bytes, header.values, header.header_bytes), (5, 300, 100, 28));
    }

    #[test]
    fn damaged_headers_are_errors() {
        for bytes in [
            [].as_slice(),
            &[0x00],
            &[0x15],
            &[0x15, 0x00, 0x15, 0x01, 0x15, 0x01, 0x00],
            &[0x15, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01],
            &[0x19, 0xFC, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F, 0x00],
            &[0x1C; 40],
        ] {
            assert!(header_of(bytes).is_err(), "{bytes:?}");
        }
    }
}
