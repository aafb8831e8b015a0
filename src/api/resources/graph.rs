//! `…/graph`: a workflow, or a run with the states of its steps, as a drawing, or as JSON with the places of a drawing.

use std::collections::HashMap;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;

use super::workflows::wire::NewWorkflowBody;
use crate::{
    api::vocabulary::{
        accept::preferences,
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::{JsonBody, Query, RunId, WorkflowId},
        sets,
    },
    db::{self, runs::StepSummary},
    input::FieldError,
    timestamp::Timestamp,
    visible,
    workflow::{
        Draft, Graph, Plan,
        graph::layout::{BOX_HEIGHT, BOX_WIDTH, Point},
    },
};

/// Graph with the places of a drawing, in pixels from the upper left corner.
#[derive(Serialize, ToSchema)]
pub struct GraphLayout {
    /// Width of the drawing.
    width: usize,
    /// Height of the drawing.
    height: usize,
    /// Steps that can be reached from the first one, in the order of drawing: a container, what is in it, what comes next.
    nodes: Vec<GraphNode>,
    /// How the steps are connected.
    edges: Vec<GraphEdge>,
}

/// Step in a graph.
#[derive(Serialize, ToSchema)]
pub struct GraphNode {
    /// Id of the step.
    id: String,
    /// Type of the step.
    #[serde(rename = "type")]
    #[schema(value_type = sets::StepType)]
    kind: &'static str,
    /// Agent, condition or the like.
    label: String,
    /// Nesting depth in containers; 0 on the main chain.
    depth: usize,
    /// Left side of the box.
    x: usize,
    /// Upper side of the box.
    y: usize,
    /// Width of the box.
    width: usize,
    /// Height of the box.
    height: usize,
    /// Of a run: state of the latest attempt; null if there is none.
    #[schema(value_type = Option<sets::StepStatus>)]
    status: Option<String>,
    /// Of a run: number of attempts, in a loop those of all iterations.
    attempts: i64,
    /// Of a run: number of failed attempts.
    failed_attempts: i64,
    /// Of a run: begin of the first attempt.
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Timestamp>,
    /// Of a run: end of the last attempt; null while one is open.
    #[schema(value_type = Option<String>, format = DateTime)]
    completed_at: Option<Timestamp>,
}

/// Connection of two steps.
#[derive(Serialize, ToSchema)]
pub struct GraphEdge {
    /// Id of the step where it begins.
    from: String,
    /// Id of the step where it ends.
    to: String,
    /// What the second step is to the first one; empty for the next step.
    label: String,
    /// Whether the second step runs inside of the first one.
    nested: bool,
    /// Ends of its lines.
    points: Vec<GraphPoint>,
    /// Begin of the label's base line.
    label_at: GraphPoint,
}

/// Place in a drawing.
#[derive(Serialize, ToSchema)]
pub struct GraphPoint {
    /// Pixels to the right.
    x: usize,
    /// Pixels downwards.
    y: usize,
}

impl From<Point> for GraphPoint {
    fn from(Point { x, y }: Point) -> Self {
        Self { x, y }
    }
}

impl GraphLayout {
    /// The graph of a definition, or of a run with these attempts.
    fn of(graph: Graph, attempts: Vec<StepSummary>) -> Self {
        let layout = graph.layout();
        let mut attempts: HashMap<String, StepSummary> =
            attempts.into_iter().map(|summary| (summary.step_id.clone(), summary)).collect();
        let edges = graph.edges.iter().zip(layout.edges).map(|(edge, route)| GraphEdge {
            from: graph.nodes[edge.from].id.clone(),
            to: graph.nodes[edge.to].id.clone(),
            label: edge.label.clone(),
            nested: edge.nested,
            points: route.points.into_iter().map(GraphPoint::from).collect(),
            label_at: route.label.into(),
        });
        let edges = edges.collect();
        let nodes = graph.nodes.into_iter().zip(layout.nodes).map(|(node, place)| {
            let summary = attempts.remove(&node.id);
            GraphNode {
                kind: node.kind.as_str(),
                label: node.about,
                depth: node.depth,
                x: place.x,
                y: place.y,
                width: BOX_WIDTH,
                height: BOX_HEIGHT,
                attempts: summary.as_ref().map_or(0, |summary| summary.attempts),
                failed_attempts: summary.as_ref().map_or(0, |summary| summary.failed_attempts),
                started_at: summary.as_ref().map(|summary| summary.started_at),
                completed_at: summary.as_ref().and_then(|summary| summary.completed_at),
                status: summary.map(|summary| summary.status.to_uppercase()),
                id: node.id,
            }
        });
        Self { width: layout.width, height: layout.height, nodes: nodes.collect(), edges }
    }
}

