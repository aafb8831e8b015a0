//! What a client does with an MCP server before it calls a tool: finds out which revision the server speaks, opens a
//! session where the revision has them, and reads the list of tools. All of it may be repeated: it changes nothing in the
//! server.
//!
//! The caller limits the time.

use std::time::Duration;

use http::{HeaderMap, Method, StatusCode, header};
use reqwest::Response;
use serde_json::value::RawValue;
use url::Url;

use crate::{
    a2a::{RpcError, reply::rpc_result},
    agent::Credentials,
    clock::Clock,
    egress::{self, BodyError, Egress, EventReader, RequestError},
    input::{check_json, elements, member, text, to_raw},
    mcp::{
        HEADER_MISMATCH, Link, METHOD_NOT_FOUND, MISSING_CAPABILITY, MODERN, Revision, SESSION_HEADER,
        UNSUPPORTED_VERSION,
        request::{self, Call, Outgoing},
        tools::{Description, ToolList},
    },
};

/// Maximum size of an answer.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Time without a byte after which a stream counts as broken.
const MAX_SILENCE: Duration = Duration::from_secs(30);
/// Maximum number of pages of a list that are read.
const MAX_PAGES: usize = 20;
/// Maximum length of the id of a session, and of a cursor.
const MAX_ID_BYTES: usize = 4 << 10;

/// MCP server, as its agent describes it.
#[derive(Clone, Copy)]
pub struct Server<'a> {
    /// Client for the requests.
    pub egress: &'a Egress,
    /// Clock for pauses in streams.
    pub clock: &'a Clock,
    /// Endpoint.
    pub url: &'a Url,
    /// Credentials of the agent.
    pub credentials: &'a Credentials,
}

/// Kind of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The address is not allowed.
    NotAllowed,
    /// The agent's settings cannot be used for a request.
    Unusable,
    /// There was no answer.
    Network,
    /// An answer with an error status.
    Http(StatusCode),
    /// The answer violates the protocol.
    Invalid,
    /// The server has answered with an error, or speaks no revision that this program knows.
    Refused,
}

/// Reason why there is no connection or no list. The text may contain secrets of the agent.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct ServerError {
    /// What went wrong.
    pub text: String,
    /// Its kind.
    pub fault: Fault,
}

impl ServerError {
    fn new(fault: Fault, text: impl Into<String>) -> Self {
        Self { text: text.into(), fault }
    }
}

/// Connection to a server.
#[derive(Clone, Debug)]
pub struct Connected {
    /// How to call it.
    pub link: Link,
    /// The server as it describes itself; `None`: it was not asked.
    pub description: Option<Description>,
}

/// Answer to a request: its status, headers and content.
struct Answered {
    status: StatusCode,
    headers: HeaderMap,
    /// The JSON-RPC response; the error says why there is none.
    response: Result<Box<RawValue>, String>,
}

impl Answered {
    /// Error of the JSON-RPC response, if it has one.
    fn error(&self) -> Option<RpcError> {
        RpcError::of_response(self.response.as_deref().ok()?)
    }

    /// Result of the JSON-RPC response.
    fn result(&self) -> Result<&RawValue, ServerError> {
        if !self.status.is_success() {
            let reason = self.status.canonical_reason().unwrap_or("no reason");
            let words = match (self.error(), &self.response) {
                (Some(error), _) => format!(", {error}"),
                (None, Err(why)) => format!(", {why}"),
                (None, Ok(_)) => String::new(),
            };
            let text = format!("HTTP {}: {reason}{words}", self.status.as_u16());
            return Err(ServerError::new(Fault::Http(self.status), text));
        }
        let invalid = |why: String| ServerError::new(Fault::Invalid, why);
        let response = self.response.as_deref().map_err(|why| invalid(why.clone()))?;
        match rpc_result(response) {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(error)) => Err(ServerError::new(Fault::Refused, error.to_string())),
            Err(not_rpc) => Err(invalid(not_rpc.to_string())),
        }
    }
}

/// What the question for a server's revisions has shown.
enum Discovered {
    /// It speaks the revision without sessions.
    Modern(Description),
    /// It speaks older ones.
    Legacy,
}

