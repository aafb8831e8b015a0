//! The reference of the log, `docs/logs.md`, held against the source: every field of a line, and every message but
//! those of the level DEBUG. `INSTA_UPDATE=always` writes the messages.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{TokenStream, TokenTree};
use syn::{
    LitStr, Macro,
    visit::{self, Visit},
};

/// Names and messages of one file's log lines.
#[derive(Default)]
struct Lines {
    module: String,
    fields: BTreeSet<String>,
    messages: BTreeSet<String>,
}

impl Visit<'_> for Lines {
    fn visit_macro(&mut self, call: &Macro) {
        let path: Vec<String> = call.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["tracing", level @ ("error" | "warn" | "info" | "debug" | "trace")] => self.line(level, &call.tokens),
            ["tracing", span] if span.ends_with("_span") => self.line("span", &call.tokens),
            // Such as `tokio::select!`.
            _ => self.inside(call.tokens.clone()),
        }
        visit::visit_macro(self, call);
    }

    fn visit_item_mod(&mut self, module: &syn::ItemMod) {
        if module.ident != "tests" {
            visit::visit_item_mod(self, module);
        }
    }
}

impl Lines {
    /// Calls inside of another macro, whose tokens are no expression.
    fn inside(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        for (index, token) in tokens.iter().enumerate() {
            let TokenTree::Group(group) = token else { continue };
            let before: String = tokens[index.saturating_sub(5)..index].iter().map(ToString::to_string).collect();
            match before.rsplit("tracing::").next().and_then(|name| name.strip_suffix('!')) {
                Some(level) if before.contains("tracing::") && !level.contains(['(', ';']) => {
                    self.line(level, &group.stream());
                }
                _ => self.inside(group.stream()),
            }
        }
    }

    fn line(&mut self, level: &str, tokens: &TokenStream) {
        let mut logger = self.module.clone();
        for argument in arguments(tokens) {
            let text: String = argument.iter().map(ToString::to_string).collect();
            if let Some(target) = text.strip_prefix("target:") {
                logger = target.trim_matches('"').to_owned();
            } else if let Ok(message) = syn::parse2::<LitStr>(argument.iter().take(1).cloned().collect()) {
                if level == "span" {
                    continue;
                }
                if matches!(level, "error" | "warn" | "info") {
                    let level = if level == "warn" { "WARNING".to_owned() } else { level.to_uppercase() };
                    self.messages.insert(format!("| {level} | `{logger}` | {} |", shown(&message.value())));
                }
                // What follows is for the message.
                return;
            } else {
                let name = text.split('=').next().unwrap_or_default().trim_start_matches(['%', '?']).to_owned();
                self.fields.insert(name);
            }
        }
    }
}

/// Arguments between commas.
fn arguments(tokens: &TokenStream) -> Vec<Vec<TokenTree>> {
    let mut arguments = vec![Vec::new()];
    for token in tokens.clone() {
        match token {
            TokenTree::Punct(comma) if comma.as_char() == ',' => arguments.push(Vec::new()),
            token => arguments.last_mut().expect("at least one").push(token),
        }
    }
    arguments.retain(|argument| !argument.is_empty());
    arguments
}

/// A message with `…` for what is inserted.
fn shown(format: &str) -> String {
    let mut text = String::new();
    let mut is_inside = false;
    for char in format.chars() {
        match char {
            '{' => is_inside = true,
            '}' => {
                is_inside = false;
                text.push('…');
            }
            _ if is_inside => {}
            char => text.push(char),
        }
    }
    text.replace('|', "\\|")
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

#[test]
fn the_reference_of_the_log_has_every_field_and_every_message() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    rust_files(&root.join("src"), &mut files);
    let (mut fields, mut messages) = (BTreeSet::new(), BTreeSet::new());
    for path in files {
        let module = path.strip_prefix(root.join("src")).expect("below").with_extension("");
        let module = module.to_str().expect("UTF-8").replace('/', ".");
        let module = if module == "main" { "workflow_api".to_owned() } else { module };
        let mut lines = Lines { module, ..Lines::default() };
        lines.visit_file(&syn::parse_file(&fs::read_to_string(&path).expect("text")).expect("Rust"));
        fields.extend(lines.fields);
        messages.extend(lines.messages);
    }
    assert!(fields.len() > 40 && messages.len() > 60, "{fields:?}");

    let path = root.join("docs/logs.md");
    let document = fs::read_to_string(&path).expect("docs/logs.md");
    let (before, after) = document.split_once("\n## Fields\n").expect("a heading");
    let (table, rest) = after.split_once("\n## Messages\n").expect("a heading");
    let listed: BTreeSet<String> =
        table.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned())).collect();
    assert_eq!(listed, fields, "the table of fields in docs/logs.md");

    let introduction = rest.lines().take_while(|line| !line.starts_with('|')).collect::<Vec<_>>().join("\n");
    let list: Vec<String> = messages.into_iter().collect();
    let expected = format!("{introduction}\n| level | logger | message |\n|---|---|---|\n{}\n", list.join("\n"));
    if std::env::var("INSTA_UPDATE").is_ok_and(|update| update == "always") {
        fs::write(&path, format!("{before}\n## Fields\n{table}\n## Messages\n{expected}")).expect("written");
    } else {
        assert!(rest == expected, "docs/logs.md has other messages; INSTA_UPDATE=always writes them:\n{expected}");
    }
}
