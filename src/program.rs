//! This program itself: the file that it runs from, and its start with the allocator's settings.

use std::path::{Path, PathBuf};

/// The file of the program that this process runs, to start it once more. Where it was replaced since, as by an upgrade beside a running
/// server, Linux still has the old one: a worker is of its server's version.
///
/// # Errors
/// If the system does not tell.
pub fn own_file() -> std::io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let kept = Path::new("/proc/self/exe");
    Ok(if !path.exists() && kept.exists() { kept.to_owned() } else { path })
}

/// mimalloc's setting, in milliseconds. It reads its environment before `main`.
const SETTING: &str = "MIMALLOC_PURGE_DELAY";
/// A minute, since a step of a slow machine takes longer than ten seconds.
const DELAY: &str = "60000";

/// Has the allocator keep freed pages for a minute: starts this program anew in its process, with the setting in its environment. Returns
/// where there is one already, or where that cannot be done: the program is slower then, no more.
///
/// A step of training or of generation frees what the next one takes again. Pages that went back to the system meanwhile come with their
/// clearing: a fifth of a training step's time, a twentieth of a generated token's. mimalloc's own second is too short for that.
pub fn keep_freed_pages() {
    if std::env::var_os(SETTING).is_some() {
        return;
    }
    #[cfg(unix)]
    if let Ok(program) = own_file() {
        use std::os::unix::process::CommandExt;
        use std::process::Command;
        let mut arguments = std::env::args_os();
        let mut command = Command::new(program);
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        let _not_done = command.args(arguments).env(SETTING, DELAY).exec();
    }
}
