//! Lists and counts of jobs.
//!
//! Called by the jobs API, the command line and `/metrics`. The one thing to know: filters by
//! metadata go through rows of `job_metadata`, since JSON functions differ between databases.

use std::collections::BTreeMap;

use sqlx::{QueryBuilder, Sqlite};

use crate::{JobId, JobRow, JobState, Order, Page, PageQuery, Result, Store};

/// Which jobs a list shows; empty shows all.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// Only jobs in one of these states.
    pub states: Vec<JobState>,
    /// Only jobs with all of these pairs in their metadata.
    pub metadata: BTreeMap<String, String>,
}

/// How many jobs are in each state.
pub type JobCounts = BTreeMap<&'static str, i64>;

impl Store {
    /// A page of jobs.
    pub async fn list_jobs(&self, page: &PageQuery<JobId>, filter: &JobFilter) -> Result<Page<JobRow>> {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new("SELECT * FROM jobs WHERE 1 = 1");
        if let Some(after) = page.after {
            query.push(if page.order == Order::Desc { " AND id < " } else { " AND id > " });
            query.push_bind(after.to_string());
        }
        if !filter.states.is_empty() {
            let mut states = query.push(" AND state IN (").separated(", ");
            for state in &filter.states {
                states.push_bind(state.as_str());
            }
            states.push_unseparated(")");
        }
        for (name, value) in &filter.metadata {
            query.push(" AND id IN (SELECT job_id FROM job_metadata WHERE name = ").push_bind(name.as_str());
            query.push(" AND value = ").push_bind(value.as_str()).push(")");
        }
        query.push(if page.order == Order::Desc { " ORDER BY id DESC LIMIT " } else { " ORDER BY id LIMIT " });
        query.push_bind(page.fetch());
        let rows = query.build().fetch_all(self.reader()).await?;
        Ok(Page::cut(rows.iter().map(JobRow::read).collect::<Result<_>>()?, page.limit))
    }

    /// How many jobs are in each state, zeros included.
    pub async fn count_jobs(&self) -> Result<JobCounts> {
        let rows: Vec<(String, i64)> = sqlx::query_as("SELECT state, COUNT(*) FROM jobs GROUP BY state").fetch_all(self.reader()).await?;
        let mut counts: JobCounts = JobState::ALL.iter().map(|state| (state.as_str(), 0)).collect();
        for (state, count) in rows {
            if let Ok(state) = state.parse::<JobState>() {
                counts.insert(state.as_str(), count);
            }
        }
        Ok(counts)
    }
}
