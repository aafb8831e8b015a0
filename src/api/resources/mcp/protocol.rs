//! What MCP requires of a request besides JSON-RPC: its revision, the client's capabilities, and headers that repeat the
//! body.

use axum::response::Response;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{json, value::RawValue};
use url::Url;

use crate::{
    api::vocabulary::{
        error::ApiError,
        json_rpc::{self, Call, INVALID_PARAMS, RpcError},
    },
    config::{AllowList, Config},
    egress::is_loopback,
    input::{member, object_of, shorten, text, to_raw},
    mcp::{
        CLIENT_CAPABILITIES, HEADER_MISMATCH, LEGACY, METHOD_HEADER, MODERN, NAME_HEADER, PROTOCOL_VERSION,
        SERVER_INFO, TASKS, UNSUPPORTED_VERSION, VERSION_HEADER, own_info,
    },
};

/// Client of a request, as the request describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// Whether it speaks [`MODERN`].
    pub is_modern: bool,
    /// Whether it understands tasks.
    pub has_tasks: bool,
    /// Whether it can ask its user by a form.
    pub has_forms: bool,
}

/// Error with its HTTP status.
pub type Refusal = (StatusCode, RpcError);

impl Client {
    /// Reads the client of a call, and checks the headers.
    pub fn read(headers: &HeaderMap, call: &Call) -> Result<Self, Refusal> {
        let meta = member(&call.params, "_meta");
        let named = meta.and_then(|meta| member(meta, PROTOCOL_VERSION)).and_then(text);
        let header = one(headers, VERSION_HEADER)?;
        let Some(named) = named else {
            return match header.as_deref() {
                Some(MODERN) if call.method != "initialize" => {
                    Err(bad_request(INVALID_PARAMS, format!("`_meta` should have {PROTOCOL_VERSION:?}")))
                }
                Some(version) if version != MODERN && !LEGACY.contains(&version) => Err(unsupported(version)),
                _ => Ok(Self { is_modern: false, has_tasks: false, has_forms: false }),
            };
        };
        check_header(VERSION_HEADER, header.as_deref(), &named)?;
        if named != MODERN {
            // An older revision has no such member, and so no such client.
            return Err(unsupported(&named));
        }
        check_header(METHOD_HEADER, one(headers, METHOD_HEADER)?.as_deref(), &call.method)?;
        let target = match call.method.as_str() {
            "tools/call" => Some("name"),
            "resources/read" => Some("uri"),
            "tasks/get" | "tasks/update" | "tasks/cancel" => Some("taskId"),
            _ => None,
        };
        if let Some(name) = target.and_then(|target| member(&call.params, target)).and_then(text) {
            let given = one(headers, NAME_HEADER)?.map(decoded).transpose()?;
            check_header(NAME_HEADER, given.as_deref(), &name)?;
        }
        let capabilities = meta.and_then(|meta| member(meta, CLIENT_CAPABILITIES));
        let Some(capabilities) = capabilities.filter(|raw| raw.get().starts_with('{')) else {
            return Err(bad_request(INVALID_PARAMS, format!("`_meta` should have {CLIENT_CAPABILITIES:?}")));
        };
        let forms = member(capabilities, "elicitation").filter(|raw| raw.get().starts_with('{'));
        // Without modes it is the form alone.
        let has_forms = forms.is_some_and(|forms| member(forms, "form").is_some() || member(forms, "url").is_none());
        let extensions = member(capabilities, "extensions");
        let has_tasks = extensions.is_some_and(|extensions| member(extensions, TASKS).is_some());
        Ok(Self { is_modern: true, has_tasks, has_forms })
    }

    /// A result of these members.
    #[must_use]
    pub fn result(self, kind: &str, members: &[(&str, &RawValue)]) -> Box<RawValue> {
        let members = members.iter().copied();
        if !self.is_modern {
            return object_of(members);
        }
        let (kind, meta) = (to_raw(kind), to_raw(&json!({SERVER_INFO: own_info()})));
        let all: Vec<_> = [("resultType", &*kind), ("_meta", &*meta)].into_iter().chain(members).collect();
        object_of(all)
    }

