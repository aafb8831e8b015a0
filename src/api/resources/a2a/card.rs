//! Agent card of a workflow: one document that is valid in both versions of the protocol.

use std::collections::BTreeMap;

use axum::{extract::State, response::Response};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{HeaderValue, header};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{AgentPath, find_agent};
use crate::{
    access::{OrganizationId, Permission},
    api::vocabulary::{
        app::App,
        caller::{Caller, Proof},
        error::{ApiError, ErrorBody},
        etag::IfNoneMatch,
        parameters,
    },
    config::Config,
    db::{self, exposed::ExposedWorkflow},
    input::to_raw,
};

/// Time for which a client may use a card without asking again.
const MAX_AGE: &str = "max-age=60";
/// Bytes of the card's hash in its entity tag.
const TAG_BYTES: usize = 12;
/// Media types of messages and artifacts.
const MODES: [&str; 2] = ["application/json", "text/plain"];
/// Text for a workflow without a description.
const NO_DESCRIPTION: &str = "A workflow without a description.";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Card<'a> {
    name: &'a str,
    description: &'a str,
    version: String,
    supported_interfaces: [Interface<'a>; 2],
    // The five members of 0.3.
    url: &'a str,
    preferred_transport: &'static str,
    protocol_version: &'static str,
    supports_authenticated_extended_card: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    security: Vec<BTreeMap<&'static str, Vec<&'static str>>>,
    provider: Provider<'a>,
    capabilities: Capabilities,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    security_schemes: BTreeMap<&'static str, SecurityScheme<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    security_requirements: Vec<Requirement>,
    default_input_modes: [&'static str; 2],
    default_output_modes: [&'static str; 2],
    skills: [Skill<'a>; 1],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Interface<'a> {
    url: &'a str,
    protocol_binding: &'static str,
    protocol_version: &'static str,
}

#[derive(Serialize)]
struct Provider<'a> {
    organization: &'a str,
    url: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Capabilities {
    streaming: bool,
    push_notifications: bool,
    extended_agent_card: bool,
}

/// Scheme in the form of 0.3 (`type` and its members) and of 1.0 (one member by kind).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SecurityScheme<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheme: Option<&'static str>,
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    location: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http_auth_security_scheme: Option<HttpAuth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_key_security_scheme: Option<ApiKey<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HttpAuth {
    scheme: &'static str,
    bearer_format: &'static str,
}

#[derive(Serialize)]
struct ApiKey<'a> {
    location: &'static str,
    name: &'a str,
}

#[derive(Serialize)]
struct Requirement {
    schemes: BTreeMap<&'static str, Scopes>,
}

#[derive(Serialize)]
struct Scopes {
    list: Vec<&'static str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Skill<'a> {
    id: &'a str,
    name: &'a str,
    description: &'a str,
    tags: [&'static str; 1],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    examples: &'a [String],
    input_modes: [&'static str; 2],
    output_modes: [&'static str; 2],
}

/// Address of the agent.
fn url(config: &Config, organization: &str, workflow: &str) -> String {
    let mut url = url::Url::parse(&config.api.public_url).expect("the settings have a valid URL");
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(["a2a", organization, workflow]);
    }
    url.into()
}

/// Names of the two schemes.
const SCHEMES: [&str; 2] = ["bearer", "api_key"];

fn security_schemes(config: &Config) -> BTreeMap<&'static str, SecurityScheme<'_>> {
    if !config.auth.enabled {
        return BTreeMap::new();
    }
    let key_header = config.auth.api_key_header_text.as_str();
    let bearer = SecurityScheme {
        kind: "http",
        scheme: Some("bearer"),
        location: None,
        name: None,
        http_auth_security_scheme: Some(HttpAuth { scheme: "Bearer", bearer_format: "JWT" }),
        api_key_security_scheme: None,
    };
    let key = SecurityScheme {
        kind: "apiKey",
        scheme: None,
        location: Some("header"),
        name: Some(key_header),
        http_auth_security_scheme: None,
        api_key_security_scheme: Some(ApiKey { location: "header", name: key_header }),
    };
    SCHEMES.into_iter().zip([bearer, key]).collect()
}

/// Text of the card of a workflow.
fn card(
    config: &Config,
    organization: &OrganizationId,
    workflow: &ExposedWorkflow,
) -> Box<serde_json::value::RawValue> {
    let url = url(config, organization.as_str(), &workflow.name);
    let interface = |protocol_version| Interface { url: &url, protocol_binding: "JSONRPC", protocol_version };
    let description = workflow.description.as_deref().filter(|text| !text.trim().is_empty()).unwrap_or(NO_DESCRIPTION);
    let schemes = if config.auth.enabled { &SCHEMES[..] } else { &[] };
    to_raw(&Card {
        name: &workflow.name,
        description,
        version: workflow.version.to_string(),
        supported_interfaces: [interface("1.0"), interface("0.3")],
        url: &url,
        preferred_transport: "JSONRPC",
        protocol_version: "0.3.0",
        supports_authenticated_extended_card: false,
        security: schemes.iter().map(|scheme| [(*scheme, Vec::new())].into()).collect(),
        provider: Provider { organization: organization.as_str(), url: &config.api.public_url },
        capabilities: Capabilities { streaming: true, push_notifications: true, extended_agent_card: false },
        security_schemes: security_schemes(config),
        security_requirements: schemes
            .iter()
            .map(|scheme| Requirement { schemes: [(*scheme, Scopes { list: Vec::new() })].into() })
            .collect(),
        default_input_modes: MODES,
        default_output_modes: MODES,
        skills: [Skill {
            id: &workflow.name,
            name: &workflow.name,
            description,
            tags: ["workflow"],
            examples: &workflow.expose.0.examples,
            input_modes: MODES,
            output_modes: MODES,
        }],
    })
}

/// The agent that the path names, if everybody may see its card.
async fn public_agent(app: &App, path: &AgentPath) -> Result<Option<ExposedWorkflow>, ApiError> {
    let Ok(organization) = OrganizationId::parse(&path.organization) else { return Ok(None) };
    let found = db::exposed::agent(&app.pool, &organization, &path.workflow).await?;
    let found = found.filter(|workflow| workflow.expose.0.public_card);
    Ok(if found.is_some() && app.organizations.is_active(&organization).await? { found } else { None })
}

/// Get the agent card of a workflow
///
/// The card by which A2A clients, of 1.0 and of 0.3, find out how to call the workflow as an agent. Without credentials it
/// is served only if the workflow has `expose.public_card`; such a card is served to everybody.
#[utoipa::path(
    get, path = "/a2a/{organization}/{workflow}/.well-known/agent-card.json", tag = "agents of workflows",
    params(
        parameters::ExposedAgent,
        parameters::IfNoneMatch,
    ),
    responses(
        (status = 200, description = "The card", body = HashMap<String, Value>, headers(
            ("ETag" = String, description = "Entity tag of the card"),
            ("Cache-Control" = String, description = "How long it may be used without asking again"),
        )),
        (status = 304), (status = 404, description = "The caller may not use such an agent", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn get_agent_card(
    State(app): State<App>,
    caller: Caller,
    path: AgentPath,
    if_none_match: IfNoneMatch,
) -> Result<Response, ApiError> {
    let own = if caller.proof == Proof::Address {
        // What is not public cannot be told from what does not exist.
        Err(ApiError::unauthorized("A bearer token or an API key is required"))
    } else {
        match caller.must(Permission::RunsWrite) {
            Ok(()) => find_agent(&app, &caller, &path).await,
            Err(refusal) => Err(refusal),
        }
    };
    let (workflow, is_public) = match own {
        Ok(workflow) => (workflow, caller.proof == Proof::Nothing),
        // Credentials never hide what anybody may see.
        Err(refusal) if refusal.status().is_client_error() => (public_agent(&app, &path).await?.ok_or(refusal)?, true),
        Err(error) => return Err(error),
    };
    let organization = OrganizationId::stored(&path.organization);
    let text = card(&app.config, &organization, &workflow);
    let hash = Sha256::digest(text.get());
    let tag = URL_SAFE_NO_PAD.encode(&hash[..TAG_BYTES]);
    let mut response = if_none_match.answer(&tag, &*text);
    let scope = if is_public || workflow.expose.0.public_card { "public" } else { "private" };
    if let Ok(value) = HeaderValue::from_str(&format!("{scope}, {MAX_AGE}")) {
        response.headers_mut().insert(header::CACHE_CONTROL, value);
    }
    Ok(response)
}

/// Get the agent card of a workflow, at the path of A2A 0.2
///
/// The same card, where clients of 0.2 look for it.
#[utoipa::path(
    get, path = "/a2a/{organization}/{workflow}/.well-known/agent.json", tag = "agents of workflows",
    params(
        parameters::ExposedAgent,
        parameters::IfNoneMatch,
    ),
    responses(
        (status = 200, description = "The card", body = HashMap<String, Value>, headers(
            ("ETag" = String, description = "Entity tag of the card"),
            ("Cache-Control" = String, description = "How long it may be used without asking again"),
        )),
        (status = 304), (status = 404, description = "The caller may not use such an agent", body = ErrorBody),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn get_agent_card_0_2(
    app: State<App>,
    caller: Caller,
    path: AgentPath,
    if_none_match: IfNoneMatch,
) -> Result<Response, ApiError> {
    get_agent_card(app, caller, path, if_none_match).await
}
