//! OpenAPI document and its two browsers. All files are in the binary: nothing is loaded from other hosts.

mod complete;

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State, rejection::PathRejection},
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        ContactBuilder, InfoBuilder, License, OpenApiBuilder, Server,
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};

use crate::{
    api::vocabulary::{app::App, error::ApiError, sets},
    config,
};

pub use complete::complete;

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
        (name = "callbacks", description = "Answers that runs wait for."),
        (name = "access", description = "API keys, and tokens for them."),
        (name = "system", description = "About the service itself."),
    )
)]
struct Skeleton;

/// The document without its paths, which `api::routes` adds. `key_header` is the header that carries an API key.
#[must_use]
pub fn document(api: &config::Api, key_header: &str) -> utoipa::openapi::OpenApi {
    let guide = include_str!("docs/guide.md").replace("{key_header}", key_header);
    let mut license = License::new("MIT");
    license.identifier = Some("MIT".to_owned());
    let info = InfoBuilder::new()
        .title(&api.title)
        .version(&api.version)
        .description(Some(format!("{}\n\n{guide}", api.description)))
        .contact(Some(ContactBuilder::new().name(Some("The operator of this service")).build()))
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

/// Router of `/openapi.json`, `/docs`, `/redoc` and their files.
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
        .route("/docs/index.html", get(|| async { Redirect::permanent("/docs") }))
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
        // Replaces the default content type of bytes; `extend` would add a second one.
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response.headers_mut().extend([age]);
    }
    response
}

/// Caching: a page and the document may change at the next start.
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