    /// A result that the client may cache for itself.
    #[must_use]
    pub fn cacheable(self, members: &[(&str, &RawValue)]) -> Box<RawValue> {
        let (ttl, scope) = (to_raw(&TTL_MS), to_raw("private"));
        let hints = [("ttlMs", &*ttl), ("cacheScope", &*scope)].into_iter().filter(|_| self.is_modern);
        let all: Vec<_> = hints.chain(members.iter().copied()).collect();
        self.result("complete", &all)
    }
}

/// Time for which a client may use a list without asking again.
const TTL_MS: u32 = 60_000;

/// Answer with an error and its status.
#[must_use]
pub fn refused(id: Option<&RawValue>, (status, error): &Refusal) -> Response {
    let mut response = json_rpc::failed(id, error);
    *response.status_mut() = *status;
    response
}

fn bad_request(code: i32, text: impl Into<String>) -> Refusal {
    (StatusCode::BAD_REQUEST, RpcError::new(code, text))
}

fn unsupported(version: &str) -> Refusal {
    let supported: Vec<_> = [MODERN].into_iter().chain(LEGACY).collect();
    let (status, error) = bad_request(UNSUPPORTED_VERSION, "Unsupported protocol version");
    (status, error.with_data(&json!({"supported": supported, "requested": shorten(version)})))
}

/// Value of a header that may occur only once.
fn one(headers: &HeaderMap, name: &'static str) -> Result<Option<String>, Refusal> {
    let mut values = headers.get_all(name).iter();
    match (values.next().map(HeaderValue::to_str), values.next()) {
        (None, _) => Ok(None),
        (Some(Ok(value)), None) => Ok(Some(value.to_owned())),
        _ => Err(bad_request(HEADER_MISMATCH, format!("Header mismatch: {name} should occur once, in ASCII"))),
    }
}

fn check_header(name: &str, given: Option<&str>, expected: &str) -> Result<(), Refusal> {
    if given == Some(expected) {
        return Ok(());
    }
    let text = format!("Header mismatch: {name} should be {:?}, as in the body", shorten(expected));
    Err(bad_request(HEADER_MISMATCH, text))
}

/// Decodes a value that no header could carry as it is.
fn decoded(value: String) -> Result<String, Refusal> {
    let Some(encoded) = value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) else {
        return Ok(value);
    };
    let bytes = BASE64_STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    bytes.ok_or_else(|| bad_request(HEADER_MISMATCH, format!("Header mismatch: {NAME_HEADER} is not valid Base64")))
}

/// Refuses browser pages of other origins than `CORS_ORIGINS` and `PUBLIC_URL`: a page must not use a server that only its
/// visitor reaches.
pub fn check_origin(config: &Config, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let is_listed = match &config.cors.origins {
        AllowList::Any => true,
        AllowList::These(origins) => origins.contains(origin),
    };
    let own = Url::parse(&config.api.public_url).ok();
    let page = origin.to_str().ok().and_then(|origin| Url::parse(origin).ok());
    if is_listed || own.zip(page).is_some_and(|(own, page)| is_same_origin(&own, &page)) {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::FORBIDDEN, "origin_not_allowed", "Pages of this origin may not use the MCP server"))
}

