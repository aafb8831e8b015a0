//! Handler that gives a webhook trigger another token.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::{HeaderValue, header};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    actions::rotate_hook_token::{self, RotateTokenError},
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::TriggerId,
    },
};

/// New token of a webhook trigger. It is not stored, and shown only here.
#[derive(Serialize, ToSchema)]
pub struct WebhookToken {
    /// The token.
    token: String,
    /// Address with the token.
    url: String,
}

impl From<RotateTokenError> for ApiError {
    fn from(error: RotateTokenError) -> Self {
        match error {
            RotateTokenError::NotFound => Self::trigger_not_found(),
            RotateTokenError::NoToken => {
                Self::conflict("trigger_has_no_token", "Only triggers of the kind webhook have a token")
            }
            RotateTokenError::Db(error) => error.into(),
        }
    }
}

/// Rotate the token of a webhook trigger
///
/// The address with the token before it is gone at once; the address by name stays. `Idempotency-Key` has no effect, since a
/// token cannot be shown again.
#[utoipa::path(
    post, path = "/triggers/{trigger_id}/token", tag = "triggers", params(("trigger_id" = uuid::Uuid, Path)),
    responses(
        (status = 200, body = WebhookToken), (status = 404, body = ErrorBody),
        (status = 409, description = "The trigger is of another kind", body = ErrorBody), (status = 422, body = ErrorBody),
    ),
)]
pub async fn rotate_token(
    State(app): State<App>,
    caller: Caller,
    TriggerId(id): TriggerId,
) -> Result<Response, ApiError> {
    let token = rotate_hook_token::rotate(&app.pool, caller.context(&app), id).await?;
    tracing::info!(target: "api.routes.triggers", trigger_id = %id, "Token of a webhook trigger rotated");
    let url = format!("{}{token}", app.config.api.hooks_url());
    let no_store = [(header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((no_store, Json(WebhookToken { token, url })).into_response())
}
