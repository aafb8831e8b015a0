//! Webhooks on the wire.

use std::collections::BTreeMap;

use http::{HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    actions::webhooks::{Definition, MASK, NewWebhook, WebhookPatch},
    agent::masked_url,
    api::vocabulary::{page::Page, sets},
    db::webhooks::{StateRow, WebhookRow, replays::Recovery},
    input::{FieldError, Node, Object, Patch, Read, request_object},
    timestamp::Timestamp,
    vault::Vault,
    webhook::{
        Ordering, Payload,
        envelope::check_filter,
        events, is_own_header,
        schedule::WARNING_FAILURES,
        secret::{Secret, SignatureKind},
    },
};

/// Limits of the members.
const NAME_CHARS: std::ops::RangeInclusive<usize> = 1..=255;
const MAX_URL_CHARS: usize = 2048;
const MAX_TYPES: usize = 32;
const MAX_WORKFLOWS: usize = 100;
const MAX_FILTER_CHARS: usize = 4096;
const MAX_HEADERS: usize = 16;
const MAX_HEADER_CHARS: usize = 4096;
const IN_FLIGHT: std::ops::RangeInclusive<i64> = 1..=64;
const RATE: std::ops::RangeInclusive<i64> = 1..=10_000;
/// Defaults of the members.
const DEFAULT_IN_FLIGHT: i32 = 8;

/// Page of the list of webhooks.
pub type WebhookPage = Page<Webhook>;

