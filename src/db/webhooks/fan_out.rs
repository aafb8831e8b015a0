//! Fan-out: a delivery for each endpoint that takes an event, in the transaction that takes the event.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::value::RawValue;
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::{
    deliveries::{self, NewDelivery},
    pushes,
};
use crate::{
    db::{
        self, Error, Pool,
        webhook_events::{self, EventRow},
    },
    event,
    input::{check_json, member, text},
    webhook::{
        Payload,
        envelope::{self, MAX_VALUES_BYTES, Values},
        events,
    },
};

/// Maximum number of events that one transaction takes.
const BATCH: i32 = 100;

/// What an endpoint takes.
#[derive(Clone, sqlx::FromRow)]
#[expect(missing_docs, reason = "the columns are described in the migration")]
pub struct Subscription {
    pub id: Uuid,
    pub organization_id: String,
    pub event_types: Vec<String>,
    pub workflow_names: Option<Vec<String>>,
    pub filter: Option<String>,
    pub payload: String,
    pub enabled: bool,
}

/// Makes the deliveries of the next events. Returns how many events were taken; none if there is none, or while another
/// process takes some.
pub async fn fan_out(pool: &Pool, api: &str) -> Result<usize, Error> {
    // This keeps a system without endpoints free of transactions.
    let sql = "SELECT EXISTS (SELECT FROM webhook_events WHERE to_fan_out)";
    if !sqlx::query_scalar::<_, bool>(sql).fetch_one(pool).await? {
        return Ok(0);
    }
    db::in_transaction(pool, async |conn| {
        let taken = webhook_events::take(&mut *conn, BATCH).await?;
        let organizations: BTreeSet<&str> = taken.iter().map(|event| event.organization_id.as_str()).collect();
        let subscriptions = subscriptions(&mut *conn, &organizations.into_iter().collect::<Vec<_>>()).await?;
        let mut wanted = Vec::new();
        for event in &taken {
            let of_it = subscriptions.iter().filter(|of| of.organization_id == event.organization_id);
            wanted.extend(of_it.filter(|of| of.takes(event)).map(|of| (event, of)));
        }
        deliver(&mut *conn, &wanted, api, false).await?;
        pushes::deliver(conn, &taken).await?;
        Ok(taken.len())
    })
    .await
}

/// Endpoints of these organisations. They are not changed before the transaction ends.
async fn subscriptions(conn: &mut PgConnection, organizations: &[&str]) -> Result<Vec<Subscription>, Error> {
    let sql = "SELECT id, organization_id, event_types, workflow_names, filter, payload, enabled FROM webhooks
               WHERE organization_id = ANY ($1) AND lane IS NULL ORDER BY id FOR SHARE";
    Ok(sqlx::query_as(sql).bind(organizations).fetch_all(conn).await?)
}

/// As [`subscriptions`], of one endpoint.
pub(super) async fn subscription(conn: &mut PgConnection, id: Uuid) -> Result<Option<Subscription>, Error> {
    let sql = "SELECT id, organization_id, event_types, workflow_names, filter, payload, enabled FROM webhooks
               WHERE id = $1 FOR SHARE";
    Ok(sqlx::query_as(sql).bind(id).fetch_optional(conn).await?)
}

impl Subscription {
    /// Whether it takes events of that type and workflow. The filter is checked on the body.
    #[must_use]
    pub fn takes(&self, event: &EventRow) -> bool {
        let is_of_workflow = self
            .workflow_names
            .as_ref()
            .is_none_or(|names| event.workflow_name.as_ref().is_some_and(|name| names.contains(name)));
        is_of_workflow
            && events::takes(&self.event_types, &event.event_type)
            // An endpoint is not told that it is disabled itself.
            && !(event.event_type == "webhook.disabled" && webhook_of(event) == Some(self.id))
    }

    fn is_full(&self) -> bool {
        Payload::parse(&self.payload) == Some(Payload::Full)
    }
}

/// Endpoint that the event is about.
fn webhook_of(event: &EventRow) -> Option<Uuid> {
    let id = member(&event.data.0, "webhook").and_then(|webhook| member(webhook, "id")).and_then(text)?;
    Uuid::try_parse(&id).ok()
}

/// Attempt that waits, of an event that tells that.
fn attempt_of(event: &EventRow) -> Option<String> {
    let waiting = member(&event.data.0, "waiting").filter(|_| event.event_type == "run.waiting")?;
    member(waiting, "attempt_id").and_then(text)
}

/// Input and output of a run.
#[derive(sqlx::FromRow)]
struct RunValues {
    run_id: String,
    is_small: bool,
    input: Option<Json<Box<RawValue>>>,
    output: Option<Json<Box<RawValue>>>,
}

impl RunValues {
    fn values(&self) -> Values<'_> {
        let (input, output) = (self.input.as_ref().map(|json| &*json.0), self.output.as_ref().map(|json| &*json.0));
        let bytes = |value: Option<&RawValue>| value.map_or(0, |value| value.get().len());
        if self.is_small && bytes(input) + bytes(output) <= MAX_VALUES_BYTES {
            Values::Of { input, output }
        } else {
            Values::TooLarge
        }
    }
}

