//! What ARCHITECTURE.md says about the code, held against the paths that every file under `src` names: in `use` and
//! elsewhere, but for its unit tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A module path, such as `api::gate`, in its parts.
type Module = Vec<String>;

/// A file of the program.
struct Source {
    module: Module,
    /// Without comments and unit tests.
    text: String,
}

impl Source {
    /// The paths of the crate that the file names, from the crate's root.
    fn paths(&self) -> BTreeSet<Module> {
        let mut paths = BTreeSet::new();
        for keyword in ["crate::", "workflow_api::", "super::", "self::"] {
            for (at, _) in self.text.match_indices(keyword) {
                let is_inside = |before: char| before.is_alphanumeric() || before == '_' || before == ':';
                if !self.text[..at].ends_with(is_inside) {
                    tree(&self.text[at..], &[], &mut |path| {
                        paths.insert(self.absolute(path));
                    });
                }
            }
        }
        paths
    }

    fn absolute(&self, path: &[&str]) -> Module {
        let ups = path.iter().take_while(|part| **part == "super").count();
        let base = match path[0] {
            "super" => &self.module[..self.module.len().saturating_sub(ups)],
            "self" => &self.module[..],
            _ => &[],
        };
        let rest = path.iter().skip(ups.max(1)).filter(|part| **part != "self");
        base.iter().cloned().chain(rest.map(|part| (*part).to_owned())).collect()
    }
}

/// Tells of every path at the beginning of the text, such as `a::{b, c::d}`, and returns what follows.
fn tree<'a>(text: &'a str, before: &[&'a str], tell: &mut dyn FnMut(&[&'a str])) -> &'a str {
    let mut path = before.to_vec();
    let mut text = text.trim_start();
    loop {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        if end > 0 {
            path.push(&text[..end]);
        }
        text = &text[end..];
        match text.strip_prefix("::") {
            Some(rest) if rest.starts_with('{') => {
                text = &rest[1..];
                while !text.trim_start().starts_with('}') {
                    let rest = tree(text, &path, tell);
                    // Another name of it.
                    let end = rest.find([',', '}']).unwrap_or(rest.len());
                    text = rest[end..].strip_prefix(',').unwrap_or(&rest[end..]);
                }
                return &text.trim_start()[1..];
            }
            Some(rest) if rest.starts_with(|c: char| c.is_alphanumeric() || c == '_') => text = rest,
            _ => break,
        }
    }
    tell(&path);
    text
}

fn rust_files(root: &Path) -> Vec<PathBuf> {
    let mut folders = vec![root.to_owned()];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                files.push(entry);
            }
        }
    }
    files
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    for file in rust_files(&root) {
        let text = fs::read_to_string(&file).expect("a source");
        let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        let text = text.lines().map(|line| line.split("//").next().unwrap_or_default());
        let name = file.with_extension("");
        let name = name.strip_prefix(&root).expect("below the root").to_str().expect("UTF-8");
        let module = name.split('/').map(str::to_owned).collect();
        sources.push(Source { module, text: text.collect::<Vec<_>>().join("\n") });
    }
    // It only lists the modules.
    sources.retain(|source| source.module != ["lib"]);
    sources
}

/// A line of the table in ARCHITECTURE.md: its modules, and what they are.
struct Line {
    modules: Vec<Module>,
    text: String,
}

fn table() -> Vec<Line> {
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let (_, code) = text.split_once("## The code\n").expect("a section about the code");
    let rows = code.split("\n## ").next().unwrap_or_default().lines().filter_map(|line| line.strip_prefix("| `"));
    let lines: Vec<_> = rows
        .map(|row| {
            let (modules, text) = row.split_once('|').expect("two columns");
            let names = modules.split(',').map(|name| name.trim().trim_matches('`'));
            let modules = names.map(|name| name.split("::").map(str::to_owned).collect()).collect();
            Line { modules, text: text.trim().to_owned() }
        })
        .collect();
    assert!(lines.len() > 5, "the table was not found");
    lines
}

/// The module of the table that has this one, with its line.
fn find_module<'a>(table: &'a [Line], module: &[String]) -> Option<(usize, &'a Module)> {
    let named =
        table.iter().enumerate().flat_map(|(line, Line { modules, .. })| modules.iter().map(move |m| (line, m)));
    named.filter(|(_, named)| module.starts_with(named)).max_by_key(|(_, named)| named.len())
}

fn assert_none(wrong: &[String], rule: &str) {
    assert!(wrong.is_empty(), "{rule}:\n{}", wrong.join("\n"));
}

#[test]
fn the_table_has_every_module_and_no_other() {
    let (table, sources) = (table(), sources());
    let missing = sources.iter().filter(|source| find_module(&table, &source.module).is_none());
    assert_none(&missing.map(|source| source.module.join("::")).collect::<Vec<_>>(), "not in the table");
    let named = table.iter().flat_map(|line| &line.modules);
    let gone = named.filter(|module| !sources.iter().any(|source| source.module == **module));
    assert_none(&gone.map(|module| module.join("::")).collect::<Vec<_>>(), "in the table, and no module");
}

