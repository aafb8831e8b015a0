//! The previous release on the schema of this one: what it needs was recorded from its sources and its schema, since its
//! program cannot be built in each run of the tests.
//!
//! A release is recorded by this test with the folder of its sources, before the first migration of the next release:
//! `WORKFLOW_API_RECORD_RELEASE=src cargo test --test it -- previous_release`.

use std::{collections::BTreeSet, fs, path::Path};

use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::statements::{Statements, prepare_all};

/// Where the release is recorded, relative to the package: a statement in each line, as JSON of its file and its text.
const STATEMENTS: &str = "tests/it/previous_release/statements.jsonl";
/// A column or a constraint in each line.
const SCHEMA: &str = "tests/it/previous_release/schema.txt";
/// The constraints that are new on tables of the previous release, each of which its rows and statements fulfil.
const HARMLESS: [&str; 0] = [];

/// Columns with their types, constraints and unique indexes. Those of the bookkeeping of the migrations are not among
/// them.
async fn schema(pool: &PgPool) -> BTreeSet<String> {
    let sql = "
        SELECT format('column %s.%s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod))
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
            AND a.attnum > 0 AND NOT a.attisdropped AND c.relname <> '_sqlx_migrations'
        UNION SELECT format('constraint %s %s', c.relname, pg_get_constraintdef(k.oid)) FROM pg_constraint k
        JOIN pg_class c ON c.oid = k.conrelid
        WHERE c.relnamespace = 'public'::regnamespace AND NOT c.relispartition AND c.relname <> '_sqlx_migrations'
        UNION SELECT format('unique %s %s', c.relname, pg_get_indexdef(i.indexrelid)) FROM pg_index i
        JOIN pg_class c ON c.oid = i.indrelid
        WHERE c.relnamespace = 'public'::regnamespace AND i.indisunique AND NOT c.relispartition
            AND c.relname <> '_sqlx_migrations'";
    sqlx::query_scalar::<_, String>(sql).fetch_all(pool).await.expect("the catalogue").into_iter().collect()
}

/// Columns that a statement has to name which writes a row.
async fn required(pool: &PgPool) -> Vec<String> {
    let sql = "
        SELECT format('column %s.%s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod))
        FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p') AND a.attnum > 0
            AND NOT c.relispartition AND NOT a.attisdropped AND a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''";
    sqlx::query_scalar(sql).fetch_all(pool).await.expect("the catalogue")
}

/// The table of a line of the schema.
fn table(line: &str) -> &str {
    let words = line.split(' ').nth(1).unwrap_or_default();
    words.split('.').next().unwrap_or_default()
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn the_schema_has_everything_that_the_previous_release_needs(pool: PgPool) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if let Some(source) = std::env::var_os("WORKFLOW_API_RECORD_RELEASE") {
        let lines = Statements::of(Path::new(&source)).whole;
        let lines: Vec<String> = lines.iter().map(|line| serde_json::to_string(line).expect("JSON") + "\n").collect();
        fs::write(root.join(STATEMENTS), lines.concat()).expect("a file");
        let lines: Vec<String> = schema(&pool).await.into_iter().map(|line| line + "\n").collect();
        fs::write(root.join(SCHEMA), lines.concat()).expect("a file");
    }
    let read = |path: &str| fs::read_to_string(root.join(path)).expect("a recorded release");
    let statements = read(STATEMENTS);
    let statements: Vec<(String, String)> =
        statements.lines().map(|line| serde_json::from_str(line).expect("a file and a statement")).collect();
    prepare_all(&pool, &statements).await;

    // Statements that are composed at run time name columns too; writes name all that they need.
    let (recorded, present) = (read(SCHEMA), schema(&pool).await);
    let recorded: BTreeSet<&str> = recorded.lines().collect();
    let is_old_table: BTreeSet<&str> = recorded.iter().map(|line| table(line)).collect();
    let gone: Vec<&&str> =
        recorded.iter().filter(|line| line.starts_with("column ") && !present.contains(**line)).collect();
    assert!(gone.is_empty(), "the previous release needs {gone:#?}");
    let is_new = |line: &&String| !recorded.contains(line.as_str()) && is_old_table.contains(table(line));
    let required: Vec<String> = required(&pool).await.into_iter().filter(|line| is_new(&line)).collect();
    assert!(required.is_empty(), "the previous release does not write {required:#?}");
    let stricter: Vec<&String> = present
        .iter()
        .filter(|line| line.starts_with("constraint ") || line.starts_with("unique "))
        .filter(is_new)
        .filter(|line| !HARMLESS.contains(&line.as_str()))
        .collect();
    assert!(stricter.is_empty(), "the previous release does not know {stricter:#?}");
}