/// Webhook: an endpoint that events are sent to.
#[derive(Serialize, ToSchema)]
pub struct Webhook {
    /// Id of the webhook.
    id: Uuid,
    /// Name for people.
    #[schema(example = "orders")]
    name: String,
    /// Where deliveries are sent. Without `webhooks:write` the values of its query are replaced by asterisks.
    #[schema(example = "https://example.com/hooks")]
    url: String,
    /// Types of events: a type, `GROUP.*` or `*`. Frequent ones (`step.failed`) are sent only if they are named.
    #[schema(example = json!(["run.completed", "run.failed"]))]
    event_types: Vec<String>,
    /// Only events of workflows with these names; null: all events.
    workflow_names: Option<Vec<String>>,
    /// Condition on the envelope, in the language of conditions; null: none.
    #[schema(example = "${event.data.workflow.name} != 'test'")]
    filter: Option<String>,
    /// What a delivery contains.
    #[schema(value_type = sets::WebhookPayload)]
    payload: String,
    /// Order of deliveries.
    #[schema(value_type = sets::WebhookOrdering)]
    ordering: String,
    /// Names of custom headers; the values are replaced by asterisks, which an update may send back.
    headers: BTreeMap<String, &'static str>,
    /// Maximum number of deliveries that are sent at a time.
    max_in_flight: i32,
    /// Maximum number of deliveries a second; null: no limit.
    rate_per_second: Option<i32>,
    /// Way of signing.
    #[schema(value_type = sets::WebhookSignature)]
    signature: String,
    /// The first characters of the current secret.
    #[schema(example = "whsec_MfK")]
    secret_hint: String,
    /// Time when the current secret was set.
    #[schema(value_type = String, format = DateTime)]
    secret_created_at: Timestamp,
    /// Public key for ed25519; otherwise null.
    public_key: Option<String>,
    /// Whether deliveries are sent. While not, new ones are held.
    enabled: bool,
    /// Why it is disabled; null while it is enabled.
    #[schema(value_type = Option<sets::WebhookDisabledReason>)]
    disabled_reason: Option<String>,
    /// Time when it was disabled; null while it is enabled.
    #[schema(value_type = Option<String>, format = DateTime)]
    disabled_at: Option<Timestamp>,
    /// How it fares.
    #[schema(value_type = sets::WebhookHealth)]
    health: &'static str,
    /// Failed attempts since the last success.
    failures: i32,
    /// First failure since the last success; null if there is none.
    #[schema(value_type = Option<String>, format = DateTime)]
    failing_since: Option<Timestamp>,
    /// Last successful attempt; null if there is none.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_success_at: Option<Timestamp>,
    /// User who created it.
    created_by: String,
    /// User who changed it last.
    updated_by: String,
    /// Time of creation.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// Time of the last change of its definition.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

impl Webhook {
    /// Webhook with its state; the URL as a caller sees it who may change webhooks, or not.
    pub(super) fn new(row: WebhookRow, state: Option<&StateRow>, vault: &Vault, sees_url: bool) -> Self {
        let headers = row.opened(vault).map(|sealed| sealed.headers).unwrap_or_default();
        let failures = state.map_or(0, |state| state.failures);
        let health = match row.enabled {
            false => "disabled",
            true if failures >= WARNING_FAILURES => "failing",
            true => "healthy",
        };
        Self {
            id: row.id,
            name: row.name,
            url: if sees_url { row.url } else { masked_url(&row.url) },
            event_types: row.event_types,
            workflow_names: row.workflow_names,
            filter: row.filter,
            payload: row.payload,
            ordering: row.ordering,
            headers: headers.into_iter().map(|(name, _)| (name, MASK)).collect(),
            max_in_flight: row.max_in_flight,
            rate_per_second: row.rate_per_second,
            signature: row.signature,
            secret_hint: row.secret_hint,
            secret_created_at: row.secret_created_at,
            public_key: row.public_key,
            enabled: row.enabled,
            disabled_reason: row.disabled_reason,
            disabled_at: row.disabled_at,
            health,
            failures,
            failing_since: state.and_then(|state| state.failing_since),
            last_success_at: state.and_then(|state| state.last_success_at),
            created_by: row.created_by,
            updated_by: row.updated_by,
            created_at: row.created_at,
            updated_at: row.updated_at,
        }
    }
}

/// Webhook with its recoveries.
#[derive(Serialize, ToSchema)]
pub struct WebhookDetail {
    #[serde(flatten)]
    webhook: Webhook,
    /// The latest five recoveries, the last one first.
    recoveries: Vec<WebhookRecovery>,
}

/// Recovery: deliveries that are sent again in the background.
#[derive(Serialize, ToSchema)]
pub struct WebhookRecovery {
    /// Id of the recovery.
    id: Uuid,
    /// What is sent again.
    #[schema(value_type = sets::WebhookReplayKind)]
    which: String,
    /// Number of deliveries that are sent again so far.
    deliveries: i64,
    /// Whether all are.
    is_ended: bool,
    /// User who asked for it.
    created_by: String,
    /// Time of the request.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl WebhookDetail {
    /// Webhook with these recoveries.
    pub(super) fn new(webhook: Webhook, recoveries: Vec<Recovery>) -> Self {
        let shown = |of: Recovery| WebhookRecovery {
            id: of.id,
            which: of.which,
            deliveries: of.replayed,
            is_ended: of.is_ended,
            created_by: of.created_by,
            created_at: of.created_at,
        };
        Self { webhook, recoveries: recoveries.into_iter().map(shown).collect() }
    }
}

/// Webhook with its secret.
#[derive(Serialize, ToSchema)]
pub struct CreatedWebhook {
    #[serde(flatten)]
    pub(super) webhook: Webhook,
    /// The secret. No other answer shows it. Null only in a repeated answer, if the key of its encryption is missing.
    #[schema(example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    pub(super) secret: Option<String>,
}

/// Webhook in a document, as it would be created.
#[derive(Serialize)]
pub struct ExportedWebhook {
    name: String,
    url: String,
    event_types: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workflow_names: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    filter: Option<String>,
    payload: String,
    ordering: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, &'static str>,
    max_in_flight: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate_per_second: Option<i32>,
    signature: String,
    secret: Option<String>,
    enabled: bool,
}

impl ExportedWebhook {
    /// Webhook without its secrets.
    pub fn new(row: WebhookRow, vault: &Vault, shows_url: bool) -> Self {
        let headers = row.opened(vault).map(|sealed| sealed.headers).unwrap_or_default();
        Self {
            url: if shows_url { row.url } else { masked_url(&row.url) },
            name: row.name,
            event_types: row.event_types,
            workflow_names: row.workflow_names,
            filter: row.filter,
            payload: row.payload,
            ordering: row.ordering,
            headers: headers.into_iter().map(|(name, _)| (name, MASK)).collect(),
            max_in_flight: row.max_in_flight,
            rate_per_second: row.rate_per_second,
            signature: row.signature,
            secret: None,
            enabled: row.enabled,
        }
    }
}

/// Reads a webhook of a document.
pub fn read_definition(body: &RawValue) -> Read<NewWebhook> {
    NewWebhookBody::parse(&Object::body(body)?)
}

request_object! {
    /// Body of a create request.
    #[schema(as = CreateWebhookRequest, example = json!({"name": "orders", "url": "https://example.com/hooks",
        "event_types": ["run.completed", "run.failed"]}))]
    pub struct NewWebhookBody: deny_unknown_fields {
        /// Name for people.
        #[schema(min_length = 1, max_length = 255, pattern = r"\S")]
        name: String = required(|node| node.not_blank(NAME_CHARS)),
        /// Where deliveries are sent: https, or http for addresses that `EGRESS_ALLOW` lists.
        #[schema(min_length = 1, max_length = 2048)]
        url: String = required(read_url),
        /// Types of events: a type, `GROUP.*` or `*`.
        #[schema(min_items = 1, max_items = 32)]
        event_types: Vec<String> = required(read_types),
        /// Only events of workflows with these names.
        #[schema(min_items = 1, max_items = 100)]
        workflow_names: Option<Vec<String>> = nullable(read_names),
        /// Condition on the envelope, such as `${event.data.workflow.version} > 2`.
        #[schema(max_length = 4096)]
        filter: Option<String> = nullable(read_filter),
        /// What a delivery contains.
        #[schema(value_type = sets::WebhookPayload, required = false, default = "thin")]
        payload: Payload = defaulted(Payload::Thin, read_payload),
        /// Order of deliveries.
        #[schema(value_type = sets::WebhookOrdering, required = false, default = "none")]
        ordering: Ordering = defaulted(Ordering::Unordered, read_ordering),
        /// Headers that are sent too, and stored encrypted.
        #[schema(value_type = HashMap<String, String>, required = false)]
        headers: Vec<(String, String)> = defaulted(Vec::new(), read_headers),
        /// Maximum number of deliveries that are sent at a time.
        #[schema(required = false, minimum = 1, maximum = 64, default = 8)]
        max_in_flight: i32 = defaulted(DEFAULT_IN_FLIGHT, |node| read_int(node, IN_FLIGHT)),
        /// Maximum number of deliveries a second.
        #[schema(minimum = 1, maximum = 10_000)]
        rate_per_second: Option<i32> = nullable(|node| read_int(node, RATE)),
        /// Way of signing. It cannot be changed later.
        #[schema(value_type = sets::WebhookSignature, required = false, default = "hmac")]
        signature: SignatureKind = defaulted(SignatureKind::Hmac, read_signature),
        /// The secret: `whsec_` and the base64 of 24 to 64 bytes, or `whsk_` and that of a private key; by default a random
        /// one.
        #[schema(value_type = Option<String>, max_length = 200)]
        secret: Option<Secret> = nullable(read_secret),
        /// Whether deliveries are sent.
        #[schema(required = false, default = true)]
        enabled: bool = defaulted(true, Node::boolean),
    }
}

