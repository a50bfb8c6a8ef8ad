//! `tunesmith openapi`: the API's description, as it is committed in openapi.yaml.

use std::process::ExitCode;

/// The command has no flags.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Prints the document.
pub fn run(_: &Args) -> anyhow::Result<ExitCode> {
    super::output::write(format_args!("{}", crate::api::openapi::yaml().map_err(anyhow::Error::msg)?))?;
    Ok(ExitCode::SUCCESS)
}