/// Logs which webhooks have a filter from a time when it was not checked, and so get every event.
fn warn_of_filters(wanted: &[(&EventRow, &Subscription)]) {
    let filters: BTreeMap<Uuid, &str> =
        wanted.iter().filter_map(|(_, of)| Some((of.id, of.filter.as_deref()?))).collect();
    for (webhook_id, filter) in filters {
        if let Err(why) = envelope::check_filter(filter) {
            tracing::warn!(%webhook_id, "the filter of a webhook is not about events, and may let all pass: {why}");
        }
    }
}

/// Makes deliveries, in this order, where the filters of the endpoints take them; a dry run makes none. Returns how many.
pub(super) async fn deliver(
    conn: &mut PgConnection,
    wanted: &[(&EventRow, &Subscription)],
    api: &str,
    is_dry: bool,
) -> Result<usize, Error> {
    let full: BTreeSet<&str> =
        wanted.iter().filter(|(_, of)| of.is_full()).filter_map(|(event, _)| event.run_id.as_deref()).collect();
    let runs = if full.is_empty() { BTreeMap::new() } else { run_values(&mut *conn, full).await? };
    let waiting: BTreeSet<String> =
        wanted.iter().filter(|(_, of)| of.is_full()).filter_map(|(event, _)| attempt_of(event)).collect();
    let tokens = if waiting.is_empty() { BTreeMap::new() } else { callback_tokens(&mut *conn, waiting).await? };
    let mut bodies: BTreeMap<(Uuid, bool), String> = BTreeMap::new();
    let mut made = Vec::new();
    for (event, of) in wanted {
        let body = bodies.entry((event.id, of.is_full())).or_insert_with(|| {
            let values = event.run_id.as_ref().filter(|_| of.is_full()).map(|run_id| runs.get(run_id));
            let token = attempt_of(event).filter(|_| of.is_full()).and_then(|attempt| tokens.get(&attempt));
            let callback_url = token.map(|token| format!("{api}/callbacks/{token}"));
            let values = values.flatten().map_or(Values::None, RunValues::values);
            envelope::render(&event.event(), api, values, callback_url.as_deref())
        });
        let passes = of
            .filter
            .as_ref()
            .is_none_or(|filter| check_json(body.as_bytes()).map_or(true, |body| envelope::passes(filter, body)));
        if passes {
            made.push(NewDelivery {
                webhook_id: of.id,
                organization_id: &of.organization_id,
                push_id: None,
                event_id: event.id,
                event_type: &event.event_type,
                event_at: event.created_at,
                run_id: event.run_id.as_deref(),
                seq: event.seq,
                body: body.clone(),
                traceparent: event.traceparent.as_deref(),
                depth: event::depth(&event.data.0),
                is_enabled: of.enabled,
            });
        }
    }
    if !is_dry {
        warn_of_filters(wanted);
        deliveries::insert(conn, &made).await?;
    }
    Ok(made.len())
}

async fn run_values(conn: &mut PgConnection, run_ids: BTreeSet<&str>) -> Result<BTreeMap<String, RunValues>, Error> {
    let sql = "
        SELECT r.run_id, size.is_small, CASE WHEN size.is_small THEN r.input_data END AS input,
            CASE WHEN size.is_small THEN o.output_data END AS output
        FROM workflow_runs r LEFT JOIN LATERAL (
            SELECT output_data FROM step_executions s
            WHERE s.run_id = r.run_id AND s.status = 'COMPLETED' AND s.parent_step_id IS NULL
            ORDER BY completed_at DESC NULLS LAST, started_at DESC, id DESC LIMIT 1
        ) o ON r.status = 'COMPLETED', LATERAL (
            SELECT coalesce(pg_column_size(r.input_data), 0) + coalesce(pg_column_size(o.output_data), 0) <= $2 AS is_small
        ) size
        WHERE r.run_id = ANY ($1)";
    let most = i32::try_from(MAX_VALUES_BYTES).unwrap_or(i32::MAX);
    let query = sqlx::query_as(sql).bind(run_ids.into_iter().collect::<Vec<_>>()).bind(most);
    let found: Vec<RunValues> = query.fetch_all(conn).await?;
    Ok(found.into_iter().map(|run| (run.run_id.clone(), run)).collect())
}

/// Tokens of the callbacks that these attempts still wait for.
async fn callback_tokens(
    conn: &mut PgConnection,
    attempts: BTreeSet<String>,
) -> Result<BTreeMap<String, String>, Error> {
    let sql = "SELECT attempt_id, token FROM step_waits
               WHERE attempt_id = ANY ($1) AND token IS NOT NULL AND answered_at IS NULL";
    let attempts: Vec<String> = attempts.into_iter().collect();
    let found: Vec<(String, String)> = sqlx::query_as(sql).bind(attempts).fetch_all(conn).await?;
    Ok(found.into_iter().collect())
}