impl NewWebhookBody {
    /// Reads and checks a body.
    pub(super) fn parse(object: &Object<'_>) -> Read<NewWebhook> {
        let body = Self::read(object)?;
        if body.secret.as_ref().is_some_and(|secret| secret.kind() != body.signature) {
            let text = format!("must be a secret for {}", body.signature.as_str());
            return Err(vec![FieldError::rule("body.secret", text)]);
        }
        let definition = Definition {
            name: body.name,
            url: body.url,
            event_types: body.event_types,
            workflow_names: body.workflow_names,
            filter: body.filter,
            payload: body.payload,
            ordering: body.ordering,
            headers: body.headers,
            max_in_flight: body.max_in_flight,
            rate_per_second: body.rate_per_second,
            enabled: body.enabled,
        };
        Ok(NewWebhook { definition, signature: body.signature, secret: body.secret })
    }
}

request_object! {
    /// Body of a replace request.
    #[schema(as = PutWebhookRequest, example = json!({"name": "orders", "url": "https://example.com/hooks",
        "event_types": ["run.completed", "run.failed"]}))]
    pub struct WebhookPutBody: deny_unknown_fields {
        /// Name for people.
        #[schema(min_length = 1, max_length = 255, pattern = r"\S")]
        name: String = required(|node| node.not_blank(NAME_CHARS)),
        /// Where deliveries are sent: https, or http for addresses that `EGRESS_ALLOW` lists.
        #[schema(min_length = 1, max_length = 2048)]
        url: String = required(read_url),
        /// Types of events: a type, `GROUP.*` or `*`.
        #[schema(min_items = 1, max_items = 32)]
        event_types: Vec<String> = required(read_types),
        /// Only events of workflows with these names.
        #[schema(min_items = 1, max_items = 100)]
        workflow_names: Option<Vec<String>> = nullable(read_names),
        /// Condition on the envelope.
        #[schema(max_length = 4096)]
        filter: Option<String> = nullable(read_filter),
        /// What a delivery contains.
        #[schema(value_type = sets::WebhookPayload, required = false, default = "thin")]
        payload: Payload = defaulted(Payload::Thin, read_payload),
        /// Order of deliveries.
        #[schema(value_type = sets::WebhookOrdering, required = false, default = "none")]
        ordering: Ordering = defaulted(Ordering::Unordered, read_ordering),
        /// Headers that are sent too; asterisks stand for the stored value.
        #[schema(value_type = HashMap<String, String>, required = false)]
        headers: Vec<(String, String)> = defaulted(Vec::new(), read_headers),
        /// Maximum number of deliveries that are sent at a time.
        #[schema(required = false, minimum = 1, maximum = 64, default = 8)]
        max_in_flight: i32 = defaulted(DEFAULT_IN_FLIGHT, |node| read_int(node, IN_FLIGHT)),
        /// Maximum number of deliveries a second.
        #[schema(minimum = 1, maximum = 10_000)]
        rate_per_second: Option<i32> = nullable(|node| read_int(node, RATE)),
        /// Whether deliveries are sent.
        #[schema(required = false, default = true)]
        enabled: bool = defaulted(true, Node::boolean),
    }
}

