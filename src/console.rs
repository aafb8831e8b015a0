//! Files of the console, the user interface in `console/assets`. They are in the binary as they are in the repository:
//! nothing is bundled, and nothing is loaded from other hosts.
//!
//! The path of a file contains a hash over all files, so that a browser can keep a file for ever, and modules that import
//! each other by relative paths are always of one version.

use std::{collections::HashMap, fmt::Write as _, io::Write as _};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use sha2::{Digest, Sha256};

use crate::trace::hex;

// `FILES`: path and content of each file, in the order of the paths.
include!(concat!(env!("OUT_DIR"), "/console_files.rs"));

/// Path of the console.
pub const PATH: &str = "/console";
/// The page, a template that [`Console::new`] fills.
const PAGE: &str = "index.html";
/// The module that the page loads. It imports what every screen needs; a screen is imported when it is opened.
const MAIN: &str = "app.js";
/// Length of a tag, and of the hash in the paths, in bytes.
const TAG_BYTES: usize = 8;

/// File, as it is served.
#[derive(Clone, Debug)]
pub struct Asset {
    /// Media type.
    pub content_type: &'static str,
    /// Hash of the content.
    pub tag: String,
    /// Content.
    pub plain: Bytes,
    /// Content in gzip; `None` if that would not be smaller.
    pub gzipped: Option<Bytes>,
}

/// All files, compressed once.
#[derive(Debug)]
pub struct Console {
    /// Hash in the paths of the files.
    version: String,
    /// The page for all paths.
    page: Asset,
    files: HashMap<&'static str, Asset>,
}

impl Console {
    /// Prepares the files. `base` is the path at which clients see the root of this service, without a slash at its end;
    /// `api` the prefix of the API below it.
    #[must_use]
    pub fn new(base: &str, api: &str, title: &str) -> Self {
        let mut all = Sha256::new();
        for (path, content) in FILES {
            all.update((path.len() as u64).to_be_bytes());
            all.update(path);
            all.update((content.len() as u64).to_be_bytes());
            all.update(content);
        }
        let version = hex(&all.finalize()[..TAG_BYTES]);
        let assets = format!("{base}{PATH}/assets/{version}");
        let mut preload = String::new();
        for path in needed_modules(MAIN) {
            let _ = writeln!(preload, "<link rel=\"modulepreload\" href=\"{}/{}\">", escaped(&assets), escaped(path));
        }
        let template = FILES.iter().find(|(path, _)| *path == PAGE).map_or(&[][..], |(_, content)| *content);
        let page = String::from_utf8_lossy(template)
            .replace("{{assets}}", &escaped(&assets))
            .replace("{{console}}", &escaped(&format!("{base}{PATH}")))
            .replace("{{api}}", &escaped(&format!("{base}{api}")))
            .replace("{{preload}}", preload.trim_end())
            // The last one, since it is a text of the operator's.
            .replace("{{title}}", &escaped(title));
        let files = FILES.iter().filter(|(path, _)| *path != PAGE);
        let files = files.map(|(path, content)| (*path, Asset::new(media_type(path), Bytes::from_static(content))));
        Self { files: files.collect(), page: Asset::new(media_type(PAGE), page.into()), version }
    }

    /// The page.
    #[must_use]
    pub fn page(&self) -> &Asset {
        &self.page
    }

    /// The file of that path, in that version of the console.
    #[must_use]
    pub fn file(&self, version: &str, path: &str) -> Option<&Asset> {
        self.files.get(path).filter(|_| version == self.version)
    }
}

impl Asset {
    fn new(content_type: &'static str, plain: Bytes) -> Self {
        let tag = hex(&Sha256::digest(&plain)[..TAG_BYTES]);
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        // Writing into memory does not fail.
        let gzipped = encoder.write_all(&plain).and_then(|()| encoder.finish()).ok();
        let gzipped = gzipped.filter(|gzipped| gzipped.len() < plain.len()).map(Bytes::from);
        Self { content_type, tag, plain, gzipped }
    }
}

