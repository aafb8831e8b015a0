//! Handler of `/runs/{run_id}/events/ticket`.

use axum::{Json, extract::State};
use chrono::{DateTime, Utc};
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::RunId,
        ticket,
    },
    timestamp::Timestamp,
};

/// Ticket for the event stream of a run.
#[derive(Serialize, ToSchema)]
pub struct EventTicket {
    /// Value of the stream's parameter `ticket`.
    ticket: String,
    /// Path of the stream with the ticket.
    #[schema(example = "/api/v1/runs/run-01935e7c-7f6e-7c3a-9d51-2f8f0a4b6c1d/events?ticket=kx...")]
    url: String,
    /// Time until which the ticket can open a stream. An open stream continues.
    #[schema(value_type = String, format = DateTime)]
    expires_at: Timestamp,
}

/// Create a ticket for an event stream
///
/// For browsers: their `EventSource` cannot send a token. A stream that is opened with the ticket acts for the
/// caller, and ends with the caller's credentials.
#[utoipa::path(
    post, path = "/runs/{run_id}/events/ticket", tag = "runs", params(("run_id" = String, Path)),
    responses((status = 201, body = EventTicket), (status = 404, body = ErrorBody)),
)]
pub async fn create_event_ticket(
    State(app): State<App>,
    caller: Caller,
    RunId(run_id): RunId,
) -> Result<(StatusCode, Json<EventTicket>), ApiError> {
    caller.must_see_run(&app, &run_id).await?;
    let until = app.clock.now() + ticket::LIFETIME;
    let path: String = url::form_urlencoded::byte_serialize(run_id.as_bytes()).collect();
    let ticket = ticket::sign(&app, run_id, until, &caller).await?;
    // In a path, a plus sign does not stand for a space.
    let url = format!("{}/runs/{}/events?ticket={ticket}", app.config.api.prefix, path.replace('+', "%20"));
    let expires_at = DateTime::<Utc>::from_timestamp(until.timestamp(), 0).unwrap_or(until).into();
    Ok((StatusCode::CREATED, Json(EventTicket { ticket, url, expires_at })))
}
