//! `/audit-logs/verify`: the proof that nobody has changed the audit trail.

use std::time::{Duration, Instant};

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::Query,
        sets,
    },
    db::{self, audit},
    input::{self, FieldError},
};

/// Seals that are read at a time.
const SEALS: i64 = 50;
/// A verification that has not come to the end after this says how far it came.
const VERIFY_TIME: Duration = Duration::from_secs(6);
/// Problems that are named.
const MAX_PROBLEMS: usize = 100;

/// What a verification has found.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditVerification)]
pub struct Verification {
    /// Nothing is wrong, as far as was looked.
    valid: bool,
    /// It came to the end. If not, go on with `from_seal` of what `checked_to_seal` says.
    complete: bool,
    /// Seals that were checked.
    seals: u64,
    /// Entries that they cover and that are there.
    entries: i64,
    /// Entries that are too young to be sealed; a moment later they are. Only at the end.
    unsealed: i64,
    /// Number of the last seal that was checked; 0 if there is none.
    checked_to_seal: i64,
    /// Its hash. Kept elsewhere, it proves later that this much of the trail is still what it was (`seal` and `hash`).
    head: Option<String>,
    /// What is wrong, as far as 100.
    problems: Vec<Problem>,
}

/// Something that is wrong with the audit trail.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditProblem)]
pub struct Problem {
    /// What it is.
    #[schema(value_type = sets::AuditProblemKind)]
    kind: &'static str,
    /// The seal, if it is about one.
    seal: Option<i64>,
    /// The entry, if it is about one.
    entry_id: Option<Uuid>,
}

/// Verify the audit trail
///
/// Compares the trail with its chain of hashes: whether an entry was changed, removed, or added past the service.
///
/// Entries are sealed a moment after they were written; each seal covers the hashes of its entries and the seal before.
/// Whoever may change everything in the database could also make the chain anew: keep `head` elsewhere, and give it
/// as `seal` and `hash` later. What has gone because of its age is no problem. Entries that were added are looked for
/// if one call comes to the end.
#[utoipa::path(
    get, path = "/audit-logs/verify", tag = "access",
    params(
        ("from_seal" = Option<i64>, Query, minimum = 0, description = "Goes on behind this seal, as an earlier answer said"),
        ("seal" = Option<i64>, Query, minimum = 1, description = "A seal that has to be there with this `hash`"),
        ("hash" = Option<String>, Query, pattern = "^[0-9a-f]{64}$", description = "As `head` was"),
    ),
    responses((status = 200, body = Verification), (status = 422, body = ErrorBody)),
)]
pub async fn verify_audit_logs(
    State(app): State<App>,
    caller: Caller,
    query: Query,
) -> Result<Json<Verification>, ApiError> {
    let number = |name: &str, least: i64| {
        query.text(name).map(|text| input::query_int(name, text, least..=i64::MAX)).transpose()
    };
    let from = number("from_seal", 0)?;
    let known = match (number("seal", 1)?, query.text("hash")) {
        (None, None) => None,
        (Some(seal), Some(hash)) => Some((seal, hash.to_ascii_lowercase())),
        _ => return Err(FieldError::rule("query.seal", "`seal` and `hash` belong together").into()),
    };
    let organization = caller.organization();
    let started = Instant::now();
    let mut transaction = db::snapshot(&app.pool).await?;
    let mut found = Verification {
        valid: true,
        complete: false,
        seals: 0,
        entries: 0,
        unsealed: 0,
        checked_to_seal: from.unwrap_or_default(),
        head: None,
        problems: Vec::new(),
    };
    let is_shortened = audit::is_shortened(&mut transaction).await?;
    let mut last: Option<String> = None;
    let mut is_known_seen = false;
    while started.elapsed() < VERIFY_TIME && !found.complete {
        let seals = audit::check_seals(&mut transaction, organization, found.checked_to_seal, SEALS).await?;
        found.complete = seals.is_empty();
        for seal in seals {
            let mut problem = |kind, entry_id| found.problems.push(Problem { kind, seal: Some(seal.number), entry_id });
            // The first one of all may refer to what has gone.
            let may_jump = last.is_none() && from.is_none() && is_shortened;
            if !may_jump && seal.number != found.checked_to_seal + 1 {
                problem("seal_missing", None);
            } else if !seal.is_whole || last.is_some_and(|last| last != seal.previous) {
                problem("seal_changed", None);
            }
            for id in seal.changed {
                problem("entry_changed", Some(id));
            }
            for id in seal.missing {
                problem("entry_missing", Some(id));
            }
            if let Some((number, hash)) = &known
                && *number == seal.number
            {
                is_known_seen = true;
                if *hash != seal.hash {
                    problem("hash_differs", None);
                }
            }
            found.seals += 1;
            found.entries += seal.present;
            found.checked_to_seal = seal.number;
            last = Some(seal.hash);
        }
    }
    if found.complete {
        let (all, unsealed) = audit::count(&mut transaction, organization).await?;
        found.unsealed = unsealed;
        if from.is_none() && all != found.entries + unsealed {
            let limit = i64::try_from(MAX_PROBLEMS).unwrap_or(i64::MAX);
            for id in audit::uncovered(&mut transaction, organization, limit).await? {
                found.problems.push(Problem { kind: "entry_added", seal: None, entry_id: Some(id) });
            }
        }
        if let Some((seal, _)) = known.filter(|(seal, _)| !is_known_seen && *seal > from.unwrap_or_default()) {
            found.problems.push(Problem { kind: "seal_missing", seal: Some(seal), entry_id: None });
        }
    }
    db::commit(transaction).await?;
    found.head = last;
    found.valid = found.problems.is_empty();
    found.problems.truncate(MAX_PROBLEMS);
    Ok(Json(found))
}
