//! What follows from the configuration: the data crate's limits, threads of workers.

use super::Config;

impl Config {
    /// Bounds on data files, as the data crate takes them.
    pub fn data_limits(&self) -> tunesmith_data::Limits {
        let l = &self.limits;
        tunesmith_data::Limits {
            file_bytes: l.max_file_bytes,
            unpacked_bytes: l.max_unpacked_bytes,
            ratio: l.max_unpack_ratio,
            line_bytes: l.max_line_bytes,
        }
    }

    /// Threads for the maths of one worker: the cores shared among the workers, unless something else is asked for.
    pub fn threads_of_a_worker(&self) -> usize {
        let shared = self.threads.unwrap_or_else(crate::machine::cores) / self.workers.max(1);
        self.worker_threads.unwrap_or(shared).max(1)
    }

    /// Threads for the maths of answers.
    pub fn threads_of_serving(&self) -> usize {
        self.threads.unwrap_or_else(crate::machine::cores).max(1)
    }

    /// Bytes that all jobs together may be estimated at.
    pub fn jobs_bytes(&self) -> u64 {
        self.budgets.jobs_bytes.unwrap_or_else(|| crate::machine::memory_limit().saturating_sub(self.models_bytes()))
    }

    /// Bytes of keys and values of each language model.
    pub fn kv_cache_bytes(&self) -> u64 {
        self.budgets.kv_cache_bytes.unwrap_or_else(|| self.models_bytes() / 4)
    }

    /// How long a lease lives without a beat.
    pub fn lease_timeout(&self) -> std::time::Duration {
        std::time::Duration::from_secs(self.lease_seconds)
    }
}
