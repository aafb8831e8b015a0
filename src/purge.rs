//! Deletion of runs whose retention is over, in bounded batches with pauses. If there is an archive, a batch is
//! written to it first. The loop runs in every `serve` process, and all processes together execute one batch at a time.
//!
//! After a crash: a batch is deleted as a whole or not at all, and another process continues when the token has
//! expired. A batch that was archived and not deleted is archived again.

use std::time::Duration;

use chrono::Timelike as _;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    archive::{Archive, ArchiveError, ArchivedRun, Header},
    config,
    db::{
        self,
        retention::{Claim, Ended},
    },
    lifecycle::Lifecycle,
    retention::{self, Member},
};

/// Interval at which a process checks whether a batch is due.
const POLL_EVERY: Duration = Duration::from_secs(5);
/// Pause between two passes.
const PASS_EVERY: Duration = Duration::from_mins(1);
/// Pause after a failure, of the archive for example.
const RETRY_AFTER: Duration = Duration::from_mins(1);
/// Number of runs that are checked together.
const PAGE: i64 = 1000;
/// Maximum number of runs and steps that one transaction deletes. One run is always deleted as a whole.
const BATCH_RUNS: usize = 500;
const BATCH_STEPS: i64 = 5000;
/// Pause after a batch as a multiple of the duration of the batch, so that requests are hardly affected.
const PAUSE_FACTOR: u32 = 9;
/// Maximum pause after a batch: a database that is this slow has another problem.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// Validity of a token: a process that has not renewed it loses its batch.
const LEASE: Duration = Duration::from_mins(2);
/// Validity of the token while the process writes to the archive.
const ARCHIVE_LEASE: Duration = Duration::from_mins(20);
/// Time limit for deleting a batch, which is one run at least.
const DELETE_LIMIT: Duration = Duration::from_mins(1);
/// Time limit for reading a batch for the archive and storing it.
const ARCHIVE_LIMIT: Duration = Duration::from_mins(15);
/// Maximum number of lines that wait for compression.
const MAX_PENDING_LINES: usize = 4;

/// Failure of a batch.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    /// The archive cannot be written; nothing is deleted.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] db::Error),
}

/// Outcome of a turn.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// No batch is due, or another process executes one.
    NotNow,
    /// There may be more runs to delete.
    More,
    /// There are no more runs to delete now.
    Done,
}

/// Deletion of ended runs. Cheap to clone.
#[derive(Clone)]
pub struct Purge {
    pool: db::Pool,
    default_days: i32,
    archive: Option<Archive>,
    has_audit: bool,
    /// See [`PAUSE_FACTOR`].
    pause_factor: u32,
}

impl Purge {
    /// Creates it. Neither the database nor the archive has to be available yet.
    pub fn new(pool: db::Pool, settings: &config::Retention, has_audit: bool) -> anyhow::Result<Self> {
        let archive = settings.archive.as_ref().map(Archive::new).transpose()?;
        Ok(Self { pool, default_days: settings.days, archive, has_audit, pause_factor: PAUSE_FACTOR })
    }

    /// Starts the loop.
    pub fn start(self, lifecycle: &Lifecycle) {
        let stop = lifecycle.soft_stop().clone();
        lifecycle.spawn("retention", async move {
            // A turn that is cancelled here has no effect, or another process completes it.
            tokio::select! {
                () = self.run() => {}
                () = stop.cancelled() => {}
            }
        });
    }

