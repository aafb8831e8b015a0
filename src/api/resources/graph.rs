//! `GET …/graph`: a workflow, or a run with the states of its steps, as a drawing.

use std::collections::HashMap;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::{
    api::vocabulary::{
        accept::preferences,
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::{Query, RunId, WorkflowId},
        sets,
    },
    db,
    input::FieldError,
    visible,
    workflow::{Graph, Plan},
};

/// Format of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Svg,
    /// `text/vnd.mermaid`.
    Mermaid,
    /// Mermaid as plain text, which browsers show.
    Plain,
}

impl Form {
    /// Chosen format: by the parameter `format`, else by the `Accept` header, else plain text.
    fn read_form(query: &Query, headers: &HeaderMap) -> Result<Self, ApiError> {
        match query.text("format") {
            Some("svg") => return Ok(Self::Svg),
            Some("mermaid") => return Ok(Self::Plain),
            Some(_) => {
                let message = "Input should be 'svg' or 'mermaid'";
                return Err(FieldError::new("query.format", "enum", message).into());
            }
            None => {}
        }
        let mut best = (0.0, Self::Plain);
        for (range, weight) in preferences(headers, &header::ACCEPT) {
            let form = match range.as_str() {
                "image/svg+xml" | "image/*" => Self::Svg,
                "text/vnd.mermaid" => Self::Mermaid,
                "text/plain" | "text/*" | "*/*" => Self::Plain,
                _ => continue,
            };
            if weight > best.0 {
                best = (weight, form);
            }
        }
        Ok(best.1)
    }

    fn show(self, graph: &Graph) -> Response {
        let (content_type, text) = match self {
            Self::Svg => ("image/svg+xml; charset=utf-8", graph.svg()),
            Self::Mermaid => ("text/vnd.mermaid; charset=utf-8", graph.mermaid()),
            Self::Plain => ("text/plain; charset=utf-8", visible::escaped_lines(&graph.mermaid())),
        };
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
            (header::VARY, HeaderValue::from_static("accept")),
        ];
        (headers, text).into_response()
    }
}

fn not_drawable(what: impl std::fmt::Display) -> ApiError {
    let detail = format!("The stored definition cannot be read, and so not be drawn: {what}");
    ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "plan_not_readable", detail)
}

/// Draw a workflow
///
/// As SVG, or as text in the Mermaid language.
#[utoipa::path(
    get, path = "/workflows/{workflow_id}/graph", tag = "workflows",
    params(
        ("workflow_id" = uuid::Uuid, Path),
        ("format" = Option<sets::GraphFormat>, Query, description = "Counts more than the Accept header"),
    ),
    responses(
        (status = 200, description = "By the Accept header; plain text without one", content(
            (String = "text/plain"), (String = "text/vnd.mermaid"), (String = "image/svg+xml"),
        )),
        (status = 404, body = ErrorBody),
        (status = 422, description = "Not valid, or the stored definition cannot be read", body = ErrorBody),
    ),
)]
pub async fn draw_workflow(
    State(app): State<App>,
    caller: Caller,
    WorkflowId(id): WorkflowId,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let form = Form::read_form(&query, &headers)?;
    let row =
        db::workflows::find(&app.pool, caller.organization(), id).await?.ok_or_else(ApiError::workflow_not_found)?;
    let plan = Plan::parse(&row.workflow_data.0).map_err(not_drawable)?;
    Ok(form.show(&Graph::new(&plan, &HashMap::new())))
}

/// Draw a run
///
/// The run's definition, with the latest state of each step; as SVG, or as text in the Mermaid language.
#[utoipa::path(
    get, path = "/runs/{run_id}/graph", tag = "runs",
    params(
        ("run_id" = String, Path),
        ("format" = Option<sets::GraphFormat>, Query, description = "Counts more than the Accept header"),
    ),
    responses(
        (status = 200, description = "By the Accept header; plain text without one", content(
            (String = "text/plain"), (String = "text/vnd.mermaid"), (String = "image/svg+xml"),
        )),
        (status = 404, description = "No such run, or its definition is stored nowhere", body = ErrorBody),
        (status = 422, description = "Not valid, or the stored definition cannot be read", body = ErrorBody),
    ),
)]
pub async fn draw_run(
    State(app): State<App>,
    caller: Caller,
    RunId(run_id): RunId,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let form = Form::read_form(&query, &headers)?;
    caller.must_see_run(&app, &run_id).await?;
    let plan = db::runs::plan(&app.pool, &run_id).await?;
    let plan = plan.ok_or_else(|| {
        ApiError::not_found("plan_not_found", "The definition that the run executes is stored nowhere")
    })?;
    let plan = Plan::parse(&plan).map_err(not_drawable)?;
    // With several attempts, the state of the last one is drawn.
    let states = db::runs::step_states(&app.pool, &run_id).await?.into_iter().collect();
    Ok(form.show(&Graph::new(&plan, &states)))
}
