//! One job in a worker: pull the base, read the rows, train, write the model; every end of it reaches the store.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tunesmith_hub::{Hub, Progress, Pulled};
use tunesmith_ml::error::MlError;
use tunesmith_ml::spec::JobSpec;
use tunesmith_ml::train::{Control, Finished, Outcome, Plan, Prepared};
use tunesmith_store::{JobRow, LeaseToken, NewEvent, Staging, Store, model_name};

use super::card::Card;
use super::data::{LocalFile, TRAINING_FILE, VALIDATION_FILE};
use super::failure::Failure;
use super::finish::{Ended, finish};
use super::plan::{Inputs, prepare};
use super::reporter::{Reporter, Wish, keep_lease};
use super::share::Share;
use crate::config::Config;

/// What a worker works with.
pub struct Machine {
    /// Rows and blobs.
    pub store: Store,
    /// Where base models come from.
    pub hub: Arc<Hub>,
    /// The configuration.
    pub config: Arc<Config>,
    /// The threads of the maths.
    pub pool: Arc<rayon::ThreadPool>,
    /// How many they are.
    pub threads: usize,
    /// Cancelled when the worker is to end.
    pub stop: CancellationToken,
}

/// Works on a claimed job until it is finished, failed, paused, given back or lost.
pub async fn work(machine: &Machine, lease: LeaseToken, job: JobRow) {
    let (wish, done) = (Wish::default(), CancellationToken::new());
    let keeper = tokio::spawn(keep_lease(machine.store.clone(), lease.clone(), wish.clone(), machine.stop.clone(), done.clone()));
    let result = run(machine, &lease, &job, &wish).await;
    done.cancel();
    if let Err(error) = keeper.await {
        tracing::error!(%error, "the lease's keeper failed");
    }
    if let Err(failure) = result
        && !failure.lost_lease()
        && wish.control() != Control::Stop
    {
        tracing::warn!(job_id = %job.id, error = %failure, "the job failed");
        if let Err(error) = machine.store.fail(&lease, &failure.to_job_error()).await {
            tracing::error!(job_id = %job.id, %error, "the failure could not be written");
        }
    }
}

/// A trained job, or nothing if the loop did not reach its end.
struct Trained {
    finished: Box<Finished>,
    plan: Plan,
    /// Holds the model's folder until it is moved.
    _staging: Staging,
}

async fn run(machine: &Machine, lease: &LeaseToken, job: &JobRow, wish: &Wish) -> Result<(), Failure> {
    crate::machine::reset_peak_memory();
    let Some(base) = pull(machine, lease, job, wish).await? else { return leave(machine, lease, wish).await };
    let mut spec: JobSpec =
        serde_json::from_value(job.spec.clone()).map_err(|e| Failure::Panic(format!("the stored settings cannot be read: {e}")))?;
    let staging = machine.store.blobs().staging(&job.id.to_string())?;
    let (prepared, warnings) = match prepared(machine, job, &spec, &base, &staging, wish).await {
        Err(Failure::Ml(MlError::Interrupted)) => return leave(machine, lease, wish).await,
        other => other?,
    };
    spec.training.max_length = Some(prepared.plan.max_length);
    let estimate = i64::try_from(prepared.plan.estimated_memory_bytes).ok();
    machine.store.update_spec(lease, &serde_json::to_value(&spec).unwrap_or_default(), estimate).await?;
    machine.store.append_events(lease, &warnings.into_iter().map(NewEvent::warn).collect::<Vec<_>>()).await?;
    if wish.control() != Control::Continue {
        return leave(machine, lease, wish).await;
    }
    machine.store.mark_running(lease).await?;
    let card = Card {
        name: model_name(&job.model, job.suffix.as_deref(), job.id),
        base: job.model.clone(),
        revision: base.revision.clone(),
        licence: base.licence.clone(),
        spec,
        plan: prepared.plan.clone(),
    };
    match train(machine, lease, job, wish, prepared, card.clone(), staging).await? {
        Some(Trained { finished, plan, _staging }) => {
            let ended = Ended { finished: &finished, plan: &plan, card: &card, base: &base, job };
            finish(machine, lease, ended).await
        }
        None => leave(machine, lease, wish).await,
    }
}

/// The loop ended early: on the user's pause, with the worker, or because the job is somebody else's.
async fn leave(machine: &Machine, lease: &LeaseToken, wish: &Wish) -> Result<(), Failure> {
    match wish.control() {
        Control::Stop => tracing::info!(job_id = %lease.job, "the job was cancelled or taken over"),
        _ if wish.is_pause() => drop(machine.store.paused(lease).await?),
        _ => drop(machine.store.release(lease).await?),
    }
    Ok(())
}

