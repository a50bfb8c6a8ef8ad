//! The threads that serving computes on, and word to the workers of this machine that they are at work.

use std::path::Path;

use tunesmith_ops::load::LoadPage;

/// The page's file in the data folder.
const FILE: &str = "load";

/// Opens the page through which the server of this data folder tells its load.
///
/// # Errors
/// If the file cannot be made.
pub fn load_page(data_dir: &Path) -> std::io::Result<LoadPage> {
    LoadPage::open(&data_dir.join(FILE))
}

/// The pool of all engines.
pub struct Pool {
    threads: rayon::ThreadPool,
    page: Option<LoadPage>,
}

impl Pool {
    /// A pool of so many threads.
    ///
    /// # Errors
    /// If the system has no threads left.
    pub fn new(threads: usize, data_dir: &Path) -> Result<Self, rayon::ThreadPoolBuildError> {
        let threads = tunesmith_ops::threads::build_pool(threads)?;
        let page = load_page(data_dir).inspect_err(|error| tracing::warn!(%error, "training will not make room for answers")).ok();
        page.as_ref().inspect(|page| page.clear());
        Ok(Self { threads, page })
    }

    /// Runs a pass on the pool's threads.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let _pass = self.page.as_ref().map(LoadPage::pass);
        self.threads.install(work)
    }
}
