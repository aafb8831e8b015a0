//! Checks after a load: what was acknowledged is in the table, in the topic and in the audit trail.

use std::{collections::HashSet, time::Duration};

use anyhow::Result;
use sqlx::PgPool;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{kafka, load::Outcome, stack::Stack};

/// Time limit for what follows the acknowledgement.
const PATIENCE: Duration = Duration::from_mins(2);

/// Outcome of a check: what was found, or what is wrong.
pub type Verdict = Result<String, String>;

/// Waits until a number of the database is zero; the rest after the time limit is the error.
pub async fn wait_for_none(pool: &PgPool, count: &'static str) -> Result<Result<(), i64>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left: i64 = sqlx::query_scalar(count).fetch_one(pool).await?;
        if left == 0 {
            return Ok(Ok(()));
        }
        if Instant::now() > deadline {
            return Ok(Err(left));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Runs that have not ended.
pub const OPEN_RUNS: &str = "SELECT count(*) FROM workflow_runs WHERE status IN ('PENDING', 'RUNNING')";
/// Messages that the broker has not acknowledged.
pub const UNSENT: &str = "SELECT count(*) FROM outbox";
/// Runs that have no audit entry yet, less those that have several.
const UNAUDITED: &str = "SELECT (SELECT count(*) FROM workflow_runs)
    - (SELECT count(*) FROM audit_logs WHERE action = 'execute')";

/// Checks that nothing is missing: table, outbox, topic, audit trail; with an executor also the end of each run.
pub async fn nothing_is_missing(stack: &Stack<'_>, acknowledged: &[Uuid], executes: bool) -> Result<Verdict> {
    let mut faults = Vec::new();
    if executes && let Err(open) = wait_for_none(&stack.pool, OPEN_RUNS).await? {
        faults.push(format!("{open} runs have not ended"));
    }
    if let Err(rows) = wait_for_none(&stack.pool, UNSENT).await? {
        faults.push(format!("{rows} rows in the outbox"));
    }
    if let Err(difference) = wait_for_none(&stack.pool, UNAUDITED).await? {
        faults.push(format!("{difference} runs more than audit entries"));
    }
    let stored: Vec<String> = sqlx::query_scalar("SELECT run_id FROM workflow_runs").fetch_all(&stack.pool).await?;
    let ids = stored.iter().filter_map(|run_id| Uuid::try_parse(run_id.strip_prefix("run-")?).ok());
    let stored: HashSet<Uuid> = ids.collect();
    let distinct: HashSet<Uuid> = acknowledged.iter().copied().collect();
    let lost = distinct.difference(&stored).count();
    if lost > 0 || distinct.len() < acknowledged.len() {
        faults.push(format!("of {} acknowledged runs {lost} are not in the table", acknowledged.len()));
    }
    if executes {
        let other: i64 = sqlx::query_scalar("SELECT count(*) FROM workflow_runs WHERE status <> 'COMPLETED'")
            .fetch_one(&stack.pool)
            .await?;
        if other > 0 {
            faults.push(format!("{other} runs are not COMPLETED"));
        }
    }
    let topic = &stack.environment["KAFKA_EXECUTION_TOPIC"];
    let content = kafka::content(&stack.environment["KAFKA_BROKERS"], topic).await?;
    let unsent = stored.difference(&content.run_ids).count();
    if unsent > 0 {
        faults.push(format!("{unsent} runs have no message in the topic"));
    }
    let repeated = content.messages - content.run_ids.len();
    let found = format!("{} runs, {} messages ({repeated} repeats)", stored.len(), content.messages);
    Ok(if faults.is_empty() { Ok(found) } else { Err(format!("{}; found {found}", faults.join("; "))) })
}

/// Checks that a load met no refusal.
pub fn all_accepted(outcome: &Outcome) -> Verdict {
    match outcome.fault() {
        Some(fault) => Err(fault),
        None => Ok(format!("{} requests", outcome.requests())),
    }
}

/// Checks a load that must not meet refusals, and that nothing of it is missing.
pub async fn after_load(stack: &Stack<'_>, outcome: &Outcome, executes: bool) -> Result<Verdict> {
    match outcome.fault() {
        Some(fault) => Ok(Err(fault)),
        None => nothing_is_missing(stack, &outcome.run_ids, executes).await,
    }
}
