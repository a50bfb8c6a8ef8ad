//! Where base models and data sets come from: the Hugging Face hub, folders, package archives.
//!
//! Used by the server's engine registry, the worker and the CLI, through [`Hub`] alone. The one thing to know: a copy that
//! lies on this machine wins before any network is asked, and every downloaded byte is checked against a checksum.

mod archive;
mod catalogue;
mod checksum;
mod config;
mod error;
mod hf;
mod hub;
mod local;
mod lock;
mod package;
mod pip;
mod progress;
mod receipt;
mod reference;
mod source;

pub use catalogue::{Entry, entries as catalogue_entries, find as find_in_catalogue};
pub use config::{HubConfig, Secret};
pub use error::HubError;
pub use hub::{Hub, Pulled};
pub use progress::Progress;
pub use reference::{AllowPull, ModelRef};
pub use source::{Kind, Source};

/// Makes ring the process's TLS provider. Called by [`Hub::new`]; whoever builds another reqwest client first calls it
/// too, since building one without a provider panics. Calling it again does nothing.
pub fn install_tls() {
    // An error means that a provider is installed already, which is all that is wanted.
    rustls::crypto::ring::default_provider().install_default().ok();
}
