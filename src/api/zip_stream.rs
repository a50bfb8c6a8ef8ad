//! Writes a zip without seeking: local header, bytes, data descriptor for each entry; the directory at the end.
//!
//! `download.rs` streams model folders through it. The `zip` crate needs a writer that it can call, which an async body
//! is not; the format (APPNOTE 6.3, sections 4.3.7 to 4.3.16) is a few fixed records.

/// A zip being written; each call answers the bytes to send next.
pub struct ZipStream {
    offset: u64,
    entry: Option<Entry>,
    done: Vec<Entry>,
}

struct Entry {
    name: Vec<u8>,
    offset: u64,
    size: u64,
    crc: flate2::Crc,
    large: bool,
}

/// Bit 3: sizes follow the data; bit 11: names are UTF-8.
const FLAGS: u16 = 1 << 3 | 1 << 11;
/// 1 January 1980, the earliest date: a download is the same bytes every time.
const DATE: u16 = 0x21;
const MAX32: u64 = u32::MAX as u64;

impl ZipStream {
    /// An empty zip.
    pub fn new() -> Self {
        Self { offset: 0, entry: None, done: Vec::new() }
    }

    /// Begins an entry. `size` decides between the 32-bit and the 64-bit form.
    pub fn begin(&mut self, name: &str, size: u64) -> Vec<u8> {
        let large = size >= MAX32;
        let mut out = Record::new(0x0403_4b50);
        out.u16(if large { 45 } else { 20 }).u16(FLAGS).u16(0).u16(0).u16(DATE).u32(0);
        // The sizes stand in the descriptor. In the 64-bit form the header must still say so, by its extra field.
        let placeholder = if large { u32::MAX } else { 0 };
        out.u32(placeholder).u32(placeholder).u16(name.len() as u16).u16(if large { 20 } else { 0 });
        out.0.extend_from_slice(name.as_bytes());
        if large {
            out.u16(1).u16(16).u64(0).u64(0);
        }
        self.entry = Some(Entry { name: name.as_bytes().to_vec(), offset: self.offset, size: 0, crc: flate2::Crc::new(), large });
        self.sent(out)
    }

    /// Counts bytes of the entry, which the caller sends as they are.
    pub fn count(&mut self, bytes: &[u8]) {
        if let Some(entry) = &mut self.entry {
            entry.crc.update(bytes);
            entry.size += bytes.len() as u64;
        }
        self.offset += bytes.len() as u64;
    }

    /// Ends the entry.
    pub fn end(&mut self) -> Vec<u8> {
        let Some(entry) = self.entry.take() else { return Vec::new() };
        let mut out = Record::new(0x0807_4b50);
        out.u32(entry.crc.sum());
        if entry.large {
            out.u64(entry.size).u64(entry.size);
        } else {
            out.u32(entry.size as u32).u32(entry.size as u32);
        }
        self.done.push(entry);
        self.sent(out)
    }

    /// The directory, which ends the zip.
    pub fn finish(self) -> Vec<u8> {
        let start = self.offset;
        let mut out = Record(Vec::new());
        for entry in &self.done {
            entry.directory(&mut out);
        }
        let size = out.0.len() as u64;
        let count = self.done.len() as u64;
        if start + size >= MAX32 || count >= u64::from(u16::MAX) {
            out.u32(0x0606_4b50).u64(44).u16(45).u16(45).u32(0).u32(0).u64(count).u64(count).u64(size).u64(start);
            out.u32(0x0706_4b50).u32(0).u64(start + size).u32(1);
        }
        let short = count.min(u64::from(u16::MAX)) as u16;
        out.u32(0x0605_4b50).u16(0).u16(0).u16(short).u16(short);
        out.u32(size.min(MAX32) as u32).u32(start.min(MAX32) as u32).u16(0);
        out.0
    }

    fn sent(&mut self, out: Record) -> Vec<u8> {
        self.offset += out.0.len() as u64;
        out.0
    }
}

impl Entry {
    fn directory(&self, out: &mut Record) {
        let wide = self.large || self.offset >= MAX32;
        let version = if wide { 45 } else { 20 };
        out.u32(0x0201_4b50).u16(version).u16(version).u16(FLAGS).u16(0).u16(0).u16(DATE).u32(self.crc.sum());
        let short = |value: u64| if wide { u32::MAX } else { value as u32 };
        out.u32(short(self.size)).u32(short(self.size)).u16(self.name.len() as u16).u16(if wide { 28 } else { 0 });
        out.u16(0).u16(0).u16(0).u32(0).u32(short(self.offset));
        out.0.extend_from_slice(&self.name);
        if wide {
            out.u16(1).u16(24).u64(self.size).u64(self.size).u64(self.offset);
        }
    }
}

/// Little-endian fields, one after another.
struct Record(Vec<u8>);

impl Record {
    fn new(signature: u32) -> Self {
        Self(signature.to_le_bytes().to_vec())
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Read;

    fn written(entries: &[(&str, &[u8], u64)]) -> Vec<u8> {
        let mut zip = ZipStream::new();
        let mut out = Vec::new();
        for (name, bytes, announced) in entries {
            out.extend(zip.begin(name, *announced));
            for piece in bytes.chunks(3) {
                zip.count(piece);
                out.extend_from_slice(piece);
            }
            out.extend(zip.end());
        }
        out.extend(zip.finish());
        out
    }

    fn read_back(bytes: Vec<u8>) -> Vec<(String, Vec<u8>)> {
        let mut archive = zip::ZipArchive::new(std::io::Cursor::new(bytes)).unwrap();
        (0..archive.len())
            .map(|i| {
                let mut file = archive.by_index(i).unwrap();
                let mut content = Vec::new();
                file.read_to_end(&mut content).unwrap();
                (file.name().unwrap().into_owned(), content)
            })
            .collect()
    }

    #[test]
    fn another_reader_finds_every_entry_whole() {
        let entries: [(&str, &[u8], u64); 3] = [("config.json", b"{}", 2), ("sub/ü.bin", &[7; 1000], 1000), ("empty", b"", 0)];
        let read = read_back(written(&entries));
        assert_eq!(read.len(), 3);
        for ((name, bytes, _), (read_name, read_bytes)) in entries.iter().zip(&read) {
            assert_eq!((*name, *bytes), (read_name.as_str(), read_bytes.as_slice()));
        }
    }

    #[test]
    fn the_64_bit_form_is_read_too() {
        // Announced as huge, which alone decides the form; the content may be small.
        let read = read_back(written(&[("big.safetensors", b"weights", 5 << 30), ("small", b"x", 1)]));
        assert_eq!(read[0].1, b"weights");
        assert_eq!(read[1].1, b"x");
    }
}
