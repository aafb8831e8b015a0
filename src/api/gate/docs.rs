//! OpenAPI document and its two browsers. All files are in the binary: nothing is loaded from other hosts.

mod complete;

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use axum::{
    Router,
    extract::State,
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        Contact, ContactBuilder, InfoBuilder, License, OpenApiBuilder, Server,
        path::OperationBuilder,
        request_body::RequestBody,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_axum::router::UtoipaMethodRouter;

use crate::{
    api::vocabulary::{app::App, sets},
    config, offload,
};

pub use complete::complete;

/// Swagger UI 5.32.6, <https://github.com/swagger-api/swagger-ui> (Apache 2.0, see `docs/swagger.LICENSE.txt`): the two
/// files that its page loads, gzipped.
const SWAGGER: &[u8] = include_bytes!("docs/swagger-ui-bundle.js.gz");
const SWAGGER_STYLE: &[u8] = include_bytes!("docs/swagger-ui.css.gz");

/// `ReDoc` 2.5.4, <https://github.com/Redocly/redoc> (MIT, see `docs/redoc.LICENSE.txt`), gzipped. The only external
/// address in it, that of its logo, is removed.
const REDOC: &[u8] = include_bytes!("docs/redoc.standalone.js.gz");

/// Content security policy of the two pages: they run scripts of this service, show its content, and send requests to
/// it. Both write styles into the page, and `ReDoc` searches in a worker that it creates itself.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
     font-src 'self' data:; connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; \
     frame-ancestors 'none'";

/// Adds the security schemes; every route under the prefix accepts one of them.
struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let mut components = document.components.take().unwrap_or_default();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").description(Some(
            "A token signed with JWT_SECRET, which `workflow-api token` issues, or with a key of JWT_PUBLIC_KEY or \
             JWT_JWKS. Not needed while authentication is off.",
        ));
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer.build()));
        document.components = Some(components);
        // The empty requirement: while authentication is off, no credentials are needed.
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
        (name = "runs", description = "Executions of workflows: state, steps, cancelling and retrying."),
        (name = "triggers", description = "What starts runs without a client: schedules, and webhooks of other services."),
        (name = "callbacks", description = "Answers that runs wait for."),
        (name = "agents of workflows", description = "Workflows as A2A agents and as MCP tools."),
        (name = "access", description = "API keys, and tokens for them."),
        (name = "console", description = "Signing in to the console, and its saved views."),
        (name = "system", description = "About the service itself."),
    )
)]
struct Skeleton;

/// The document without its paths, which `api::document` adds. `key_header` is the header that carries an API key.
#[must_use]
pub fn document(api: &config::Api, key_header: &str) -> utoipa::openapi::OpenApi {
    let guide = include_str!("docs/guide.md").replace("{key_header}", key_header);
    let mut license = License::new("MIT");
    license.identifier = Some("MIT".to_owned());
    let info = InfoBuilder::new()
        .title(&api.title)
        .version(&api.version)
        .description(Some(format!("{}\n\n{guide}", api.description)))
        .contact(Some(contact(api)))
        .license(Some(license));
    let mut skeleton = Skeleton::openapi();
    let key = ApiKeyValue::with_description(key_header, "An API key; `POST /api-keys` creates one.");
    if let Some(components) = &mut skeleton.components {
        components.schemas.extend(sets::all());
        components.add_security_scheme("api_key", SecurityScheme::ApiKey(ApiKey::Header(key)));
    }
    OpenApiBuilder::new()
        .info(info.build())
        // Relative to the address of the document.
        .servers(Some([Server::new("/")]))
        .components(skeleton.components)
        .security(skeleton.security)
        .tags(skeleton.tags)
        .build()
}

/// The operator: `API_CONTACT` is an e-mail address or a URL.
fn contact(api: &config::Api) -> Contact {
    let contact = api.contact.as_deref();
    let (url, email) = (contact.filter(|text| text.contains("://")), contact.filter(|text| !text.contains("://")));
    ContactBuilder::new().name(Some("The operator of this service")).url(url).email(email).build()
}

/// Leaves of the documentation of handlers only which operations there are, and which of them take a body. The rest is
/// several megabytes, and few processes are asked for it.
pub fn outline((_, mut paths, handlers): UtoipaMethodRouter<App>) -> UtoipaMethodRouter<App> {
    for item in paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            let body = operation.request_body.as_ref().map(|_| RequestBody::new());
            *operation = OperationBuilder::new().request_body(body).build();
        }
    }
    (Vec::new(), paths, handlers)
}

/// OpenAPI document with the member that `utoipa` does not know.
#[derive(Serialize)]
pub struct Document {
    /// Everything else.
    #[serde(flatten)]
    pub openapi: utoipa::openapi::OpenApi,
    /// Requests that the service sends, by name.
    pub webhooks: Map<String, Value>,
}