/// Fetches the base; nothing if the user wants something else meanwhile. What was fetched so far stays.
async fn pull(machine: &Machine, lease: &LeaseToken, job: &JobRow, wish: &Wish) -> Result<Option<Pulled>, Failure> {
    // The server has let the name pass; asked again, the hub answers where `file:` names lie on this machine.
    let (hub, config, model) = (machine.hub.clone(), machine.config.clone(), job.model.clone());
    let find = move || hub.allowed(&model, config.allow_pull.into(), config.model_dir.as_deref());
    let name = tokio::task::spawn_blocking(find).await.map_err(|e| Failure::Panic(e.to_string()))??;
    let (store, phase_lease) = (machine.store.clone(), lease.clone());
    let runtime = tokio::runtime::Handle::current();
    let report = move |p: Progress| {
        let percent = p.total.map_or(String::new(), |t| format!(" ({}%)", p.done * 100 / t.max(1)));
        let phase = tunesmith_store::Progress { phase: Some(format!("downloading {}{percent}", p.file)), ..Default::default() };
        let (store, lease) = (store.clone(), phase_lease.clone());
        runtime.spawn(async move {
            if let Err(error) = store.progress(&lease, &phase).await {
                tracing::debug!(%error, "a download's progress was not written");
            }
        });
    };
    tokio::select! {
        pulled = machine.hub.pull(&name, report) => Ok(Some(pulled?)),
        () = interrupted(wish) => Ok(None),
    }
}

async fn interrupted(wish: &Wish) {
    while wish.control() == Control::Continue {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

/// Runs `work` on the maths' threads; a panic becomes a failure of this job alone.
async fn blocking<T: Send + 'static>(machine: &Machine, work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Result<T, Failure> {
    let pool = machine.pool.clone();
    match tokio::task::spawn_blocking(move || pool.install(work)).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => {
            let payload = error.into_panic();
            let text = payload.downcast_ref::<String>().cloned().or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Err(Failure::Panic(text.unwrap_or_else(|| "a panic".to_owned())))
        }
        Err(error) => Err(Failure::Panic(error.to_string())),
    }
}

async fn prepared(
    machine: &Machine,
    job: &JobRow,
    spec: &JobSpec,
    base: &Pulled,
    staging: &Staging,
    wish: &Wish,
) -> Result<(Prepared, Vec<String>), Failure> {
    let train = LocalFile::of(&machine.store, &machine.store.file(job.training_file).await?, TRAINING_FILE)?;
    let eval = match job.validation_file {
        Some(id) => Some(LocalFile::of(&machine.store, &machine.store.file(id).await?, VALIDATION_FILE)?),
        None => None,
    };
    let inputs = Inputs {
        spec: spec.clone(),
        base_name: super::card::base_name(&job.model),
        base_folder: base.model_path(),
        train,
        eval,
        work_dir: staging.path().to_owned(),
    };
    let (config, threads, wish) = (machine.config.clone(), machine.threads, wish.clone());
    blocking(machine, move || prepare(&config, inputs, threads, &|| wish.control() == Control::Continue)).await
}

async fn train(
    machine: &Machine,
    lease: &LeaseToken,
    job: &JobRow,
    wish: &Wish,
    prepared: Prepared,
    card: Card,
    staging: Staging,
) -> Result<Option<Trained>, Failure> {
    let resume = machine.store.resumable_checkpoint(job.id).await?;
    machine.store.truncate_metrics_after(lease, resume.as_ref().map_or(0, |c| c.step)).await?;
    let folder = match &resume {
        Some(c) => machine.store.blobs().local_path(&c.folder_key),
        None => None,
    };
    if let Some(c) = &resume {
        machine.store.append_events(lease, &[NewEvent::info(format!("Resuming from the checkpoint of step {}.", c.step))]).await?;
    }
    let plan = prepared.plan.clone();
    let limit = card.spec.training.save_total_limit;
    let share = Share::new(&machine.config.data_dir, machine.threads);
    let mut reporter = Reporter::start(machine.store.clone(), lease.clone(), wish.clone(), limit, card, share);
    let (outcome, reporter) = blocking(machine, move || {
        let outcome = prepared.run(folder.as_deref(), &mut reporter);
        Ok((outcome, reporter))
    })
    .await?;
    let refused = reporter.finish().await;
    let outcome = outcome.map_err(|error| match refused {
        // The loop knows only that its observer failed; the store knows why.
        Some(refused) => Failure::Store(refused),
        None => Failure::Ml(error),
    })?;
    match outcome {
        Outcome::Finished(finished) => Ok(Some(Trained { finished, plan, _staging: staging })),
        Outcome::Paused | Outcome::Stopped => Ok(None),
    }
}
