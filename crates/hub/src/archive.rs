//! Unpacking archives from outside: wheels and zips, `.tar.gz`, plain tar.
//!
//! Called by `package`. An archive is untrusted: any name that leaves its folder refuses the whole, links are never made,
//! and bytes are counted as they come out, whatever the headers say.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::error::HubError;
use crate::receipt::Entry;

/// What one archive may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) entries: usize,
    pub(crate) bytes: u64,
}

/// A text corpus shrinks to a tenth, a bomb to a thousandth.
const MAX_RATIO: u64 = 200;
/// Below this, the ratio says nothing.
const SMALL: u64 = 16 << 20;

/// Which part of an archive is wanted, and where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extract<'a> {
    pub(crate) archive: &'a Path,
    /// A folder or file inside.
    pub(crate) wanted: &'a str,
    /// Whether all names start with one top folder that `wanted` leaves out, as in source archives.
    pub(crate) below_top: bool,
    pub(crate) into: &'a Path,
    pub(crate) limits: Limits,
}

impl Extract<'_> {
    /// Writes the wanted files into the folder and lists them.
    pub(crate) fn run(&self) -> Result<Vec<Entry>, HubError> {
        let mut sink = Sink::new(self)?;
        let file = File::open(self.archive).map_err(HubError::io(self.archive))?;
        let name = sink.name.clone();
        let ends = |ending: &str| name.ends_with(ending);
        if ends(".whl") || ends(".zip") {
            unpack_zip(file, &mut sink)?;
        } else if ends(".tar.gz") || ends(".tgz") {
            unpack_tar(MultiGzDecoder::new(io::BufReader::new(file)), &mut sink)?;
        } else if ends(".tar") {
            unpack_tar(file, &mut sink)?;
        } else {
            return Err(HubError::archive(&name, "it is none of .whl, .zip, .tar.gz, .tgz, .tar"));
        }
        sink.done()
    }
}

/// Takes entries, checks them, and writes those that are wanted.
struct Sink<'a> {
    job: Extract<'a>,
    name: String,
    /// Bytes that may still come out.
    left: u64,
    limit: u64,
    entries: usize,
    tops: Vec<String>,
    files: Vec<Entry>,
}

impl<'a> Sink<'a> {
    fn new(job: &Extract<'a>) -> Result<Self, HubError> {
        let name = job.archive.file_name().unwrap_or_default();
        let packed = fs::metadata(job.archive).map_err(HubError::io(job.archive))?.len();
        let limit = packed.saturating_mul(MAX_RATIO).max(SMALL).min(job.limits.bytes);
        Ok(Self {
            job: *job,
            name: name.to_string_lossy().to_lowercase(),
            left: limit,
            limit,
            entries: 0,
            tops: Vec::new(),
            files: Vec::new(),
        })
    }

    fn broken(&self, why: impl std::fmt::Display) -> HubError {
        HubError::archive(&self.name, why)
    }

    fn too_large(&self) -> HubError {
        HubError::TooLarge {
            what: self.name.clone(),
            found: "more unpacked bytes".to_owned(),
            limit: format!("{} bytes ({MAX_RATIO} times its size, at most)", self.limit),
        }
    }

    /// Checks an entry's name; answers where it goes if it is wanted.
    fn admit(&mut self, name: &str) -> Result<Option<PathBuf>, HubError> {
        self.entries += 1;
        if self.entries > self.job.limits.entries {
            return Err(HubError::TooLarge {
                what: self.name.clone(),
                found: "more entries".to_owned(),
                limit: format!("{} entries", self.job.limits.entries),
            });
        }
        let segments = plain_segments(name).map_err(|why| self.broken(why))?;
        let below = match self.job.below_top {
            true => segments.get(1..).unwrap_or_default(),
            false => &segments[..],
        };
        if let Some(top) = below.first()
            && self.tops.len() < 8
            && !self.tops.iter().any(|known| known == top)
        {
            self.tops.push((*top).to_owned());
        }
        let wanted: Vec<&str> = self.job.wanted.split('/').collect();
        Ok(below.strip_prefix(&wanted[..]).map(|rest| match (rest, wanted.last()) {
            // The wanted path is this file itself.
            ([], Some(file)) => PathBuf::from(file),
            (rest, _) => rest.iter().collect(),
        }))
    }