/// `AsyncAPI` document of the topics, and the schemas that it refers to.
fn asyncapi() -> Value {
    let files = [
        ("kafka/headers.schema.json", include_str!("../../../docs/kafka/headers.schema.json")),
        ("kafka/execution-request.schema.json", include_str!("../../../docs/kafka/execution-request.schema.json")),
        (
            "kafka/cancellation-request.schema.json",
            include_str!("../../../docs/kafka/cancellation-request.schema.json"),
        ),
        ("kafka/monitoring-update.schema.json", include_str!("../../../docs/kafka/monitoring-update.schema.json")),
        ("kafka/dead-letter-headers.schema.json", include_str!("../../../docs/kafka/dead-letter-headers.schema.json")),
        ("kafka/event.schema.json", include_str!("../../../docs/kafka/event.schema.json")),
        ("kafka/event-headers.schema.json", include_str!("../../../docs/kafka/event-headers.schema.json")),
    ];
    let json = |text: &str| serde_json::from_str::<Value>(text).expect("a test parses the files");
    let mut document = json(include_str!("../../../docs/asyncapi.json"));
    let files: HashMap<&str, Value> = files.into_iter().map(|(name, text)| (name, json(text))).collect();
    inline(&mut document, &files);
    document
}

/// Replaces references to files by their content.
fn inline(value: &mut Value, files: &HashMap<&str, Value>) {
    let file = value.get("$ref").and_then(Value::as_str).and_then(|name| files.get(name));
    if let Some(file) = file {
        *value = file.clone();
        return;
    }
    match value {
        Value::Object(members) => members.values_mut().for_each(|member| inline(member, files)),
        Value::Array(items) => items.iter_mut().for_each(|item| inline(item, files)),
        _ => {}
    }
}

/// Router of `/openapi.json`, `/docs`, `/redoc` and their files. The document is made when it is first needed.
pub fn router(document: fn(&config::Api, &str) -> Document) -> Router<App> {
    let json = Arc::new(OnceLock::new());
    let openapi = move |State(app): State<App>| async move {
        let made = || {
            let document = document(&app.config.api, &app.config.auth.api_key_header_text);
            Bytes::from(serde_json::to_vec(&document).expect("the document consists of strings and numbers"))
        };
        let json = match json.get() {
            Some(json) => Bytes::clone(json),
            None => offload::in_place(|| json.get_or_init(made).clone()),
        };
        (revalidating_json(), json)
    };
    Router::new()
        .route("/openapi.json", get(openapi))
        .route("/docs", get(|State(app): State<App>| async move { page(include_str!("docs/swagger.html"), &app) }))
        .route("/docs/start.js", get(|| async { asset(include_bytes!("docs/swagger.js"), SCRIPT) }))
        .route("/docs/index.html", get(|| async { Redirect::permanent("/docs") }))
        .route("/docs/asyncapi.json", get(|| async { (revalidating_json(), asyncapi().to_string()) }))
        .route("/docs/swagger-ui-bundle.js", get(|| async { gzipped(SWAGGER, SCRIPT) }))
        .route("/docs/swagger-ui.css", get(|| async { gzipped(SWAGGER_STYLE, "text/css; charset=utf-8") }))
        .route(
            "/docs/favicon-32x32.png",
            get(|| async { asset(include_bytes!("docs/swagger.favicon.png"), "image/png") }),
        )
        .route("/redoc", get(|State(app): State<App>| async move { page(include_str!("docs/redoc.html"), &app) }))
        .route("/redoc/redoc.standalone.js", get(|| async { gzipped(REDOC, SCRIPT) }))
}

fn page(html: &str, app: &App) -> Response {
    let title = app.config.api.title.replace('&', "&amp;").replace('<', "&lt;");
    let mut response = Html(html.replace("{title}", &title)).into_response();
    let policy = (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response.headers_mut().extend([policy, revalidate()]);
    response
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

fn asset(bytes: &'static [u8], content_type: &'static str) -> Response {
    let mut response = bytes.into_response();
    // Replaces the default content type of bytes; `extend` would add a second one.
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    response
}

/// Headers of a JSON document.
fn revalidating_json() -> [(HeaderName, HeaderValue); 2] {
    [(header::CONTENT_TYPE, HeaderValue::from_static("application/json")), revalidate()]
}

fn gzipped(bytes: &'static [u8], content_type: &'static str) -> Response {
    let mut response = asset(bytes, content_type);
    response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    response
}

/// Caching: a page and the document may change at the next start.
fn revalidate() -> (HeaderName, HeaderValue) {
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))
}
