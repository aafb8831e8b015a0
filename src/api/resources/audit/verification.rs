//! `/audit-logs/verify`: verification of the audit trail by its chain of hashes.

use std::time::{Duration, Instant};

use axum::{Json, extract::State};
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    access::OrganizationId,
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::Query,
        sets,
    },
    db::{
        self,
        audit::{self, Chain},
    },
    input::{self, FieldError},
};

/// Number of seals that are read at a time.
const SEALS: i64 = 50;
/// Time-out of a verification. After it, the answer says how far it came.
const VERIFY_TIME: Duration = Duration::from_secs(6);
/// Maximum number of problems in an answer.
const MAX_PROBLEMS: usize = 100;

/// Result of a verification.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditVerification)]
pub struct Verification {
    /// Whether no problem was found in the checked part.
    valid: bool,
    /// Whether the end of the trail was reached. If not, continue with `checked_to_seal` as `from_seal`.
    complete: bool,
    /// Number of checked seals.
    seals: u64,
    /// Number of existing entries that they cover.
    entries: i64,
    /// Number of entries that are not sealed yet; they will be a moment later. Counted only at the end of the trail.
    unsealed: i64,
    /// Number of the last checked seal; 0 if there is none.
    checked_to_seal: i64,
    /// Hash of that seal. If it is kept elsewhere, it proves later that this part of the trail is unchanged (`seal`
    /// and `hash`).
    head: Option<String>,
    /// Problems that were found, up to 100.
    problems: Vec<Problem>,
}

/// Problem in the audit trail.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditProblem)]
pub struct Problem {
    /// Kind of the problem.
    #[schema(value_type = sets::AuditProblemKind)]
    kind: &'static str,
    /// Seal that it concerns, if any.
    seal: Option<i64>,
    /// Entry that it concerns, if any.
    entry_id: Option<Uuid>,
}

/// Verify the audit trail
///
/// Compares the trail with its chain of hashes: whether an entry was changed, removed, or added without the service.
///
/// Entries are sealed a moment after they are written; each seal covers the hashes of its entries and the previous
/// seal. A person with full access to the database could also rebuild the chain: keep `head` elsewhere, and pass it
/// as `seal` and `hash` later. Entries that were deleted because of their age are no problem. Added entries are only
/// detected if one call reaches the end of the trail.
#[utoipa::path(
    get, path = "/audit-logs/verify", tag = "access",
    params(
        ("from_seal" = Option<i64>, Query, minimum = 0, description = "Continues after this seal: `checked_to_seal` of an earlier answer"),
        ("seal" = Option<i64>, Query, minimum = 1, description = "A seal that has to exist with this `hash`"),
        ("hash" = Option<String>, Query, pattern = "^[0-9a-f]{64}$", description = "`head` of an earlier answer"),
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
    let (organization, started) = (caller.organization(), Instant::now());
    let known = known.as_ref();
    let found =
        app.reads.read_snapshot(|mut conn| async move { verify(&mut conn, organization, from, known, started).await });
    Ok(Json(found.await?))
}

/// Verifies the trail from a seal on, as far as the time since `started` allows. `known`: a seal with its hash.
async fn verify(
    conn: &mut PgConnection,
    organization: &OrganizationId,
    from: Option<i64>,
    known: Option<&(i64, String)>,
    started: Instant,
) -> Result<Verification, db::Error> {
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
    let is_shortened = audit::is_shortened(&mut *conn).await?;
    // The very first seal may refer to deleted entries.
    let mut chain = Chain::new(from.unwrap_or_default(), from.is_none() && is_shortened);
    let mut is_known_seen = false;
    while started.elapsed() < VERIFY_TIME && !found.complete {
        let seals = audit::check_seals(&mut *conn, organization, found.checked_to_seal, SEALS).await?;
        found.complete = seals.is_empty();
        for seal in seals {
            let mut problem = |kind, entry_id| found.problems.push(Problem { kind, seal: Some(seal.number), entry_id });
            if let Some(kind) = chain.add(&seal) {
                problem(kind, None);
            }
            for id in seal.changed {
                problem("entry_changed", Some(id));
            }
            for id in seal.missing {
                problem("entry_missing", Some(id));
            }
            if let Some((number, hash)) = known
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
        }
    }
    if found.complete {
        let (all, unsealed) = audit::count(&mut *conn, organization).await?;
        found.unsealed = unsealed;
        if from.is_none() && all != found.entries + unsealed {
            let limit = i64::try_from(MAX_PROBLEMS).unwrap_or(i64::MAX);
            for id in audit::uncovered(&mut *conn, organization, limit).await? {
                found.problems.push(Problem { kind: "entry_added", seal: None, entry_id: Some(id) });
            }
        }
        if let Some((seal, _)) = known.filter(|(seal, _)| !is_known_seen && *seal > from.unwrap_or_default()) {
            found.problems.push(Problem { kind: "seal_missing", seal: Some(*seal), entry_id: None });
        }
    }
    found.head = chain.hash();
    found.valid = found.problems.is_empty();
    found.problems.truncate(MAX_PROBLEMS);
    Ok(found)
}