    async fn run(self) {
        loop {
            tokio::time::sleep(POLL_EVERY).await;
            loop {
                match self.turn(false).await {
                    Ok(Turn::More) => {}
                    Ok(Turn::NotNow | Turn::Done) => break,
                    Err(PurgeError::Archive(error)) => {
                        tracing::error!("no runs are deleted, because they cannot be archived: {error}");
                        break;
                    }
                    Err(PurgeError::Db(error)) if error.is_statement_timeout() || !error.is_retryable() => {
                        tracing::error!(error = &error as &dyn std::error::Error, "no runs are deleted: {error}");
                        break;
                    }
                    Err(PurgeError::Db(error)) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "no runs are deleted: {error}");
                        break;
                    }
                }
            }
        }
    }

    /// Deletes all runs whose retention is over, without pauses. False if another process executes a batch.
    pub async fn pass(&self) -> Result<bool, PurgeError> {
        let this = Self { pause_factor: 0, ..self.clone() };
        loop {
            match this.turn(true).await? {
                Turn::More => {}
                Turn::Done => return Ok(true),
                Turn::NotNow => return Ok(false),
            }
        }
    }

    /// Checks a page of runs, and deletes those whose retention is over.
    async fn turn(&self, at_once: bool) -> Result<Turn, PurgeError> {
        let pool = self.pool.clone();
        let claimed =
            db::bounded(async move { db::retention::claim(&pool, LEASE.as_secs_f64(), at_once).await }).await?;
        let Some(mut claim) = claimed else { return Ok(Turn::NotNow) };
        let holder = claim.holder;
        let done = self.page(&mut claim).await;
        let pause = match &done {
            Ok(Turn::NotNow | Turn::Done) => return done,
            Ok(Turn::More) => Duration::ZERO,
            Err(_) => RETRY_AFTER,
        };
        let pool = self.pool.clone();
        db::bounded(async move { db::retention::release(&pool, holder, pause.as_secs_f64()).await }).await?;
        done
    }

    async fn page(&self, claim: &mut Claim) -> Result<Turn, PurgeError> {
        let (pool, default_days) = (self.pool.clone(), self.default_days);
        let (now, policies) = db::bounded(async move { db::retention::policies(&pool, default_days).await }).await?;
        // Rounded down to the minute, so that a pass ends.
        let now = now.with_second(0).and_then(|now| now.with_nanosecond(0)).unwrap_or(now);
        let range = claim.scan.next(&policies, now);
        let Some(range) = range else {
            self.end(claim.clone()).await?;
            return Ok(Turn::Done);
        };
        let (started, pool) = (Instant::now(), self.pool.clone());
        let ended = db::bounded(async move { db::retention::ended(&pool, range, PAGE).await }).await?;
        let is_last = i64::try_from(ended.len()).is_ok_and(|count| count < PAGE);
        let reached = ended.last().map(|run| run.ended_at).filter(|_| !is_last).unwrap_or(range.until);
        let is_over = |run: &Ended| policies.is_over(&run.organization_id, &run.workflow_name, run.ended_at, now);
        let run_ids: Vec<String> = ended.into_iter().filter(is_over).map(|run| run.run_id).collect();
        if run_ids.is_empty() {
            self.pause(started).await;
        } else {
            let pool = self.pool.clone();
            let families = db::bounded(async move { db::retention::families(&pool, &run_ids).await }).await?;
            let members = retention::deletable(families, &policies, now);
            self.pause(started).await;
            let roots: Vec<Member> =
                members.iter().filter(|member| member.run_id == member.root_run_id).cloned().collect();
            for batch in retention::batches(members, BATCH_RUNS, BATCH_STEPS) {
                let is_guard = |root: &&Member| {
                    batch.iter().any(|member| member.root_run_id == root.run_id)
                        && batch.iter().all(|member| member.run_id != root.run_id)
                };
                let guards = roots.iter().filter(is_guard).cloned().collect();
                if !self.batch(claim, batch, guards).await? {
                    return Ok(Turn::NotNow);
                }
            }
        }
        claim.scan.advance(range, reached, now);
        Ok(if self.keep(claim, LEASE).await? { Turn::More } else { Turn::NotNow })
    }

    /// Archives and deletes runs. False if another process has taken over.
    async fn batch(&self, claim: &mut Claim, members: Vec<Member>, guards: Vec<Member>) -> Result<bool, PurgeError> {
        if let Some(archive) = &self.archive {
            if !self.keep(claim, ARCHIVE_LEASE).await? {
                return Ok(false);
            }
            let stored = match tokio::time::timeout(ARCHIVE_LIMIT, self.store(archive, &members)).await {
                Ok(stored) => stored,
                Err(_) => Err(ArchiveError::Server("the archive takes too long".to_owned()).into()),
            };
            self.report(&stored).await;
            stored?;
        }
        claim.pass.is_archived = self.archive.is_some();
        let (started, pool, mut own) = (Instant::now(), self.pool.clone(), claim.clone());
        let deleted = db::bounded_by(DELETE_LIMIT, async move {
            let rows = db::retention::delete(&pool, &mut own, &members, &guards, LEASE.as_secs_f64()).await?;
            Ok(rows.map(|rows| (own, rows)))
        });
        let Some((own, rows)) = deleted.await? else { return Ok(false) };
        *claim = own;
        metrics::histogram!("retention_batch_seconds").record(started.elapsed().as_secs_f64());
        for (table, count) in rows {
            metrics::counter!("retention_deleted_rows_total", "table" => table).increment(count);
        }
        self.pause(started).await;
        Ok(true)
    }

    /// Waits in proportion to the time that has passed since `since`.
    async fn pause(&self, since: Instant) {
        tokio::time::sleep((since.elapsed() * self.pause_factor).min(MAX_PAUSE)).await;
    }

    /// Writes the runs to the archive. They are stored when this returns.
    async fn store(&self, archive: &Archive, members: &[Member]) -> Result<(), PurgeError> {
        let run = |member: &Member| ArchivedRun {
            run_id: member.run_id.clone(),
            organization_id: member.organization.clone(),
            workflow_name: member.workflow.clone(),
            status: member.status.clone(),
            ended_at: member.ended_at,
        };
        let (sender, lines) = mpsc::channel(MAX_PENDING_LINES);
        let spooling = archive.spool(Header::new(members.iter().map(run).collect()), lines);
        let (pool, run_ids) =
            (self.pool.clone(), members.iter().map(|member| member.run_id.clone()).collect::<Vec<_>>());
        let exported =
            db::bounded_by(ARCHIVE_LIMIT, async move { db::retention::export(&pool, &run_ids, sender).await }).await;
        // The panic itself was logged by the panic hook.
        let spooled =
            spooling.await.unwrap_or_else(|_| Err(ArchiveError::File("the archive cannot be written".to_owned())));
        exported?;
        let bytes = archive.store(spooled?).await?;
        metrics::counter!("retention_archived_runs_total").increment(members.len() as u64);
        metrics::counter!("retention_archived_bytes_total").increment(bytes);
        Ok(())
    }

    /// Records in the database whether the archive can be written, for all processes.
    async fn report(&self, stored: &Result<(), PurgeError>) {
        let failure = match stored {
            Ok(()) => None,
            Err(PurgeError::Archive(error)) => Some(error.to_string()),
            // The database failed, not the archive.
            Err(PurgeError::Db(_)) => return,
        };
        if failure.is_some() {
            metrics::counter!("retention_archive_failures_total").increment(1);
        }
        let pool = self.pool.clone();
        let noted = db::bounded(async move { db::retention::note_archive(&pool, failure.as_deref()).await });
        if let Err(error) = noted.await {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "the state of the archive was not recorded: {error}"
            );
        }
    }

    async fn keep(&self, claim: &Claim, lease: Duration) -> Result<bool, db::Error> {
        let (pool, claim) = (self.pool.clone(), claim.clone());
        db::bounded(async move { db::retention::keep(&pool, &claim, lease.as_secs_f64()).await }).await
    }

    /// Ends a pass.
    async fn end(&self, claim: Claim) -> Result<(), db::Error> {
        let runs: u64 = claim.pass.organizations.values().map(|deleted| deleted.runs).sum();
        let (pool, has_audit) = (self.pool.clone(), self.has_audit);
        db::bounded(async move {
            db::retention::end_pass(&pool, &claim, PASS_EVERY.as_secs_f64(), has_audit).await?;
            db::storage::sample(&pool).await
        })
        .await?;
        if runs > 0 {
            tracing::info!(runs, "{runs} runs were deleted, because their retention is over");
        }
        Ok(())
    }
}
