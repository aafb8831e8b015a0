//! The OpenAPI document and its two browsers, all from the binary: nothing is loaded from elsewhere.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State, rejection::PathRejection},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        Content, Header, InfoBuilder, Object, OpenApiBuilder, Ref, RefOr, ResponseBuilder, Schema, Type,
        extensions::Extensions,
        path::{Operation, Parameter},
        schema::{AnyOf, SchemaType},
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use super::{App, access, error::ApiError};
use crate::{access::Permission, config};

/// `ReDoc` 2.5.4, <https://github.com/Redocly/redoc> (MIT, see `docs/redoc.LICENSE.txt`), gzipped; the one address
/// in it that pointed elsewhere, its logo, is emptied.
const REDOC: &[u8] = include_bytes!("docs/redoc.standalone.js.gz");

/// What the two pages may do: run scripts of this service, show what comes from it, and ask it. Both write styles into
/// the page, and `ReDoc` searches in a worker that it makes itself.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     font-src 'self' data:; connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// Adds the security schemes, one of which every route under the prefix takes.
struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let mut components = document.components.take().unwrap_or_default();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").description(Some(
            "A token signed with JWT_SECRET, which `workflow-api token` makes, or with a key of JWT_PUBLIC_KEY or \
             JWT_JWKS. Not needed while authentication is off.",
        ));
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer.build()));
        document.components = Some(components);
        // The empty requirement: without authentication nothing is asked for.
        let schemes = ["bearer", "api_key"].map(|scheme| SecurityRequirement::new(scheme, [""; 0]));
        document.security = Some([SecurityRequirement::default()].into_iter().chain(schemes).collect());
    }
}

#[derive(OpenApi)]
#[openapi(
    modifiers(&Security),
    tags(
        (name = "agents", description = "Programs that do a step's work, called over JSON-RPC 2.0 (A2A)."),
        (name = "workflows", description = "Versioned definitions, and starting runs of them."),
        (name = "runs", description = "What was started: state, steps, cancelling and starting again."),
        (name = "callbacks", description = "Answers that runs wait for."),
        (name = "access", description = "API keys, and tokens for them."),
        (name = "system", description = "About the service itself."),
    )
)]
struct Skeleton;

/// The document without its paths, which `api::routes` adds. `key_header` is the header that carries an API key.
#[must_use]
pub fn document(api: &config::Api, key_header: &str) -> utoipa::openapi::OpenApi {
    let info = InfoBuilder::new().title(&api.title).version(&api.version).description(Some(&api.description)).build();
    let mut skeleton = Skeleton::openapi();
    let key = ApiKeyValue::with_description(key_header, "An API key; `POST /api-keys` makes one.");
    if let Some(components) = &mut skeleton.components {
        components.add_security_scheme("api_key", SecurityScheme::ApiKey(ApiKey::Header(key)));
    }
    OpenApiBuilder::new()
        .info(info)
        .components(skeleton.components)
        .security(skeleton.security)
        .tags(skeleton.tags)
        .build()
}

/// Adds what holds for many operations at once, so that no operation can forget it: the answers of `request`, which
/// every route under the prefix can give, the form of headers, and a description for each answer that has none, as
/// the specification demands one.
pub fn complete(document: &mut utoipa::openapi::OpenApi, prefix: &str) {
    for (path, item) in &mut document.paths.paths {
        let is_business = path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
            && item.get.as_ref().and_then(|get| get.tags.as_ref()).is_none_or(|tags| tags[..] != ["system"]);
        let operations = [
            (Method::GET, &mut item.get),
            (Method::PUT, &mut item.put),
            (Method::POST, &mut item.post),
            (Method::DELETE, &mut item.delete),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            if is_business {
                if let Some(needs) = access::needs(&method, path.strip_prefix(prefix).unwrap_or_default()) {
                    name_needs(operation, needs);
                }
                add_common_answers(operation);
            }
            for parameter in operation.parameters.iter_mut().flatten() {
                if let RefOr::T(parameter) = parameter {
                    shape_parameter(parameter);
                }
            }
            for (status, response) in &mut operation.responses.responses {
                let RefOr::T(response) = response else { continue };
                if response.description.is_empty() {
                    let status = StatusCode::from_bytes(status.as_bytes()).ok();
                    response.description =
                        status.and_then(|status| status.canonical_reason()).unwrap_or("Answer").into();
                }
                // A schema is of one JSON value, which a stream of events is not.
                if let Some(RefOr::T(stream)) = response.content.get_mut("text/event-stream") {
                    stream.schema = None;
                }
            }
        }
    }
}

/// What may be left out is not null: no header and no query can say so.
fn shape_parameter(parameter: &mut Parameter) {
    let Some(RefOr::T(Schema::Object(schema))) = &mut parameter.schema else { return };
    if let SchemaType::Array(types) = &schema.schema_type
        && let Some(named) = types.iter().find(|named| **named != Type::Null)
    {
        schema.schema_type = SchemaType::Type(named.clone());
    }
    if let Some(pattern) = header_pattern(&parameter.name) {
        schema.pattern = Some(pattern.to_owned());
    }
    if ["_after", "_before"].iter().any(|end| parameter.name.ends_with(end)) {
        let epoch = Object::with_type(Type::Number);
        parameter.schema = Some(Schema::from(AnyOf::builder().item(schema.clone()).item(epoch).build()).into());
    }
}