impl WebhookPutBody {
    /// Reads and checks a body.
    pub(super) fn parse(object: &Object<'_>) -> Read<Definition> {
        let body = Self::read(object)?;
        Ok(Definition {
            name: body.name,
            url: body.url,
            event_types: body.event_types,
            workflow_names: body.workflow_names,
            filter: body.filter,
            payload: body.payload,
            ordering: body.ordering,
            headers: body.headers,
            max_in_flight: body.max_in_flight,
            rate_per_second: body.rate_per_second,
            enabled: body.enabled,
        })
    }
}

request_object! {
    /// Body of a change request; absent members stay unchanged.
    #[schema(as = PatchWebhookRequest, example = json!({"url": "https://example.com/other"}))]
    pub struct WebhookPatchBody: deny_unknown_fields {
        /// Name for people.
        #[schema(nullable = false, min_length = 1, max_length = 255, pattern = r"\S")]
        name: Option<String> = patch_not_null(|node| node.not_blank(NAME_CHARS)),
        /// Where deliveries are sent.
        #[schema(nullable = false, min_length = 1, max_length = 2048)]
        url: Option<String> = patch_not_null(read_url),
        /// Types of events.
        #[schema(nullable = false, min_items = 1, max_items = 32)]
        event_types: Option<Vec<String>> = patch_not_null(read_types),
        /// Only events of workflows with these names; null: all.
        #[schema(value_type = Option<Vec<String>>, min_items = 1, max_items = 100)]
        workflow_names: Patch<Vec<String>> = patch(read_names),
        /// Condition on the envelope; null: none.
        #[schema(value_type = Option<String>, max_length = 4096)]
        filter: Patch<String> = patch(read_filter),
        /// What a delivery contains.
        #[schema(value_type = sets::WebhookPayload, required = false)]
        payload: Option<Payload> = patch_not_null(read_payload),
        /// Order of deliveries.
        #[schema(value_type = sets::WebhookOrdering, required = false)]
        ordering: Option<Ordering> = patch_not_null(read_ordering),
        /// All headers that are sent too; asterisks stand for the stored value.
        #[schema(value_type = HashMap<String, String>, required = false)]
        headers: Option<Vec<(String, String)>> = patch_not_null(read_headers),
        /// Maximum number of deliveries that are sent at a time.
        #[schema(nullable = false, minimum = 1, maximum = 64)]
        max_in_flight: Option<i32> = patch_not_null(|node| read_int(node, IN_FLIGHT)),
        /// Maximum number of deliveries a second; null: no limit.
        #[schema(value_type = Option<i32>, minimum = 1, maximum = 10_000)]
        rate_per_second: Patch<i32> = patch(|node| read_int(node, RATE)),
        /// Whether deliveries are sent.
        #[schema(nullable = false)]
        enabled: Option<bool> = patch_not_null(Node::boolean),
    }
}

