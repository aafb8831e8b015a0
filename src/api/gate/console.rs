//! Serves the console: its page, for every path below `/console`, and its files.

use std::sync::{Arc, OnceLock};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};

use crate::{
    api::vocabulary::{accept::preferences, app::App, error::ApiError, etag::IfNoneMatch},
    config,
    console::{self, Asset, Console},
    offload,
};

/// Content security policy of the page: scripts, styles and data of this service alone, none of them written into the page,
/// and no text that becomes a script.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'";
/// A file never changes, since its path contains a hash.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";
/// The page changes with the version of the service.
const REVALIDATE: &str = "no-cache";
/// Path of the files, below that of the console.
const ASSETS: &str = "/assets";

/// The files, which are compressed when the first of them is needed.
#[derive(Clone, Default)]
struct Files(Arc<OnceLock<Console>>);

impl Files {
    fn console(&self, api: &config::Api) -> &Console {
        self.0.get().unwrap_or_else(|| {
            let base = url::Url::parse(&api.public_url).ok().filter(|_| api.has_public_url);
            let base = base.as_ref().map_or("", |url| url.path().trim_end_matches('/'));
            offload::in_place(|| self.0.get_or_init(|| Console::new(base, &api.prefix, &api.title)))
        })
    }

    /// The answer to a request for that path.
    fn answer(&self, api: &config::Api, path: &str, known: &IfNoneMatch, headers: &HeaderMap) -> Response {
        let console = self.console(api);
        let below = path.strip_prefix(console::PATH).unwrap_or_default();
        let Some(file) = below.strip_prefix(ASSETS) else { return page(console, known, headers) };
        // The names of files have no characters that a browser would encode.
        let found = file.strip_prefix('/').and_then(|file| file.split_once('/'));
        let found = found.and_then(|(version, file)| console.file(version, file));
        match found {
            Some(asset) => answer(asset, IMMUTABLE, known, headers),
            // Another page may begin like them.
            None if !file.is_empty() && !file.starts_with('/') => page(console, known, headers),
            None => ApiError::not_found("not_found", "Not Found").into_response(),
        }
    }
}

/// Router of the page and its files.
pub fn router() -> Router<App> {
    let files = Files::default();
    let answer = move |State(app): State<App>, uri: Uri, known: IfNoneMatch, headers: HeaderMap| {
        let files = files.clone();
        async move { files.answer(&app.config.api, uri.path(), &known, &headers) }
    };
    let paths = ["/console", "/console/{*path}", "/console/assets/{version}/{*file}"];
    paths.into_iter().fold(Router::new(), |router, path| router.route(path, get(answer.clone())))
}

fn page(console: &Console, known: &IfNoneMatch, headers: &HeaderMap) -> Response {
    let mut response = answer(console.page(), REVALIDATE, known, headers);
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}

/// A file, compressed if the client takes that, or 304 if the client has it.
fn answer(asset: &Asset, caching: &'static str, known: &IfNoneMatch, headers: &HeaderMap) -> Response {
    let takes_gzip = preferences(headers, &header::ACCEPT_ENCODING)
        .any(|(coding, weight)| matches!(coding.as_str(), "gzip" | "x-gzip") && weight > 0.0);
    let mut response = if known.is_known(&asset.tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else if let Some(gzipped) = asset.gzipped.as_ref().filter(|_| takes_gzip) {
        ([(header::CONTENT_ENCODING, "gzip")], gzipped.clone()).into_response()
    } else {
        asset.plain.clone().into_response()
    };
    let headers = response.headers_mut();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", asset.tag)) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(asset.content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static(caching));
    headers.append(header::VARY, HeaderValue::from_static("accept-encoding"));
    response
}
