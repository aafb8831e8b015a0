//! Restores archived runs to the database.

use std::collections::HashSet;

use serde::Serialize;

use crate::{
    access::{Actor, OrganizationId},
    archive::{ArchiveError, Lines},
    db, id,
    input::{self, member, text},
    timestamp::Timestamp,
};

/// Failure to restore runs. No run of the object was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] db::Error),
}

/// Outcome of a restoration.
#[derive(Debug, Default)]
pub struct Restored {
    /// Runs that were restored.
    pub restored: Vec<String>,
    /// Runs that existed already, and are unchanged.
    pub present: Vec<String>,
    /// Sub-runs of the restored runs.
    pub sub_runs: Vec<String>,
}

#[derive(Serialize)]
struct Changes<'a> {
    object: &'a str,
    kept_days: u16,
}

/// Restores those runs of an object that are not in the database, all or none, and keeps them for this many days.
pub async fn restore_runs(
    pool: &db::Pool,
    mut lines: Lines,
    run_ids: Vec<String>,
    days: u16,
    has_audit: bool,
) -> Result<Restored, RestoreError> {
    let mut outcome = Restored::default();
    let mut transaction = db::begin(pool).await?;
    for run_id in run_ids {
        let is_present = db::retention::exists(&mut transaction, &run_id).await?;
        if is_present { &mut outcome.present } else { &mut outcome.restored }.push(run_id);
    }
    let wanted: HashSet<&str> = outcome.restored.iter().map(String::as_str).collect();
    let columns = db::retention::begin_restore(&mut transaction).await?;
    while let Some(line) = lines.next().await? {
        if !wanted.contains(line.run_id.as_str()) {
            continue;
        }
        if let Err(error) = db::retention::restore(&mut transaction, &columns, &line.table, &line.row).await {
            // A damaged object can have rows that the database refuses. Its checksum is behind the last row.
            while lines.next().await?.is_some() {}
            return Err(error.into());
        }
        outcome.sub_runs.extend(member(&line.row, "child_run_id").and_then(text));
    }
    db::retention::keep_restored(&mut transaction, &outcome.restored, days.into()).await?;
    if has_audit {
        let object = lines.name().as_str();
        for run in lines.header().runs.iter().filter(|run| wanted.contains(run.run_id.as_str())) {
            let actor = Actor { organization: OrganizationId::stored(&run.organization_id), ..Actor::system() };
            let changes = input::to_raw(&Changes { object, kept_days: days });
            let entry = db::audit::Entry {
                entity_type: "run",
                entity_id: id::run_entity_id(&run.run_id),
                entity_name: &run.run_id,
                action: "restore",
                before: None,
                after: Some(&changes),
            };
            db::audit::insert(&mut transaction, &actor, entry, Timestamp::now()).await?;
        }
    }
    db::commit(transaction).await?;
    Ok(outcome)
}
