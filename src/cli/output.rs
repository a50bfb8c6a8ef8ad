//! Standard output of the commands that are clients: `say!` in place of `println!`, which panics where nobody reads.
//!
//! A reader that has left (`tunesmith jobs | head -1`) ends a command quietly; anything else, such as a full disk, is an error.

use std::fmt::Arguments;
use std::io::{self, Write};

/// Whoever read the output has left, and no more of it is wanted.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output")]
pub struct ReaderLeft;

/// Writes a line to standard output; returns from the function where that fails.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::output::write(format_args!("{}\n", format_args!($($text)*)))?
    };
}
pub(crate) use say;

/// Writes text to standard output, and sees to it that it is there.
///
/// # Errors
/// [`ReaderLeft`], or what the system says.
pub fn write(text: Arguments) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_fmt(text).and_then(|()| out.flush()).map_err(explain)
}

/// Writes bytes to standard output as they are.
///
/// # Errors
/// [`ReaderLeft`], or what the system says.
pub fn write_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(explain)
}

fn explain(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::BrokenPipe => ReaderLeft.into(),
        _ => anyhow::Error::new(error).context("cannot write to standard output"),
    }
}