/// The module of that path and all that it imports, directly or not. `import()` of a screen is not followed.
fn needed_modules(main: &'static str) -> Vec<&'static str> {
    let mut found = vec![main];
    let mut read = 0;
    while let Some(path) = found.get(read).copied() {
        read += 1;
        let content = FILES.iter().find(|(name, _)| *name == path).map_or(&[][..], |(_, content)| *content);
        let text = str::from_utf8(content).unwrap_or_default();
        for import in text.split(" from \"").skip(1).filter_map(|rest| rest.split('"').next()) {
            let wanted = below(path, import);
            let file = FILES.iter().map(|(name, _)| *name).find(|name| *name == wanted && media_type(name) == SCRIPT);
            if let Some(file) = file.filter(|file| !found.contains(file)) {
                found.push(file);
            }
        }
    }
    found
}

/// Path of a file that is named relative to another one.
fn below(path: &str, relative: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in relative.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Media type of a file. `build.rs` embeds no others.
fn media_type(path: &str) -> &'static str {
    match path.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => SCRIPT,
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "woff2" => "font/woff2",
        "json" => "application/json",
        "webmanifest" => "application/manifest+json",
        _ => "text/plain; charset=utf-8",
    }
}

/// Text for an attribute or an element of HTML.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_the_files_of_its_version_and_fills_every_placeholder() {
        let console = Console::new("/wf", "/api/v1", "<b>{{api}}</b>");
        let page = String::from_utf8(console.page().plain.to_vec()).expect("UTF-8");
        let assets = format!("/wf/console/assets/{}", console.version);
        assert!(page.contains(&format!("src=\"{assets}/app.js\"")), "{page}");
        assert!(page.contains(&format!("<link rel=\"modulepreload\" href=\"{assets}/app.js\">")), "{page}");
        assert!(page.contains("content=\"/wf/api/v1\"") && page.contains("content=\"/wf/console\""), "{page}");
        assert!(page.contains("&lt;b&gt;{{api}}&lt;/b&gt;"), "the title is text: {page}");
        assert!(!page.replace("{{api}}", "").contains("{{"), "{page}");
        // The policy allows no script in the page, and no style.
        let tags = page.split('<').filter_map(|part| part.split('>').next());
        for tag in tags.filter(|tag| !tag.starts_with('!')) {
            assert!(!tag.starts_with("style") && !tag.contains(" style=") && !tag.contains(" on"), "{tag}");
        }
        let scripts: Vec<&str> = page.split("<script").skip(1).collect();
        assert!(
            scripts.iter().all(|script| script.split('>').next().is_some_and(|tag| tag.contains("src="))),
            "{page}"
        );
    }

    #[test]
    fn the_page_preloads_what_every_screen_needs_and_no_screen_besides() {
        let page = String::from_utf8(Console::new("", "", "").page().plain.to_vec()).expect("UTF-8");
        let preloaded: Vec<&str> = page.lines().filter(|line| line.contains("modulepreload")).collect();
        for needed in ["app.js", "parts/runtime.js", "vendor/signals-core.js", "views/sign-in.js"] {
            assert_eq!(preloaded.iter().filter(|line| line.contains(&format!("/{needed}\""))).count(), 1, "{needed}");
        }
        assert!(!preloaded.iter().any(|line| line.contains("views/editor.js")), "{page}");
        assert_eq!(below("views/run.js", "../parts/ui.js"), "parts/ui.js");
        assert_eq!(below("app.js", "./views/run.js"), "views/run.js");
    }

    #[test]
    fn a_file_is_found_in_its_version_only() {
        let console = Console::new("", "", "");
        let asset = console.file(&console.version, "app.js").expect("the main module");
        assert_eq!(asset.content_type, SCRIPT);
        assert!(console.file("0000000000000000", "app.js").is_none());
        for wrong in ["", "index.html", "/app.js", "../app.js", "app.js/", "APP.JS"] {
            assert!(console.file(&console.version, wrong).is_none(), "{wrong}");
        }
    }
}