impl WebhookPatchBody {
    /// Reads and checks a body.
    pub(super) fn parse(object: &Object<'_>) -> Read<WebhookPatch> {
        let body = Self::read(object)?;
        Ok(WebhookPatch {
            name: body.name,
            url: body.url,
            event_types: body.event_types,
            workflow_names: body.workflow_names,
            filter: body.filter,
            payload: body.payload,
            ordering: body.ordering,
            headers: body.headers,
            max_in_flight: body.max_in_flight,
            rate_per_second: body.rate_per_second,
            enabled: body.enabled,
        })
    }
}

/// Whether the address is allowed is checked by the action.
fn read_url(node: &Node<'_>) -> Read<String> {
    let text = node.not_blank(1..=MAX_URL_CHARS)?;
    match url::Url::parse(text.trim()) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.fragment().is_none() => Ok(url.into()),
        _ => Err(vec![FieldError::rule(node.path(), "must be an http or https address without a fragment")]),
    }
}

pub(super) fn read_types(node: &Node<'_>) -> Read<Vec<String>> {
    let problem =
        "must be a type of GET /webhook-events, a group of them such as run.*, or *; frequent types must be named";
    texts(node, MAX_TYPES, |text| events::is_pattern(text).then_some(()).ok_or_else(|| problem.to_owned()))
}

fn read_names(node: &Node<'_>) -> Read<Vec<String>> {
    texts(node, MAX_WORKFLOWS, |name| {
        let fits = NAME_CHARS.contains(&name.chars().count());
        fits.then_some(()).ok_or_else(|| "must be the name of a workflow".to_owned())
    })
}

/// A list of one to `most` texts.
fn texts(node: &Node<'_>, most: usize, check: impl Fn(&str) -> Result<(), String>) -> Read<Vec<String>> {
    let nodes = node.list()?;
    if nodes.is_empty() || nodes.len() > most {
        return Err(vec![FieldError::rule(node.path(), format!("must have 1 to {most} items"))]);
    }
    nodes.iter().map(|node| node.parsed(|text| check(text).map(|()| text.to_owned()))).collect()
}

fn read_filter(node: &Node<'_>) -> Read<String> {
    let text = node.not_blank(1..=MAX_FILTER_CHARS)?;
    match check_filter(&text) {
        Ok(()) => Ok(text),
        Err(error) => Err(vec![FieldError::rule(node.path(), error)]),
    }
}

fn read_payload(node: &Node<'_>) -> Read<Payload> {
    node.parsed(|name| Payload::parse(name).ok_or_else(|| "must be thin or full".to_owned()))
}

fn read_ordering(node: &Node<'_>) -> Read<Ordering> {
    node.parsed(|name| Ordering::parse(name).ok_or_else(|| "must be none or per_run".to_owned()))
}

fn read_signature(node: &Node<'_>) -> Read<SignatureKind> {
    node.parsed(|name| SignatureKind::parse(name).ok_or_else(|| "must be hmac or ed25519".to_owned()))
}

pub(super) fn read_secret(node: &Node<'_>) -> Read<Secret> {
    node.parsed(Secret::parse)
}

fn read_int(node: &Node<'_>, range: std::ops::RangeInclusive<i64>) -> Read<i32> {
    // The ranges fit.
    node.int(range).map(|number| i32::try_from(number).unwrap_or(i32::MAX))
}

fn read_headers(node: &Node<'_>) -> Read<Vec<(String, String)>> {
    let given = node.map()?;
    if given.len() > MAX_HEADERS {
        return Err(vec![FieldError::rule(node.path(), format!("must have at most {MAX_HEADERS} headers"))]);
    }
    let mut headers: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in given {
        let refuse = |text: &str| Err(vec![FieldError::rule(value.path(), text)]);
        let lower = name.to_ascii_lowercase();
        if HeaderName::try_from(lower.as_str()).is_err() {
            return refuse("is not the name of a header");
        }
        if !is_own_header(&lower) {
            return refuse("is set by the service itself");
        }
        let text = value.string(0..=MAX_HEADER_CHARS)?;
        if HeaderValue::try_from(text.as_str()).is_err() {
            return refuse("is not the value of a header");
        }
        if headers.insert(lower, text).is_some() {
            return refuse("is given twice");
        }
    }
    Ok(headers.into_iter().collect())
}