/// Whether both have the same scheme, host and port. All names of this host are the same.
fn is_same_origin(one: &Url, other: &Url) -> bool {
    let ends = |url: &Url| (url.scheme().to_owned(), url.port_or_known_default());
    one.origin() == other.origin() || is_loopback(one) && is_loopback(other) && ends(one) == ends(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    #[test]
    fn a_page_of_the_service_may_use_it_under_each_name_of_this_host() {
        let same = |one: &str, other: &str| {
            is_same_origin(&Url::parse(one).expect("a URL"), &Url::parse(other).expect("a URL"))
        };
        assert!(same("https://api.example/x", "https://api.example"));
        assert!(same("http://localhost:8000", "http://127.0.0.1:8000") && same("http://[::1]:1", "http://localhost:1"));
        for page in
            ["http://localhost:3000", "https://localhost:8000", "http://evil.example:8000", "http://10.0.0.1:8000"]
        {
            assert!(!same("http://localhost:8000", page), "{page}");
        }
        assert!(!same("https://api.example", "https://localhost"));
    }

    /// Reads the client of a call with these headers.
    fn read(method: &str, params: &str, headers: &[(&'static str, &str)]) -> Result<Client, (u16, i32)> {
        let params = check_json(params.as_bytes()).expect(params).to_owned();
        let call = Call { id: None, method: method.to_owned(), params };
        let headers =
            headers.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")));
        Client::read(&headers.collect(), &call).map_err(|(status, error)| (status.as_u16(), error.code))
    }

    const META: &str =
        r#"{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

    #[test]
    fn a_client_of_the_newest_revision_describes_itself_in_each_request() {
        let plain = Client { is_modern: true, has_tasks: false, has_forms: false };
        let list = [("mcp-protocol-version", MODERN), ("mcp-method", "tools/list")];
        let params = format!(r#"{{"_meta":{META}}}"#);
        assert_eq!(read("tools/list", &params, &list), Ok(plain));
        assert_eq!(read("tools/list", &params, &list[..1]), Err((400, HEADER_MISMATCH)));
        assert_eq!(read("tools/list", &params, &list[1..]), Err((400, HEADER_MISMATCH)));
        assert_eq!(read("tools/call", &params, &list), Err((400, HEADER_MISMATCH)));
        assert_eq!(read("tools/list", "{}", &list), Err((400, INVALID_PARAMS)));
        let without = params.replace(r#","io.modelcontextprotocol/clientCapabilities":{}"#, "");
        assert_eq!(read("tools/list", &without, &list), Err((400, INVALID_PARAMS)));
        let other = params.replace(MODERN, "2027-01-01");
        let headers = [("mcp-protocol-version", "2027-01-01"), ("mcp-method", "tools/list")];
        assert_eq!(read("tools/list", &other, &headers), Err((400, UNSUPPORTED_VERSION)));
        for (capabilities, has_tasks, has_forms) in [
            (r#"{"elicitation":{}}"#, false, true),
            (r#"{"elicitation":{"form":{},"url":{}}}"#, false, true),
            (r#"{"elicitation":{"url":{}}}"#, false, false),
            (r#"{"extensions":{"io.modelcontextprotocol/tasks":{}}}"#, true, false),
        ] {
            let params = params.replace("{}", capabilities);
            assert_eq!(
                read("tools/list", &params, &list),
                Ok(Client { has_tasks, has_forms, ..plain }),
                "{capabilities}"
            );
        }
    }

    #[test]
    fn the_name_in_the_header_is_that_of_the_body() {
        let params = format!(r#"{{"name":"ä","_meta":{META}}}"#);
        let with = |name: &str| {
            let headers = [("mcp-protocol-version", MODERN), ("mcp-method", "tools/call"), ("mcp-name", name)];
            read("tools/call", &params, &headers)
        };
        assert!(with("=?base64?w6Q=?=").is_ok());
        for name in ["a", "=?base64?!?=", "=?base64?YQ==?="] {
            assert_eq!(with(name), Err((400, HEADER_MISMATCH)), "{name}");
        }
    }

    #[test]
    fn an_older_client_names_its_revision_at_most_in_a_header() {
        let legacy = Ok(Client { is_modern: false, has_tasks: false, has_forms: false });
        assert_eq!(read("initialize", r#"{"protocolVersion":"2025-06-18"}"#, &[]), legacy);
        assert_eq!(read("tools/list", "{}", &[]), legacy);
        for version in LEGACY {
            assert_eq!(read("tools/list", "{}", &[("mcp-protocol-version", version)]), legacy);
        }
        assert_eq!(
            read("tools/list", "{}", &[("mcp-protocol-version", "2024-11-05")]),
            Err((400, UNSUPPORTED_VERSION))
        );
    }
}
