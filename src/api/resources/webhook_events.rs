//! Catalogue of the types of events that webhooks and the Kafka topic of events tell.

use axum::Json;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::event::{
    DEPTH_HEADER,
    catalogue::{self, EventType},
};

/// Types of events.
#[derive(Serialize, ToSchema)]
pub struct EventCatalogue {
    /// All types.
    items: Vec<EventTypeBody>,
}

/// Type of events.
#[derive(Serialize, ToSchema)]
#[schema(as = EventType)]
pub struct EventTypeBody {
    /// Name of the type.
    #[serde(rename = "type")]
    #[schema(example = "run.completed")]
    name: &'static str,
    /// When it happens.
    description: &'static str,
    /// Whether there can be very many: `*` does not include it.
    is_frequent: bool,
    /// JSON Schema, draft 2020-12, of an event of the type. Members can be added to events, never removed.
    #[schema(value_type = HashMap<String, Value>)]
    schema: Value,
    /// Example of an event.
    #[schema(value_type = HashMap<String, Value>)]
    example: Value,
}

impl From<&EventType> for EventTypeBody {
    fn from(known: &EventType) -> Self {
        Self {
            name: known.name,
            description: known.description,
            is_frequent: known.is_frequent,
            schema: known.schema(),
            example: known.example(),
        }
    }
}

/// List the types of events
///
/// What happens to runs, workflows and agents is told to endpoints of webhooks, and in a Kafka topic if there is one.
#[utoipa::path(get, path = "/webhook-events", tag = "system", responses((status = 200, body = EventCatalogue)))]
pub async fn list_event_types() -> Json<EventCatalogue> {
    Json(EventCatalogue { items: catalogue::TYPES.iter().map(EventTypeBody::from).collect() })
}

/// Member `webhooks` of the OpenAPI document: the requests that endpoints receive, by type.
#[must_use]
pub fn webhooks() -> Map<String, Value> {
    let header = |name: &str, required: bool, description: &str| {
        let schema = json!({"type": "string"});
        json!({"name": name, "in": "header", "required": required, "description": description, "schema": schema})
    };
    let parameters = json!([
        header("webhook-id", true, "Id of the event, the same in each attempt."),
        header("webhook-timestamp", true, "Time of the attempt in seconds since 1970."),
        header("webhook-signature", true, "Signatures of id, timestamp and body, as Standard Webhooks says."),
        header("webhook-attempt", true, "Number of the attempt, from 1."),
        header(
            DEPTH_HEADER,
            true,
            "Number of runs that have led to the event, each by an event of the one before, as `data.trigger.depth`.",
        ),
        header("traceparent", false, "W3C Trace Context of the run."),
    ]);
    let operation = |known: &EventType| {
        json!({"post": {
            "operationId": format!("on_{}", known.name.replace('.', "_")),
            "summary": known.name,
            "description": known.description,
            "security": [{}],
            "parameters": parameters,
            "requestBody": {"required": true, "content": {
                "application/json": {"schema": known.schema(), "example": known.example()},
            }},
            "responses": {"2XX": {"description": "The event is accepted. Any other answer is a failed attempt."}},
        }})
    };
    catalogue::TYPES.iter().map(|known| (known.name.to_owned(), operation(known))).collect()
}