impl Server<'_> {
    /// Connects in that revision, or in the newest one that both know.
    pub async fn connect(&self, wanted: Option<Revision>) -> Result<Connected, ServerError> {
        match wanted {
            Some(Revision::Modern) => Ok(Connected { link: Link::MODERN, description: None }),
            Some(revision) => self.initialize(revision).await,
            None => match self.discover().await? {
                Discovered::Modern(description) => Ok(Connected { link: Link::MODERN, description: Some(description) }),
                Discovered::Legacy => self.initialize(Revision::NEWEST_LEGACY).await,
            },
        }
    }

    /// The server as it describes itself, if it speaks the revision without sessions.
    pub async fn describe(&self) -> Result<Description, ServerError> {
        let answered = self.send(request::discover()).await?;
        answered.result().map(Description::read)
    }

    async fn discover(&self) -> Result<Discovered, ServerError> {
        let answered = self.send(request::discover()).await?;
        if let Some(code) = answered.error().and_then(|error| error.number()) {
            return match code {
                UNSUPPORTED_VERSION if !answered.names_modern() => Ok(Discovered::Legacy),
                // Errors that only servers without sessions have.
                HEADER_MISMATCH | MISSING_CAPABILITY | UNSUPPORTED_VERSION => {
                    Ok(Discovered::Modern(Description::default()))
                }
                // Those that know no such method, or that no session was opened.
                _ if answered.may_be_legacy() => Ok(Discovered::Legacy),
                _ => answered.result().map(|_| Discovered::Legacy),
            };
        }
        if answered.may_be_legacy() && !answered.status.is_success() {
            return Ok(Discovered::Legacy);
        }
        let result = answered.result()?;
        let versions = member(result, "supportedVersions").and_then(elements).unwrap_or_default();
        let is_modern = versions.iter().any(|version| text(version).as_deref() == Some(MODERN));
        Ok(if is_modern { Discovered::Modern(Description::read(result)) } else { Discovered::Legacy })
    }

    /// Opens a session, or what takes its place in a server without sessions.
    async fn initialize(&self, revision: Revision) -> Result<Connected, ServerError> {
        let answered = self.send(request::initialize(revision)).await?;
        let result = answered.result()?;
        let named = member(result, "protocolVersion").and_then(text);
        let agreed = named.as_deref().and_then(Revision::parse).filter(|agreed| *agreed != Revision::Modern);
        let Some(revision) = agreed else {
            let named = named.map_or_else(|| "none".to_owned(), |name| format!("{:?}", crate::input::shorten(&name)));
            let text = format!("the MCP server speaks no revision that this service knows: {named}");
            return Err(ServerError::new(Fault::Refused, text));
        };
        let description = Description::read(result);
        let session = answered.headers.get(SESSION_HEADER).map(|value| value.to_str());
        let session = match session {
            None => None,
            Some(Ok(id)) if id.len() <= MAX_ID_BYTES => Some(id.to_owned()),
            Some(_) => return Err(ServerError::new(Fault::Invalid, "the id of the session is too long or no text")),
        };
        let link = Link { revision, session };
        let answered = self.send(request::notification(&link, "notifications/initialized", &serde_json::json!({})));
        let answered = answered.await?;
        if !answered.status.is_success() {
            answered.result()?;
        }
        Ok(Connected { link, description: Some(description) })
    }

    /// The list of tools, as far as it is not too large.
    pub async fn tools(&self, link: &Link) -> Result<ToolList, ServerError> {
        let (mut list, mut cursor) = (ToolList::default(), None::<String>);
        for page in 0..MAX_PAGES {
            let id = format!("tools-{page}");
            let after = cursor.as_ref().map(to_raw);
            let params: Vec<_> = after.iter().map(|cursor| ("cursor", &**cursor)).collect();
            let call = Call { id: &id, method: "tools/list", name: None, params: &params, key: None, may_ask: false };
            let answered = self.send(call.to(link)).await?;
            let next = list.add(answered.result()?);
            let next = next.map_err(|why| ServerError::new(Fault::Invalid, format!("the list of tools: {why}")))?;
            match next {
                None => return Ok(list),
                // A server that gives the same page again and again has no end.
                Some(next) if next.len() > MAX_ID_BYTES || cursor.as_ref() == Some(&next) => break,
                Some(next) => cursor = Some(next),
            }
        }
        list.cut();
        Ok(list)
    }

    async fn send(&self, outgoing: Outgoing) -> Result<Answered, ServerError> {
        let prepared = self.egress.request_as(Method::POST, self.url.clone(), self.credentials).await;
        let mut http = prepared.map_err(|error| {
            let fault = match &error {
                RequestError::NotAllowed(_) => Fault::NotAllowed,
                RequestError::NoToken(none) if none.may_pass => Fault::Network,
                RequestError::Unusable | RequestError::NoToken(_) => Fault::Unusable,
            };
            ServerError::new(fault, error.to_string())
        })?;
        http = http.header(header::CONTENT_TYPE, "application/json").header(header::ACCEPT, request::ACCEPT);
        for (name, value) in outgoing.headers {
            http = http.header(name, value);
        }
        let response = http.body(outgoing.body).send().await.map_err(|error| transport(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        if let (StatusCode::UNAUTHORIZED, Credentials::Client(client)) = (status, self.credentials) {
            // The next attempt gets a new token.
            self.egress.refused(client);
        }
        let response = self.read(response).await?;
        Ok(Answered { status, headers, response })
    }

    /// The JSON-RPC response in an answer, of either form.
    async fn read(&self, response: Response) -> Result<Result<Box<RawValue>, String>, ServerError> {
        if !EventReader::is_stream(&response) {
            let body = egress::read_body(response, MAX_ANSWER_BYTES, None).await.map_err(|error| match error {
                BodyError::Broken(error) => transport(&error),
                error => ServerError::new(Fault::Invalid, error.to_string()),
            })?;
            let json = body.json().map(ToOwned::to_owned);
            return Ok(json.map_err(|fault| format!("the answer is not a JSON-RPC 2.0 response: {fault}")));
        }
        let events = EventReader::of_large_events(response, self.clock, MAX_ANSWER_BYTES);
        let mut events = events.broken_by_silence(MAX_SILENCE);
        while let Ok(event) = events.next().await {
            let Ok(json) = check_json(event.data.as_bytes()) else { break };
            if member(json, "method").is_none() {
                return Ok(Ok(json.to_owned()));
            }
        }
        Ok(Err("the event stream ended without an answer".to_owned()))
    }
}

impl Answered {
    /// Whether the error lists the revision without sessions among those that the server knows.
    fn names_modern(&self) -> bool {
        let response = self.response.as_deref().ok();
        let data = response.and_then(|response| member(response, "error")).and_then(|error| member(error, "data"));
        let known = data.and_then(|data| member(data, "supported")).and_then(elements).unwrap_or_default();
        known.into_iter().any(|version| text(version).as_deref() == Some(MODERN))
    }

    /// Whether a server of an older revision may answer so to a method that it does not know.
    fn may_be_legacy(&self) -> bool {
        let is_of_request = matches!(
            self.status,
            StatusCode::BAD_REQUEST
                | StatusCode::NOT_FOUND
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::NOT_ACCEPTABLE
                | StatusCode::UNPROCESSABLE_ENTITY
        );
        is_of_request || self.status.is_success()
    }
}

/// Whether the error code says that the server knows neither the revision nor the method, so that nothing was done.
#[must_use]
pub fn is_of_revision(code: i32) -> bool {
    matches!(code, UNSUPPORTED_VERSION | METHOD_NOT_FOUND)
}

fn transport(error: &reqwest::Error) -> ServerError {
    if egress::was_not_allowed(error) {
        return ServerError::new(Fault::NotAllowed, egress::NotAllowed.to_string());
    }
    if error.is_builder() {
        return ServerError::new(Fault::Unusable, "its URL cannot be called");
    }
    let what = if error.is_connect() { "cannot be connected" } else { "the connection failed" };
    let why = egress::cause_of(error).map_or_else(String::new, |cause| format!(": {cause}"));
    ServerError::new(Fault::Network, format!("{what}{why}"))
}