    fn write(&mut self, path: PathBuf, content: &mut impl Read) -> Result<(), HubError> {
        let target = self.job.into.join(&path);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(HubError::io(folder))?;
        }
        let mut file = match File::create_new(&target) {
            Err(why) if why.kind() == io::ErrorKind::AlreadyExists => {
                return Err(self.broken(format!("it holds {} twice", path.display())));
            }
            other => other.map_err(HubError::io(&target))?,
        };
        let bytes = self.copy(content, |chunk| io::Write::write_all(&mut file, chunk))?;
        file.sync_all().map_err(HubError::io(&target))?;
        self.files.push(Entry { path, bytes });
        Ok(())
    }

    /// Reads to the end within the limit. Errors of reading are the archive's, errors of writing the disk's.
    fn copy(&mut self, content: &mut impl Read, mut write: impl FnMut(&[u8]) -> io::Result<()>) -> Result<u64, HubError> {
        let mut buffer = vec![0; 128 << 10];
        let mut bytes = 0;
        loop {
            let n = match content.read(&mut buffer) {
                Ok(0) => return Ok(bytes),
                Ok(n) => n,
                Err(why) => return Err(self.broken(why)),
            };
            self.left = match self.left.checked_sub(n as u64) {
                Some(left) => left,
                None => return Err(self.too_large()),
            };
            write(&buffer[..n]).map_err(HubError::io(self.job.into))?;
            bytes += n as u64;
        }
    }

    fn done(self) -> Result<Vec<Entry>, HubError> {
        if self.files.is_empty() {
            return Err(HubError::Missing { what: format!("{} in {} (it holds {})", self.job.wanted, self.name, self.tops.join(", ")) });
        }
        Ok(self.files)
    }
}

fn unpack_zip(file: File, sink: &mut Sink<'_>) -> Result<(), HubError> {
    let mut zip = zip::ZipArchive::new(file).map_err(|why| sink.broken(why))?;
    for i in 0..zip.len() {
        let mut entry = zip.by_index(i).map_err(|why| sink.broken(why))?;
        let name = entry.name().map_err(|why| sink.broken(why))?.into_owned();
        let Some(path) = sink.admit(&name)? else {
            continue;
        };
        if entry.is_dir() {
            continue;
        }
        if !entry.is_file() {
            return Err(sink.broken(format!("{name} is a link")));
        }
        sink.write(path, &mut entry)?;
    }
    Ok(())
}

fn unpack_tar(reader: impl Read, sink: &mut Sink<'_>) -> Result<(), HubError> {
    let mut tar = tar::Archive::new(reader);
    let entries = tar.entries().map_err(|why| sink.broken(why))?;
    for entry in entries {
        let mut entry = entry.map_err(|why| sink.broken(why))?;
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let name = String::from_utf8(entry.path_bytes().into_owned()).map_err(|_| sink.broken("a name in it is not UTF-8"))?;
        let wanted = sink.admit(&name)?;
        match wanted {
            Some(_) if kind.is_dir() => {}
            Some(path) if kind.is_file() => sink.write(path, &mut entry)?,
            Some(_) => return Err(sink.broken(format!("{name} is a link or a device"))),
            // What is skipped has to be unpacked all the same, so it counts.
            None => {
                sink.copy(&mut entry, |_| Ok(()))?;
            }
        }
    }
    Ok(())
}

/// Splits a name that stays inside its folder.
fn plain_segments(name: &str) -> Result<Vec<&str>, String> {
    let name = name.strip_prefix("./").unwrap_or(name);
    let name = name.strip_suffix('/').unwrap_or(name);
    if name.is_empty() || name == "." {
        return Ok(Vec::new());
    }
    let is_plain = |s: &&str| !s.is_empty() && *s != "." && *s != "..";
    let segments: Vec<&str> = name.split('/').collect();
    // A colon is a drive or a stream on Windows.
    if name.contains(['\\', ':']) || name.chars().any(char::is_control) || !segments.iter().all(is_plain) {
        let shown: String = name.chars().take(100).collect();
        return Err(format!("the name {shown:?} in it would leave its folder"));
    }
    Ok(segments)
}

#[cfg(test)]
mod tests;
