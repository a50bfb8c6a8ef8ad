//! What a name in a request or on the command line means, and who may use it.
//!
//! `ModelRef::parse` turns text into a typed reference; `permit` applies the rules of the HTTP contract, which the CLI,
//! whose user owns the machine, does not need.

use std::path::{Path, PathBuf};

use crate::catalogue::{self, Entry};
use crate::error::HubError;
use crate::source::{Kind, Source};

/// A parsed name.
#[derive(Clone, Debug)]
pub enum ModelRef {
    /// A catalogue name or alias.
    Catalogue(&'static Entry),
    /// A bare hub id `[datasets/]org/name[@revision]`; always `Source::Hf`.
    Hub(Source),
    /// An explicit source text.
    Explicit(Source),
}

/// Which names a request may use that are not yet this server's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllowPull {
    /// Nothing is pulled; catalogue names whose files are on this machine still work.
    None,
    /// The catalogue.
    #[default]
    Catalogue,
    /// The catalogue and any hub id.
    Hub,
}

impl ModelRef {
    /// Reads a catalogue name or alias, a hub id, or a source text.
    pub fn parse(name: &str) -> Result<Self, HubError> {
        if let Some(entry) = catalogue::find(name) {
            return Ok(Self::Catalogue(entry));
        }
        // Ids of the hub have no colon, so a colon means an explicit source.
        if name.contains(':') {
            return name.parse().map(Self::Explicit);
        }
        let id = name.split_once('@').map_or(name, |(id, _)| id);
        if !id.contains('/') {
            return Err(HubError::NotFound {
                name: name.chars().take(200).collect(),
                tried: vec![("the catalogue".to_owned(), format!("it has {}", known_names()))],
            });
        }
        Source::parse_hub_id(name).map(Self::Hub).map_err(|why| HubError::bad_source(name, why))
    }

    /// The sources in the order of trial.
    pub fn sources(&self) -> Vec<Source> {
        match self {
            Self::Catalogue(entry) => entry.sources(),
            Self::Hub(source) | Self::Explicit(source) => vec![source.clone()],
        }
    }

    /// Model or data set; what a source does not say is a model.
    fn kind(&self) -> Kind {
        match self {
            Self::Catalogue(entry) => entry.kind,
            Self::Hub(Source::Hf { kind, .. }) | Self::Explicit(Source::Hf { kind, .. }) => kind.unwrap_or(Kind::Model),
            Self::Hub(_) | Self::Explicit(_) => Kind::Model,
        }
    }

    /// The catalogue's entry, also when its hub id is named as `hf:<id>`.
    pub fn entry(&self) -> Option<&'static Entry> {
        match self {
            Self::Catalogue(entry) => Some(entry),
            Self::Explicit(Source::Hf { repo, revision: None, .. }) => catalogue::find(repo),
            _ => None,
        }
    }
}

/// The catalogue's models.
fn known_names() -> String {
    let names: Vec<&str> = catalogue::entries().iter().filter(|e| e.kind == Kind::Model).map(|e| e.name).collect();
    names.join(", ")
}

/// Decides whether a request may use `name` as a model, and answers the name to pull: the same, or for `file:` the full path.
pub(crate) fn permit(
    name: &str,
    allow: AllowPull,
    model_dir: Option<&Path>,
    is_cached: impl FnOnce(&ModelRef) -> bool,
) -> Result<String, HubError> {
    let reference = ModelRef::parse(name)?;
    let refuse = |why: &str| Err(HubError::NotAllowed { name: name.to_owned(), why: why.to_owned() });
    if reference.kind() == Kind::Dataset {
        return refuse("it is a data set; name a model, and upload the data set's rows as a file");
    }
    if let ModelRef::Explicit(Source::File(path)) = &reference {
        return match below(path, model_dir) {
            Ok(path) => Ok(format!("file:{}", path.display())),
            Err(why) => refuse(&why),
        };
    }
    if reference.entry().is_some() {
        return match allow {
            AllowPull::Catalogue | AllowPull::Hub => Ok(name.to_owned()),
            AllowPull::None if is_cached(&reference) => Ok(name.to_owned()),
            AllowPull::None => refuse(
                "this server pulls nothing, and the files are not on this machine; run `tunesmith pull` there, \
                 or start it with --allow-pull=catalogue",
            ),
        };
    }
    match &reference {
        ModelRef::Hub(_) | ModelRef::Explicit(Source::Hf { .. }) if allow == AllowPull::Hub => Ok(name.to_owned()),
        ModelRef::Hub(_) | ModelRef::Explicit(Source::Hf { .. }) => {
            refuse(&format!("hub ids need a server that was started with --allow-pull=hub; the catalogue has {}", known_names()))
        }
        _ => refuse(&format!("packages and joined files are for the catalogue and the command line; the catalogue has {}", known_names())),
    }
}

/// The real path of `path`, which must lie below `model_dir` after every symbolic link is followed.
fn below(path: &Path, model_dir: Option<&Path>) -> Result<PathBuf, String> {
    let Some(model_dir) = model_dir else {
        return Err("file: needs a server that was started with --model-dir".to_owned());
    };
    let root = model_dir.canonicalize().map_err(|why| format!("the folder of --model-dir cannot be opened: {why}"))?;
    // One answer for "outside" and "absent", so that a request cannot probe which paths exist.
    let outside = || "it is not a file or folder below --model-dir".to_owned();
    let real = root.join(path).canonicalize().map_err(|_| outside())?;
    if real.starts_with(&root) { Ok(real) } else { Err(outside()) }
}
