//! Command `archive`: lists, shows and restores archived runs.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::{self, Write as _},
};

use anyhow::Context as _;
use chrono::NaiveDate;
use clap::{Args, Subcommand};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use workflow_api::{
    actions::restore_runs,
    archive::{Archive, ArchiveError, ArchivedRun, Header, ObjectName},
    config::Config,
    db,
    timestamp::Timestamp,
};

/// Number of headers that are read at the same time.
const HEADERS: usize = 16;

#[derive(Subcommand)]
pub enum Action {
    /// List the objects of the archive, or the runs in them
    List(Filter),
    /// Print a run with its steps, their waits and its log, as JSON
    Show {
        /// Id of the run
        run_id: String,
    },
    /// Put runs back into the database, with their sub-runs, so that the API and the user interface show them
    Restore {
        /// Ids of the runs
        #[arg(required = true)]
        run_ids: Vec<String>,
        /// Days for which they are kept
        #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=3650))]
        days: u16,
    },
}

/// Filter of the list.
#[derive(Args)]
pub struct Filter {
    /// List the runs instead of the objects
    #[arg(long)]
    runs: bool,
    /// Only with runs that ended on this day (UTC) or later, such as 2026-08-30
    #[arg(long, value_name = "DATE")]
    from: Option<NaiveDate>,
    /// Only with runs that ended on this day (UTC) or before
    #[arg(long, value_name = "DATE")]
    to: Option<NaiveDate>,
    /// Only runs of this workflow, by its name
    #[arg(long, value_name = "NAME", requires = "runs")]
    workflow: Option<String>,
    /// Only runs of this organisation, by its id
    #[arg(long, value_name = "ID", requires = "runs")]
    organization: Option<String>,
}

impl Filter {
    fn has_day(&self, first: NaiveDate, last: NaiveDate) -> bool {
        self.from.is_none_or(|from| last >= from) && self.to.is_none_or(|to| first <= to)
    }

    fn has(&self, run: &ArchivedRun) -> bool {
        let is = |wanted: &Option<String>, name: &str| wanted.as_deref().is_none_or(|wanted| wanted == name);
        self.has_day(run.ended_at.date(), run.ended_at.date())
            && is(&self.workflow, &run.workflow_name)
            && is(&self.organization, &run.organization_id)
    }
}

/// Runs the action.
pub async fn run(config: &Config, action: Action) -> anyhow::Result<bool> {
    let settings = config.retention.archive.as_ref().context("RUN_ARCHIVE is not set, so there is no archive")?;
    let archive = Archive::new(settings)?;
    match action {
        Action::List(filter) => list(&archive, &filter).await,
        Action::Show { run_id } => show(&archive, &run_id).await,
        Action::Restore { run_ids, days } => {
            let pool = db::pool(&config.database);
            let restored = restore(&archive, &pool, run_ids, days, config.audit).await;
            db::close(&pool).await;
            restored
        }
    }
}

async fn list(archive: &Archive, filter: &Filter) -> anyhow::Result<bool> {
    let objects = archive.list().await?;
    let objects =
        objects.into_iter().filter(|found| filter.has_day(found.name.first().date(), found.name.last().date()));
    let mut out = io::stdout().lock();
    if !filter.runs {
        for object in objects {
            let (first, last) = (object.name.first().date(), object.name.last().date());
            writeln!(out, "{first} {last} {:>6} runs {:>12} bytes  {}", object.name.runs(), object.bytes, object.name)?;
        }
        return Ok(true);
    }
    let mut headers = headers(archive, objects.map(|object| object.name).collect());
    while let Some((_, header)) = headers.try_next().await? {
        for run in header.runs.iter().filter(|run| filter.has(run)) {
            let ended_at = Timestamp::from(run.ended_at).to_string();
            let ArchivedRun { run_id, organization_id, workflow_name, status, .. } = run;
            writeln!(out, "{ended_at:<27} {status:<9} {run_id}  {organization_id}  {workflow_name}")?;
        }
    }
    Ok(true)
}

/// Reads the headers of objects, in the order of `names`.
fn headers(
    archive: &Archive,
    names: Vec<ObjectName>,
) -> impl Stream<Item = Result<(ObjectName, Header), ArchiveError>> + Unpin + '_ {
    let read = move |name: ObjectName| async move {
        let header = archive.open(&name).await?.header().clone();
        Ok((name, header))
    };
    Box::pin(stream::iter(names).map(read).buffered(HEADERS))
}

/// Finds the objects with these runs. A run that was archived twice is taken from the later object.
async fn find(archive: &Archive, run_ids: &HashSet<String>) -> anyhow::Result<HashMap<String, ObjectName>> {
    let names = archive.list().await?.into_iter().map(|object| object.name).collect();
    let mut found: HashMap<String, ObjectName> = HashMap::new();
    let mut headers = headers(archive, names);
    while let Some((name, header)) = headers.try_next().await? {
        for run in header.runs.into_iter().filter(|run| run_ids.contains(&run.run_id)) {
            let other = found.entry(run.run_id).or_insert_with(|| name.clone());
            if other.written_order() < name.written_order() {
                *other = name.clone();
            }
        }
    }
    Ok(found)
}

async fn show(archive: &Archive, run_id: &str) -> anyhow::Result<bool> {
    let found = find(archive, &HashSet::from([run_id.to_owned()])).await?;
    let Some(name) = found.get(run_id) else {
        eprintln!("workflow-api: {run_id} is not in the archive");
        return Ok(false);
    };
    let mut lines = archive.open(name).await?;
    let mut out = io::stdout().lock();
    write!(out, "{{\"object\": {}", serde_json::to_string(name.as_str())?)?;
    let mut table = String::new();
    while let Some(line) = lines.next().await? {
        if line.run_id != run_id {
            continue;
        }
        if line.table == table {
            write!(out, ",\n{}", line.row)?;
            continue;
        }
        if !table.is_empty() {
            write!(out, "\n]")?;
        }
        write!(out, ",\n{}: [\n{}", serde_json::to_string(&line.table)?, line.row)?;
        table = line.table;
    }
    writeln!(out, "{}}}", if table.is_empty() { "" } else { "\n]" })?;
    Ok(true)
}

async fn restore(
    archive: &Archive,
    pool: &db::Pool,
    run_ids: Vec<String>,
    days: u16,
    has_audit: bool,
) -> anyhow::Result<bool> {
    let (mut wanted, mut restored) = (run_ids.iter().cloned().collect::<HashSet<_>>(), HashSet::new());
    let mut is_whole = true;
    // The ids of sub-runs are in the waits of the steps.
    while !wanted.is_empty() {
        let found = find(archive, &wanted).await?;
        for run_id in wanted.iter().filter(|run_id| !found.contains_key(*run_id)) {
            is_whole &= !run_ids.contains(run_id);
            eprintln!("workflow-api: {run_id} is not in the archive");
        }
        let mut by_object: BTreeMap<ObjectName, Vec<String>> = BTreeMap::new();
        for (run_id, name) in found {
            by_object.entry(name).or_default().push(run_id);
        }
        wanted.clear();
        for (name, ids) in by_object {
            let lines = archive.open(&name).await?;
            let outcome = restore_runs::restore_runs(pool, lines, ids, days, has_audit).await?;
            for run_id in outcome.present {
                println!("{run_id} is in the database");
            }
            for run_id in &outcome.restored {
                println!("{run_id} was restored for {days} days");
            }
            wanted.extend(outcome.sub_runs);
            restored.extend(outcome.restored);
        }
        wanted.retain(|run_id| !restored.contains(run_id));
    }
    Ok(is_whole)
}