/// Format of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Svg,
    /// `text/vnd.mermaid`.
    Mermaid,
    /// Mermaid as plain text, which browsers show.
    Plain,
    /// [`GraphLayout`]. Only by the parameter: many clients accept JSON with any request.
    Json,
}

impl Form {
    /// Chosen format: by the parameter `format`, else by the `Accept` header, else plain text.
    fn read_form(query: &Query, headers: &HeaderMap) -> Result<Self, ApiError> {
        match query.text("format") {
            Some("svg") => return Ok(Self::Svg),
            Some("mermaid") => return Ok(Self::Plain),
            Some("json") => return Ok(Self::Json),
            Some(_) => {
                let message = "Input should be 'svg', 'mermaid' or 'json'";
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

    /// The graph of a definition, or of a run with these attempts.
    fn show(self, graph: Graph, attempts: Vec<StepSummary>) -> Response {
        let (content_type, text) = match self {
            Self::Json => return Json(GraphLayout::of(graph, attempts)).into_response(),
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

/// Draw a definition
///
/// The graph of a definition that is not stored, with the places of a drawing. Its members have to be valid; the rules
/// between its steps are not checked, so that it can be drawn while it is being written.
#[utoipa::path(
    post, path = "/workflows/graph", tag = "workflows", request_body = NewWorkflowBody,
    responses((status = 200, body = GraphLayout), (status = 422, body = ErrorBody)),
)]
pub async fn draw_definition(
    State(app): State<App>,
    caller: Caller,
    body: JsonBody,
) -> Result<Json<GraphLayout>, ApiError> {
    let graph = body.read(&app, &caller, |body| Draft::parse(body).map(|draft| draft.graph())).await??;
    Ok(Json(GraphLayout::of(graph, Vec::new())))
}

/// Draw a workflow
///
/// As SVG, as text in the Mermaid language, or, with `format=json` alone, as JSON with the places of the drawing.
#[utoipa::path(
    get, path = "/workflows/{workflow_id}/graph", tag = "workflows",
    params(
        ("workflow_id" = uuid::Uuid, Path),
        ("format" = Option<sets::GraphFormat>, Query, description = "Counts more than the Accept header"),
    ),
    responses(
        (status = 200, description = "By `format`, else by the Accept header; plain text without both", content(
            (String = "text/plain"), (String = "text/vnd.mermaid"), (String = "image/svg+xml"),
            (GraphLayout = "application/json"),
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
    Ok(form.show(Graph::new(&plan, &HashMap::new()), Vec::new()))
}

/// Draw a run
///
/// The run's definition, with the latest state of each step; as SVG, as text in the Mermaid language, or, with
/// `format=json` alone, as JSON with the places of the drawing and the attempts of each step.
#[utoipa::path(
    get, path = "/runs/{run_id}/graph", tag = "runs",
    params(
        ("run_id" = String, Path),
        ("format" = Option<sets::GraphFormat>, Query, description = "Counts more than the Accept header"),
    ),
    responses(
        (status = 200, description = "By `format`, else by the Accept header; plain text without both", content(
            (String = "text/plain"), (String = "text/vnd.mermaid"), (String = "image/svg+xml"),
            (GraphLayout = "application/json"),
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
    if form == Form::Json {
        let attempts = db::runs::step_summaries(&app.pool, &run_id).await?;
        return Ok(form.show(Graph::new(&plan, &HashMap::new()), attempts));
    }
    // With several attempts, the state of the last one is drawn.
    let states = db::runs::step_states(&app.pool, &run_id).await?.into_iter().collect();
    Ok(form.show(Graph::new(&plan, &states), Vec::new()))
}