#[test]
fn modules_depend_downwards_only() {
    let table = table();
    let mut wrong = Vec::new();
    for source in sources() {
        let Some((line, own)) = find_module(&table, &source.module) else { continue };
        for path in source.paths() {
            if let Some((other_line, other)) = find_module(&table, &path)
                && other_line <= line
                && other != own
            {
                wrong.push(format!("{} names {}", source.module.join("::"), path.join("::")));
            }
        }
    }
    assert_none(&wrong, "a module depends on one that is not below it in the table");
}

/// What a module has in common with those inside of it is no import: they are one thing.
#[test]
fn files_import_each_other_in_no_circle() {
    let sources = sources();
    let files: BTreeSet<&Module> = sources.iter().map(|source| &source.module).collect();
    let file = |path: &Module| (1..=path.len()).rev().find_map(|end| files.get(&path[..end].to_vec()).copied());
    let mut imports: BTreeMap<&Module, BTreeSet<&Module>> = BTreeMap::new();
    for source in &sources {
        let imported = source.paths().iter().filter_map(file).filter(|file| !source.module.starts_with(file)).collect();
        imports.insert(&source.module, imported);
    }
    let reaches = |from: &Module, wanted: &Module| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            open.extend(imports[file].iter().filter(|other| seen.insert(**other)));
        }
        seen.contains(wanted)
    };
    let circle = imports.iter().flat_map(|(file, others)| others.iter().map(move |other| (*file, *other)));
    let circle = circle.filter(|(file, other)| reaches(other, file));
    let circle = circle.map(|(file, other)| format!("{} imports {}", file.join("::"), other.join("::")));
    assert_none(&circle.collect::<Vec<_>>(), "these files import each other");
}

#[test]
fn sql_is_written_under_db_only() {
    let statements = ["sqlx::query(", "sqlx::query_", "sqlx::raw_sql", "QueryBuilder"];
    let (mut wrong, sources) = (Vec::new(), sources());
    for Source { module, text } in sources.iter().filter(|source| source.module[0] != "db") {
        wrong.extend(statements.iter().filter(|found| text.contains(**found)).map(|found| (module, *found)));
        if text.contains("pool.begin(")
            || (module[0] != "actions" && ["db::begin(", "db::in_transaction("].iter().any(|call| text.contains(call)))
        {
            wrong.push((module, "a transaction"));
        }
    }
    let wrong: Vec<_> = wrong.into_iter().map(|(module, found)| format!("{}: {found}", module.join("::"))).collect();
    assert_none(&wrong, "statements are in db, and transactions begin there or in actions");
}

#[test]
fn what_is_pure_knows_no_database_no_http_and_no_broker() {
    let table = table();
    let crates = ["axum::", "hyper::", "reqwest::", "rdkafka::", "tower::", "sqlx::"];
    let mut wrong = Vec::new();
    for Source { module, text } in sources() {
        let is_pure = find_module(&table, &module).is_some_and(|(line, _)| table[line].text.starts_with("pure"));
        // How a value is stored may stand beside it.
        let text = text.replace("sqlx::Type", "");
        let found = crates.iter().filter(|name| is_pure && text.contains(**name));
        wrong.extend(found.map(|name| format!("{}: {name}", module.join("::"))));
    }
    assert_none(&wrong, "pure modules use no crate for SQL, HTTP or Kafka");
}

/// Modules that are a clock, and a check with a time limit.
const READ_THE_TIME: [&str; 4] = ["clock", "timestamp", "workflow/input_schema", "workflow/input_schema/metered"];

#[test]
fn pure_modules_take_the_time_as_an_argument() {
    let table = table();
    let mut wrong = Vec::new();
    for Source { module, text } in sources() {
        let is_pure = find_module(&table, &module).is_some_and(|(line, _)| table[line].text.starts_with("pure"));
        let reads = is_pure && !READ_THE_TIME.contains(&module.join("/").as_str());
        let found = ["::now()", ".elapsed()", "sleep("].into_iter().filter(|name| reads && text.contains(name));
        wrong.extend(found.map(|name| format!("{}: {name}", module.join("::"))));
    }
    assert_none(&wrong, "pure modules read no clock and wait for nothing");
}

#[test]
fn tests_wait_for_conditions_and_measure_no_time() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let mut wrong = Vec::new();
    let others = ["eventually.rs", "architecture.rs"];
    for file in rust_files(&root).into_iter().filter(|file| !others.iter().any(|name| file.ends_with(name))) {
        let text = fs::read_to_string(&file).expect("a test").replace("pg_sleep(", "");
        let found = ["Instant::now(", "Utc::now(", "SystemTime::now(", ".elapsed(", "sleep("];
        let found = found.into_iter().filter(|name| text.contains(name));
        wrong.extend(found.map(|name| format!("{}: {name}", file.display())));
    }
    assert_none(&wrong, "tests wait with tests/shared/eventually.rs, or advance a clock");
}

#[test]
fn the_api_never_produces_to_kafka() {
    let sources = sources();
    let api = sources.iter().filter(|source| source.module[0] == "api");
    let paths =
        api.flat_map(Source::paths).filter(|path| path[0] == "kafka" && path.get(1).is_none_or(|of| of != "message"));
    assert_none(&paths.map(|path| path.join("::")).collect::<Vec<_>>(), "api uses what produces");
}