/// The values that are taken of a header which is taken on several routes.
fn header_pattern(name: &str) -> Option<&'static str> {
    match name {
        "Idempotency-Key" => Some("^[!-~]([ -~]*[!-~])?$"),
        "If-Match" | "If-None-Match" => Some(r#"^(\*|(W/)?"[!#-+\--~]*"( *, *(W/)?"[!#-+\--~]*")*)$"#),
        _ => None,
    }
}

/// Says who may use the route, for people and for programs.
fn name_needs(operation: &mut Operation, needs: &[Permission]) {
    let permissions: Vec<&str> = needs.iter().map(|permission| permission.as_str()).collect();
    let roles = access::roles(needs);
    if !permissions.is_empty() {
        let text = format!("Needs `{}`; roles: {}.", permissions.join("`, `"), roles.join(", "));
        let description = operation.description.take().filter(|description| !description.is_empty());
        operation.description =
            Some(description.map_or(text.clone(), |description| format!("{description}\n\n{text}")));
    }
    let named = Extensions::builder().add("x-required-permissions", permissions).add("x-required-roles", roles);
    operation.extensions.get_or_insert_default().merge(named.build());
}

fn add_common_answers(operation: &mut Operation) {
    let has_body = operation.request_body.is_some();
    let answers = [
        (StatusCode::BAD_REQUEST, "The body ended early, or the route takes none", true),
        (StatusCode::UNAUTHORIZED, "Authentication is on, and the request has no valid token or API key", true),
        (StatusCode::FORBIDDEN, "The caller may not do this", true),
        (StatusCode::REQUEST_TIMEOUT, "The body did not arrive in time", has_body),
        (StatusCode::PAYLOAD_TOO_LARGE, "The body is larger than 1 MiB", has_body),
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body has a Content-Encoding", has_body),
        (StatusCode::URI_TOO_LONG, "Path and query are longer than 8 KiB", true),
        (StatusCode::TOO_MANY_REQUESTS, "More was asked for than a limit of the settings allows", true),
        (StatusCode::INTERNAL_SERVER_ERROR, "A fault of the service; the log knows more by `request_id`", true),
        (StatusCode::SERVICE_UNAVAILABLE, "The database is away, or the service has too much to do", true),
    ];
    for (status, description, _) in answers.into_iter().filter(|(.., is_possible)| *is_possible) {
        operation.responses.responses.entry(status.as_str().to_owned()).or_insert_with(|| {
            let content = Content::new(Some(Ref::from_schema_name("ErrorBody")));
            let answer = ResponseBuilder::new().description(description).content("application/json", content);
            let text = || Header::new(Object::with_type(Type::String));
            let answer = match status {
                StatusCode::UNAUTHORIZED => answer.header("WWW-Authenticate", text()),
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                    answer.header("Retry-After", Header::new(Object::with_type(Type::Integer)))
                }
                _ => answer,
            };
            answer.build().into()
        });
    }
}

/// Whether a path needs no authentication although it may lie under the prefix: all that this module serves.
#[must_use]
pub fn is_public(path: &str) -> bool {
    path == "/openapi.json" || ["/docs", "/redoc"].iter().any(|page| path == *page || in_folder(path, page))
}

fn in_folder(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
}

/// `/openapi.json`, `/docs`, `/redoc` and what they load.
pub fn router(document: &utoipa::openapi::OpenApi) -> Router<App> {
    let json = Bytes::from(serde_json::to_vec(document).expect("the document consists of strings and numbers"));
    let openapi = move || async move {
        ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json")), revalidate()], json)
    };
    let script = |text: &'static [u8], encoding: Option<&'static str>| {
        move || async move {
            let mut response = asset(text, "text/javascript; charset=utf-8");
            if let Some(encoding) = encoding {
                response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
            }
            response
        }
    };
    Router::new()
        .route("/openapi.json", get(openapi))
        .route("/docs", get(|State(app): State<App>| async move { page(include_str!("docs/swagger.html"), &app) }))
        .route("/docs/start.js", get(script(include_bytes!("docs/swagger.js"), None)))
        .route("/docs/{file}", get(swagger_asset))
        .route("/redoc", get(|State(app): State<App>| async move { page(include_str!("docs/redoc.html"), &app) }))
        .route("/redoc/redoc.standalone.js", get(script(REDOC, Some("gzip"))))
}

fn page(html: &str, app: &App) -> Response {
    let title = app.config.api.title.replace('&', "&amp;").replace('<', "&lt;");
    let mut response = Html(html.replace("{title}", &title)).into_response();
    let policy = (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response.headers_mut().extend([policy, revalidate()]);
    response
}

fn asset(bytes: impl IntoResponse, content_type: &str) -> Response {
    let mut response = bytes.into_response();
    if let Ok(content_type) = HeaderValue::from_str(content_type) {
        let age = (header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
        // Takes the place of the one that bytes come with; `extend` would put a second one beside it.
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response.headers_mut().extend([age]);
    }
    response
}

/// A page and the document may be others after the next start.
fn revalidate() -> (HeaderName, HeaderValue) {
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))
}

async fn swagger_asset(file: Result<Path<String>, PathRejection>) -> Result<Response, ApiError> {
    let not_found = || ApiError::not_found("not_found", "Not Found");
    let Path(file) = file.map_err(|_| not_found())?;
    let config = Arc::new(utoipa_swagger_ui::Config::from("/openapi.json"));
    let found = utoipa_swagger_ui::serve(&file, config).map_err(|_| not_found())?.ok_or_else(not_found)?;
    let mut response = asset(found.bytes.into_owned(), &found.content_type);
    if found.gzpipped {
        response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}
