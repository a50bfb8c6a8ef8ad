//! Opens weight and data files as memory. The one place of the workspace with the `unsafe` of a file mapping.
//!
//! Callers check lengths and offsets against the map's length before they read: a header is untrusted input.

pub use memmap2::Mmap;
use std::{fs::File, io};

/// Maps a whole file read-only. An empty file gives an empty map on the platforms that allow it, else an error.
pub fn map_file(file: &File) -> io::Result<Mmap> {
    // SAFETY: the map is read-only. What remains is the hazard that every file mapping has: another process that shortens
    // the file while it is mapped turns a later read into a signal. Our own writers never shorten or rewrite a file in
    // place: blobs and downloads are written under a temporary name and renamed, so an open file keeps its contents.
    unsafe { Mmap::map(file) }
}

/// Lets the memory of a map's pages go; whoever reads them later gets them from the file again. Nothing happens where the system cannot.
pub fn release_pages(map: &Mmap) {
    #[cfg(unix)]
    {
        // SAFETY: the map is of a file and read-only, so its pages hold nothing that the file does not.
        let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
    #[cfg(not(unix))]
    let _ = map;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    #[test]
    fn a_mapped_file_shows_its_bytes() {
        let path = std::env::temp_dir().join(format!("tunesmith-ops-map-{}", std::process::id()));
        File::create(&path).unwrap().write_all(b"weights").unwrap();
        let map = map_file(&File::open(&path).unwrap()).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(&map[..], b"weights");
        release_pages(&map);
        assert_eq!(&map[..], b"weights");
    }
}
