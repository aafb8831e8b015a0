//! The step attempts of a run as one JSON array that is read while it is sent.
//!
//! A run can have thousands of attempts with megabytes each. What a client has not taken yet is not read: a piece is held
//! at a time, and counted ([`crate::api::vocabulary::memory`]). Between two pieces nothing is held, no connection to the database either.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, header};

use super::runs::wire::Step;
use crate::{
    api::vocabulary::{app::App, caller::Caller, cursor::Asked, error::ApiError, extract::Query},
    db::{
        self,
        list::{Order, Start},
        runs::{self, StepChunk, StepPlace, StepQuery, StepRow},
    },
    input,
};

/// The order of the attempts.
const ORDER: Order = Order { column: "started_at", nullable: false, ascending: true };

/// What is left of the array.
struct Rest {
    app: App,
    caller: Caller,
    steps: StepQuery,
    /// How many attempts may still come.
    left: i64,
}

/// Why an array ends early. Its client sees a broken transfer.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Db(#[from] Arc<db::Error>),
    #[error("the caller's credentials have ended")]
    CredentialsEnded,
}

/// The answer: at once if all of it is small, and otherwise piece by piece. A client that asks for a page gets one, and
/// in `Link` the way to the next.
pub async fn answer(app: App, caller: Caller, run_id: String, query: &Query) -> Result<Response, ApiError> {
    let is_paged =
        ["page", "page_size", "cursor"].iter().any(|name| query.text(name).is_some_and(|text| !text.is_empty()));
    let steps = StepQuery { organization: caller.organization().clone(), run_id, after: None };
    if !is_paged {
        return send(Rest { app, caller, steps, left: i64::MAX }).await;
    }
    let asked = Asked::read(&app, query, ORDER, &format!("steps of {}", steps.run_id), &[]).await?;
    let size = asked.cut.size;
    let (steps, next) = match &asked.cut.start {
        Start::Offset(offset) => runs::step_page(&app.pool, steps, *offset, size).await?,
        Start::After(position) | Start::Before(position) => {
            let after = StepPlace::of(position);
            runs::step_page(&app.pool, StepQuery { after, ..steps }, 0, size).await?
        }
    };
    let link = next.map(|place| {
        let cursor = asked.cursor_after(place.into());
        format!("<?{}>; rel=\"next\"", query.with_cursor(&cursor))
    });
    let mut response = send(Rest { app, caller, steps, left: size }).await?;
    if let Some(link) = link.and_then(|link| HeaderValue::from_str(&link).ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}

async fn send(mut rest: Rest) -> Result<Response, ApiError> {
    let first = rest.read().await?;
    if first.rows.is_empty() && !runs::exists(&rest.app.pool, &rest.steps.organization, &rest.steps.run_id).await? {
        return Err(ApiError::run_not_found());
    }
    if first.is_last || rest.left == 0 {
        return Ok(Json(first.rows.into_iter().map(Step::from).collect::<Vec<_>>()).into_response());
    }
    let head = rest.text("[", first.rows, false);
    let pieces = stream::unfold(Some(rest), |rest| async move {
        let mut rest = rest?;
        match rest.next().await {
            Ok((piece, is_last)) => Some((Ok(piece), (!is_last).then_some(rest))),
            Err(error) => {
                let (run_id, cause) = (&rest.steps.run_id, &error as &dyn std::error::Error);
                tracing::warn!(error = cause, run_id, "the steps of a run are not sent to their end: {error}");
                Some((Err(error), None))
            }
        }
    });
    let body = Body::from_stream(stream::iter([Ok(head)]).chain(pieces).fuse());
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
}

impl Rest {
    /// The next piece of text, and whether it is the last.
    async fn next(&mut self) -> Result<(Bytes, bool), Broken> {
        self.app.memory.room_for_piece(self.caller.holders()).await;
        if !self.caller.still_counts(&self.app).await? {
            return Err(Broken::CredentialsEnded);
        }
        let chunk = self.read().await.map_err(Arc::new)?;
        let is_last = chunk.is_last || self.left == 0;
        Ok((self.text(",", chunk.rows, is_last), is_last))
    }

    /// The rows as a part of the array; `before` stands before the first of them, if there is one.
    fn text(&self, before: &str, rows: Vec<StepRow>, is_last: bool) -> Bytes {
        let mut text = Vec::new();
        for (index, row) in rows.into_iter().enumerate() {
            text.extend_from_slice(if index == 0 { before } else { "," }.as_bytes());
            text.extend_from_slice(input::to_raw(&Step::from(row)).get().as_bytes());
        }
        if is_last {
            text.push(b']');
        }
        self.app.memory.piece(self.caller.holders(), text)
    }

    /// The next rows, in a task of its own: who hangs up shall not tear a statement apart.
    async fn read(&mut self) -> Result<StepChunk, db::Error> {
        let (pool, steps, left) = (self.app.pool.clone(), self.steps.clone(), self.left);
        let mut chunk = db::bounded(async move { runs::small_steps(&pool, &steps, left).await }).await?;
        if chunk.rows.is_empty() && !chunk.is_last {
            // The next one is large, and comes alone, when what others have read before was taken.
            let _permit = self.app.memory.large_read(self.caller.holders()).await;
            self.app.memory.room_for_piece(self.caller.holders()).await;
            let (pool, steps) = (self.app.pool.clone(), self.steps.clone());
            chunk = db::bounded(async move { runs::next_step(&pool, &steps).await }).await?;
        }
        if let Some(last) = chunk.rows.last() {
            self.steps.after = Some(StepPlace { started_at: last.started_at, id: last.id.clone() });
        }
        self.left = self.left.saturating_sub(i64::try_from(chunk.rows.len()).unwrap_or(i64::MAX));
        Ok(chunk)
    }
}
