//! `dry_run`: what a job would do, without filing it.
//!
//! `create.rs` calls it after every check of a real request. The model is pulled if need be, and every row is tokenised,
//! as the job's worker would.

use std::time::Duration;

use serde::Serialize;
use tunesmith_ml::spec::JobSpec;
use tunesmith_store::FileRow;
use utoipa::ToSchema;

use super::echo::Echo;
use super::estimate::allowed_name;
use crate::api::error::ApiError;
use crate::api::state::AppState;

/// What a job would do.
#[derive(Debug, Serialize, ToSchema)]
pub struct DryRun {
    /// Always `fine_tuning.job.plan`.
    pub object: &'static str,
    /// Always true.
    pub dry_run: bool,
    /// The base model.
    pub model: String,
    /// Rows to train on.
    pub train_rows: u64,
    /// Rows to evaluate on.
    pub eval_rows: u64,
    /// Tokens of one pass over the training rows.
    pub train_tokens: u64,
    /// Tokens of the longest training row.
    pub longest_row_tokens: u64,
    /// Rows that do not fit.
    pub truncated_rows: u64,
    /// Tokens that are cut off them.
    pub truncated_tokens: u64,
    /// The longest sequence in tokens.
    pub max_length: u64,
    /// Optimiser steps.
    pub total_steps: u64,
    /// Precision of the products.
    pub dtype: String,
    /// Memory at its peak.
    pub estimated_memory_bytes: u64,
    /// Training time on this machine, if nothing else runs.
    pub estimated_seconds: f64,
    /// The settings as the job would have them.
    #[schema(value_type = Object)]
    pub spec: serde_json::Value,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Prepares the job and answers its size.
pub async fn plan(
    state: &AppState,
    model: &str,
    spec: JobSpec,
    train: FileRow,
    eval: Option<FileRow>,
    warnings: Vec<String>,
) -> Result<DryRun, ApiError> {
    let name = allowed_name(state, model).await?;
    let wait = Duration::from_secs(state.config.budgets.pull_wait_seconds);
    let pulled = match tokio::time::timeout(wait, state.hub.pull(&name, |_| ())).await {
        Ok(pulled) => pulled?,
        Err(_) => return Err(ApiError::model_loading("The model is still being downloaded; try again in a moment.", 10)),
    };
    let _turn = state.parsing.acquire().await.map_err(ApiError::internal)?;
    let echoed = Echo::whole(&spec);
    let (config, store, name) = (state.config.clone(), state.store.clone(), model.to_owned());
    let work = move || crate::worker::plan(&config, &store, spec, &pulled, &name, (&train, eval.as_ref()));
    let run = tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)?.map_err(|e| e.to_job_error())?;
    let plan = run.plan;
    Ok(DryRun {
        object: "fine_tuning.job.plan",
        dry_run: true,
        model: model.to_owned(),
        train_rows: plan.train_rows as u64,
        eval_rows: plan.eval_rows as u64,
        train_tokens: plan.train_tokens,
        longest_row_tokens: plan.longest_row_tokens as u64,
        truncated_rows: plan.truncated_rows as u64,
        truncated_tokens: plan.truncated_tokens,
        max_length: plan.max_length as u64,
        total_steps: plan.total_steps,
        dtype: plan.dtype,
        estimated_memory_bytes: plan.estimated_memory_bytes,
        estimated_seconds: run.estimated_seconds,
        spec: echoed,
        warnings: warnings.into_iter().chain(run.warnings).collect(),
    })
}
