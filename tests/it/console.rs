//! The console: its page and its files.

use std::io::Read as _;

use sqlx::PgPool;
use workflow_api::{console, db::migrations::MIGRATOR};

use crate::service::{Answer, Service, config};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'";

/// Where the page says that its files are.
async fn assets(service: &Service) -> String {
    let page = service.get("/console").await.text;
    let (_, rest) = page.split_once("src=\"").expect("a script");
    let (path, _) = rest.split_once("/app.js\"").expect("the main module");
    path.to_owned()
}

/// Whether it is a file of JavaScript.
fn is_module(path: &str) -> bool {
    matches!(path.rsplit('.').next(), Some("js" | "mjs"))
}

fn values(answer: &Answer, name: &str) -> Vec<String> {
    answer.headers.get_all(name).iter().map(|value| value.to_str().expect("text").to_owned()).collect()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_path_below_the_console_is_its_page_under_the_strict_policy(pool: PgPool) {
    let service = Service::start(&pool);
    let page = service.get("/console").await;
    assert!(page.text.contains("<meta name=\"wf-api\" content=\"/api/v1\">"), "{}", page.text);
    assert!(!page.text.contains("{{"), "{}", page.text);
    for path in [
        "/console",
        "/console/runs",
        "/console/runs/run-1/steps/a.b?x=/y",
        "/console/x/assets/y",
        "/console/assetsx",
        "/console/%ff",
    ] {
        let answer = service.get(path).await;
        assert_eq!(answer.status.as_u16(), 200, "{path}");
        assert_eq!(answer.text, page.text, "{path}");
        assert_eq!(values(&answer, "content-security-policy"), [POLICY], "{path}");
        assert_eq!(values(&answer, "content-type"), ["text/html; charset=utf-8"], "{path}");
        assert_eq!(values(&answer, "cache-control"), ["no-cache"], "{path}");
        assert_eq!(values(&answer, "x-content-type-options"), ["nosniff"], "{path}");
        assert_eq!(values(&answer, "referrer-policy"), ["no-referrer"], "{path}");
    }
    let slash = service.get("/console/").await;
    assert_eq!((slash.status.as_u16(), slash.header("location")), (307, Some("/console")));
    for (method, path) in [("POST", "/console"), ("PUT", "/console/runs"), ("DELETE", "/console/session/x")] {
        assert_eq!(
            service.send(method, path, &[], "").await.error(405)["code"],
            "method_not_allowed",
            "{method} {path}"
        );
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn every_file_is_served_for_ever_under_the_hash_of_its_version_only(pool: PgPool) {
    let service = Service::start(&pool);
    let assets = assets(&service).await;
    let files = console::FILES.iter().filter(|(path, _)| *path != "index.html");
    for (path, content) in files {
        let (status, headers, bytes) = service.bytes(&format!("{assets}/{path}")).await;
        assert_eq!((status.as_u16(), bytes.as_slice()), (200, *content), "{path}");
        let header = |name: &str| headers[name].to_str().expect("text");
        assert_eq!(header("cache-control"), "public, max-age=31536000, immutable", "{path}");
        let vary: Vec<_> = headers.get_all("vary").iter().map(|value| value.to_str().expect("text")).collect();
        assert!(!vary.iter().any(|vary| vary.contains("cookie") || vary.contains("authorization")), "{path}: {vary:?}");
        if is_module(path) {
            assert_eq!(header("content-type"), "text/javascript; charset=utf-8", "{path}");
        }
    }
    let page = service.get("/console").await.text;
    let (needed, later): (Vec<&str>, Vec<&str>) = console::FILES
        .iter()
        .map(|(path, _)| *path)
        .filter(|path| is_module(path))
        .partition(|path| page.contains(&format!("<link rel=\"modulepreload\" href=\"{assets}/{path}\">")));
    // What every screen needs is loaded with the page, other screens when they are opened.
    for path in ["app.js", "parts/api.js", "views/sign-in.js", "vendor/htm-preact-standalone.module.js"] {
        assert!(needed.contains(&path), "{path}");
    }
    assert!(later.contains(&"views/run.js") && !later.iter().any(|path| path.starts_with("vendor/")), "{later:?}");
    for wrong in ["/console/assets", "/console/assets/app.js", "/console/assets/0123456789abcdef/app.js"] {
        assert_eq!(service.get(wrong).await.error(404)["code"], "not_found", "{wrong}");
    }
    for wrong in ["index.html", "none.js", "..%2fapp.js", "%2e%2e/app.js", "app.js/", "%ff", "%00"] {
        assert_eq!(service.get(&format!("{assets}/{wrong}")).await.error(404)["code"], "not_found", "{wrong}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_file_comes_compressed_or_not_at_all_to_a_browser_that_has_it(pool: PgPool) {
    let service = Service::start(&pool);
    let app = format!("{}/app.js", assets(&service).await);
    for path in ["/console", "/console/runs", app.as_str()] {
        let plain = service.get(path).await;
        let tag = plain.header("etag").expect("a tag").to_owned();
        assert!(tag.starts_with('"') && plain.header("content-encoding").is_none(), "{path}");
        let body = axum::body::Body::empty();
        let answer = service.open("GET", path, &[("accept-encoding", "gzip, deflate, br, zstd")], body).await;
        let (parts, body) = answer.into_parts();
        let bytes = http_body_util::BodyExt::collect(body).await.expect("a body").to_bytes();
        let mut text = String::new();
        flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).expect("gzip");
        assert_eq!(text, plain.text, "{path}");
        assert_eq!(parts.headers["content-encoding"], "gzip", "{path}");
        assert_eq!(parts.headers["content-length"].to_str().expect("text"), bytes.len().to_string());
        assert!(parts.headers.get_all("vary").iter().any(|value| value == "accept-encoding"), "{path}");
        let weak = parts.headers["etag"].to_str().expect("text").to_owned();
        assert_eq!(weak, format!("W/{tag}"));
        for known in [tag.as_str(), weak.as_str(), "\"x\", *"] {
            let again = service.send("GET", path, &[("if-none-match", known)], "").await;
            assert_eq!((again.status.as_u16(), again.text.as_str()), (304, ""), "{path} {known}");
            assert_eq!(again.header("cache-control"), plain.header("cache-control"), "{path}");
        }
        let other = service.send("GET", path, &[("if-none-match", "\"other\"")], "").await;
        assert_eq!((other.status.as_u16(), &other.text), (200, &plain.text), "{path}");
        let head = service.send("HEAD", path, &[], "").await;
        assert_eq!((head.status.as_u16(), head.text.as_str()), (200, ""), "{path}");
        for name in ["etag", "content-type", "content-length", "cache-control", "content-security-policy"] {
            assert_eq!(head.header(name), plain.header(name), "{name} of {path}");
        }
        for refused in ["gzip;q=0", "identity", "br"] {
            let answer = service.send("GET", path, &[("accept-encoding", refused)], "").await;
            assert_eq!((answer.header("content-encoding"), &answer.text), (None, &plain.text), "{path} {refused}");
        }
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_page_knows_the_path_of_a_public_address_and_shows_a_title_as_text(pool: PgPool) {
    let settings =
        [("PUBLIC_URL", "https://example.test/wf/"), ("API_TITLE", "</title><script src=x>'\"&"), ("API_PREFIX", "v9")];
    let service = Service::start_with(config(&pool, &settings));
    let page = service.get("/console").await.text;
    for expected in [
        "<meta name=\"wf-api\" content=\"/wf/v9\">",
        "<meta name=\"wf-console\" content=\"/wf/console\">",
        "src=\"/wf/console/assets/",
        "&lt;/title&gt;&lt;script src=x&gt;&#39;&quot;&amp;",
    ] {
        assert!(page.contains(expected), "{expected} is not in {page}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn there_is_no_console_where_it_is_switched_off(pool: PgPool) {
    let on = Service::start(&pool);
    let assets = assets(&on).await;
    let off = Service::start_with(config(&pool, &[("CONSOLE_ENABLED", "false")]));
    for path in ["/console", "/console/runs", "/console/session", &format!("{assets}/app.js")] {
        assert_eq!(off.get(path).await.error(404)["code"], "not_found", "{path}");
    }
    assert_eq!(off.send("POST", "/console/session", &[], "").await.error(404)["code"], "not_found");
    let documented = |document: &serde_json::Value| document["paths"].get("/console/session").is_some();
    assert!(documented(&on.get("/openapi.json").await.expect(200)));
    assert!(!documented(&off.get("/openapi.json").await.expect(200)));
}
