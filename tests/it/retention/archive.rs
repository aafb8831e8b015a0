//! Runs are written to the archive before they are deleted, and can be read there.

use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::Stdio,
};

use flate2::{Compression, read::MultiGzDecoder, write::GzEncoder};
use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;
use workflow_api::{
    archive::{Archive, ArchiveError},
    config::{Config, load},
    db::migrations::MIGRATOR,
};

use super::{pass, purge, run, runs, sub_run};
use crate::service::Service;

const ACCESS_KEY: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET_KEY: &str = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY";

/// Folder that is removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("workflow-api-test-{}", Uuid::new_v4().simple()));
        std::fs::create_dir(&path).expect("a folder");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }

    /// Files in it and in its folders.
    fn files(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).expect("a folder") {
                let path = entry.expect("an entry").path();
                if path.is_dir() { walk(&path, files) } else { files.push(path) }
            }
        }
        let mut files = Vec::new();
        walk(&self.0, &mut files);
        files.sort();
        files
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The lines of an object.
fn lines(path: &Path) -> Vec<Value> {
    let mut text = String::new();
    let file = std::fs::File::open(path).expect("a file");
    MultiGzDecoder::new(file).read_to_string(&mut text).expect("gzip");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The program's own command, with the settings of the test. Its exit code and what it prints.
async fn command(pool: &PgPool, settings: &[(&str, &str)], arguments: &[&str]) -> (bool, String) {
    let options = pool.connect_options();
    let (host, port) = (options.get_host(), options.get_port());
    let url =
        format!("postgresql://{}@{host}:{port}/{}", options.get_username(), options.get_database().expect("a name"));
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_workflow-api"))
        .arg("archive")
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", url)
        .env("KAFKA_BROKERS", "127.0.0.1:1")
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .output()
        .await
        .expect("the program runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).expect("text"))
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn an_archived_run_can_be_listed_shown_and_restored(pool: PgPool) {
    let folder = Folder::new();
    let settings = [("RUN_ARCHIVE", folder.path())];
    let service = Service::start_with(crate::service::config(&pool, &settings));
    run(&pool, "parent", "COMPLETED", 100).await;
    sub_run(&pool, "child", "parent", "FAILED", 101).await;
    run(&pool, "alone", "CANCELLED", 95).await;
    run(&pool, "young", "COMPLETED", 1).await;
    let shown = async |run_id: &str| {
        let mut shown = Vec::new();
        for path in ["", "/steps", "/logs"] {
            shown.push(service.get(&format!("/api/v1/runs/{run_id}{path}")).await.expect(200));
        }
        shown
    };
    let before = [shown("parent").await, shown("child").await];
    pass(&pool, &purge(&pool, &settings)).await;
    assert_eq!(runs(&pool).await, ["young"]);

    // One object, under the day of the first end, and nothing else.
    let files = folder.files();
    assert_eq!(files.len(), 1, "{files:?}");
    let lines = lines(&files[0]);
    assert_eq!((&lines[0]["archive"], &lines[0]["version"]), (&json!("workflow-api/runs"), &json!(1)));
    assert_eq!(lines[0]["runs"].as_array().map(Vec::len), Some(3));
    assert_eq!(lines.last(), Some(&json!({"lines": lines.len() - 2})));
    let of = |run_id: &str, table: &str| {
        lines.iter().filter(|line| line["run_id"] == run_id && line["table"] == table).count()
    };
    assert_eq!(
        ["workflow_runs", "step_executions", "run_events", "step_waits"].map(|table| of("child", table)),
        [1, 3, 5, 1]
    );
    // Tokens are not archived.
    assert!(lines.iter().all(|line| line["row"].get("token").is_none() && line["row"].get("token_hash").is_none()));
    let sql = "SELECT (changes -> 'archived')::boolean FROM audit_logs WHERE action = 'expire'";
    assert!(sqlx::query_scalar::<_, bool>(sql).fetch_one(&pool).await.expect("an entry"));

    let (is_well, text) = command(&pool, &settings, &["list"]).await;
    assert!(is_well && text.contains("3 runs") && text.lines().count() == 1, "{text}");
    let (is_well, text) =
        command(&pool, &settings, &["list", "--runs", "--workflow", "flow", "--organization", "default"]).await;
    assert!(is_well && text.lines().count() == 3 && text.contains("CANCELLED alone"), "{text}");
    assert_eq!(command(&pool, &settings, &["list", "--from", "2999-01-01"]).await, (true, String::new()));
    assert_eq!(command(&pool, &settings, &["list", "--runs", "--to", "1999-01-01"]).await, (true, String::new()));

    let (is_well, text) = command(&pool, &settings, &["show", "child"]).await;
    let run: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    assert!(is_well && text.contains("12345678901234567890"), "{text}");
    assert_eq!(
        (&run["workflow_runs"][0]["run_id"], &run["workflow_runs"][0]["status"]),
        (&json!("child"), &json!("FAILED"))
    );
    assert_eq!(run["step_executions"].as_array().map(Vec::len), Some(3));
    let (is_well, text) = command(&pool, &settings, &["show", "young"]).await;
    assert!(!is_well && text.contains("young is not in the archive"), "{text}");

    // With its sub-runs, as it was.
    let (is_well, text) = command(&pool, &settings, &["restore", "parent", "--days", "3"]).await;
    assert!(
        is_well && text.contains("parent was restored for 3 days") && text.contains("child was restored"),
        "{text}"
    );
    assert_eq!(runs(&pool).await, ["child", "parent", "young"]);
    assert_eq!([shown("parent").await, shown("child").await], before);
    let (is_well, text) = command(&pool, &settings, &["restore", "parent"]).await;
    assert!(is_well && text.contains("parent is in the database"), "{text}");
    let (is_well, text) = command(&pool, &settings, &["restore", "nowhere"]).await;
    assert!(!is_well && text.contains("nowhere is not in the archive"), "{text}");
    let sql = "SELECT count(*) FROM audit_logs WHERE action = 'restore' AND entity_name IN ('parent', 'child')";
    assert_eq!(sqlx::query_scalar::<_, i64>(sql).fetch_one(&pool).await.expect("a count"), 2);

    // It is kept for these days, and then deleted again.
    pass(&pool, &purge(&pool, &settings)).await;
    assert_eq!(runs(&pool).await, ["child", "parent", "young"]);
    sqlx::query("UPDATE workflow_runs SET kept_until = now() - interval '2 minutes'")
        .execute(&pool)
        .await
        .expect("over");
    pass(&pool, &purge(&pool, &settings)).await;
    assert_eq!(runs(&pool).await, ["young"]);
    let (is_well, text) = command(&pool, &settings, &["restore", "parent"]).await;
    assert!(is_well && text.contains("child was restored for 7 days"), "{text}");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn nothing_is_deleted_while_the_archive_cannot_be_written(pool: PgPool) {
    let folder = Folder::new();
    let missing = format!("{}/not-mounted", folder.path());
    let settings = [("RUN_ARCHIVE", missing.as_str())];
    let service = Service::start_with(crate::service::config(&pool, &settings));
    run(&pool, "old", "COMPLETED", 100).await;
    let purge = purge(&pool, &settings);
    let failed = crate::service::eventually("a pass fails", async || purge.pass().await.err()).await;
    assert!(failed.to_string().contains("not-mounted"), "{failed}");
    assert_eq!(runs(&pool).await, ["old"]);
    let archive = service.get("/api/v1/system/storage").await.expect(200)["retention"]["archive"].clone();
    assert_eq!(archive["location"], missing);
    assert!(archive["failing_since"].is_string(), "{archive}");
    assert!(archive["error"].as_str().is_some_and(|error| error.contains("No such file or directory")), "{archive}");
    let metrics = service.get("/metrics").await.text;
    assert!(metrics.contains("\nretention_archive_failing 1\n"), "{metrics}");

    std::fs::create_dir(&missing).expect("a folder");
    pass(&pool, &purge).await;
    assert_eq!(runs(&pool).await, [""; 0]);
    let archive = service.get("/api/v1/system/storage").await.expect(200)["retention"]["archive"].clone();
    assert_eq!((&archive["failing_since"], &archive["error"]), (&Value::Null, &Value::Null));
    assert_eq!(folder.files().len(), 1, "{:?}", folder.files());
}

/// Archives the run `old` in the folder. Returns the file of its object, and the bytes in it.
async fn archived(pool: &PgPool, folder: &Folder) -> (PathBuf, Vec<u8>) {
    run(pool, "old", "COMPLETED", 100).await;
    pass(pool, &purge(pool, &[("RUN_ARCHIVE", folder.path())])).await;
    let file = folder.files().remove(0);
    let whole = std::fs::read(&file).expect("a file");
    (file, whole)
}

/// A member of gzip with this text.
fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).expect("written");
    encoder.finish().expect("written")
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_damaged_or_incomplete_object_is_reported(pool: PgPool) {
    let folder = Folder::new();
    let settings = [("RUN_ARCHIVE", folder.path())];
    let (file, whole) = archived(&pool, &folder).await;
    let checksum = whole.len() - 8;
    let mut wrong_checksum = whole.clone();
    wrong_checksum[checksum] ^= 0xff;
    // A row that the database refuses, before a checksum that is wrong.
    let lines = lines(&file).iter().map(|line| format!("{line}\n")).collect::<Vec<_>>();
    let wrong_row = gzip(&lines[1..].concat().replace(r#""run_id":"old","seq""#, r#""run_id":null,"seq""#));
    let mut wrong_row = [gzip(&lines[0]), wrong_row].concat();
    let checksum = wrong_row.len() - 8;
    wrong_row[checksum] ^= 0xff;
    let incomplete = [&whole[..whole.len() / 2], &whole[..whole.len() - 30]];
    for damaged in incomplete.into_iter().chain([&wrong_checksum[..], &wrong_row, b"no gzip"]) {
        std::fs::write(&file, damaged).expect("written");
        let (is_well, text) = command(&pool, &settings, &["restore", "old"]).await;
        assert!(!is_well && text.contains("is not a complete archive of this version"), "{text}");
        assert_eq!(runs(&pool).await, [""; 0]);
    }
    // Without the wrong checksum it is the database that refuses.
    wrong_row[checksum] ^= 0xff;
    std::fs::write(&file, &wrong_row).expect("written");
    let (is_well, text) = command(&pool, &settings, &["restore", "old"]).await;
    assert!(!is_well && text.contains("not-null"), "{text}");
    std::fs::write(&file, &whole).expect("written");
    assert!(command(&pool, &settings, &["restore", "old"]).await.0);
    assert_eq!(runs(&pool).await, ["old"]);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_change_of_any_compressed_byte_is_found(pool: PgPool) {
    /// First bytes and length of the header of a member of gzip, which its checksum does not cover (RFC 1952).
    const MEMBER: [u8; 3] = [0x1f, 0x8b, 8];
    const HEADER: usize = 10;
    let folder = Folder::new();
    let settings = [("RUN_ARCHIVE", folder.path())];
    let (file, whole) = archived(&pool, &folder).await;
    let config = crate::service::config(&pool, &settings);
    let archive = Archive::new(config.retention.archive.as_ref().expect("an archive")).expect("valid settings");
    let name = &archive.list().await.expect("a list")[0].name;
    let read = async || {
        let (mut lines, mut rows) = (archive.open(name).await?, Vec::new());
        while let Some(line) = lines.next().await? {
            rows.push([line.table, line.run_id, line.row.get().to_owned()]);
        }
        Ok::<_, ArchiveError>(rows)
    };
    let rows = read().await.expect("a whole object");
    let is_header =
        |place: usize| (place.saturating_sub(HEADER - 1)..=place).any(|at| whole[at..].starts_with(&MEMBER));
    for place in (0..whole.len()).filter(|place| !is_header(*place)) {
        let mut changed = whole.clone();
        changed[place] ^= 0x01;
        std::fs::write(&file, changed).expect("written");
        match read().await {
            Err(ArchiveError::Damaged(_)) => {}
            // The compressed bytes refer to earlier text. A changed reference can lead to the same text elsewhere.
            Ok(same) => assert_eq!(same, rows, "byte {place} of {}", whole.len()),
            Err(error) => panic!("byte {place} of {}: {error}", whole.len()),
        }
    }
}

/// A server of S3 with one bucket, `runs`, whose requests must be signed with the keys above. Returns its address.
/// While `is_broken`, it stores something else than the body.
async fn s3_server(folder: &Folder, is_broken: std::sync::Arc<std::sync::atomic::AtomicBool>) -> String {
    std::fs::create_dir(folder.0.join("runs")).expect("a bucket");
    let mut builder = S3ServiceBuilder::new(FileSystem::new(&folder.0).expect("a folder"));
    builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
    let service = builder.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let root = folder.0.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (service, is_broken, root) = (service.clone(), std::sync::Arc::clone(&is_broken), root.clone());
            let service = tower::service_fn(move |request: Request<hyper::body::Incoming>| {
                let (service, root) = (service.clone(), root.clone());
                let is_broken = request.method() == "PUT" && is_broken.load(std::sync::atomic::Ordering::Relaxed);
                async move {
                    let path = root.join(request.uri().path().trim_start_matches('/'));
                    let answer = hyper::service::Service::call(&service, request).await;
                    if is_broken {
                        std::fs::write(path, b"something else").expect("written");
                    }
                    answer
                }
            });
            let service = hyper_util::service::TowerToHyperService::new(service);
            tokio::spawn(async move {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    format!("http://{address}")
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn runs_are_archived_in_a_bucket_and_restored_from_there(pool: PgPool) {
    let folder = Folder::new();
    let is_broken = std::sync::Arc::default();
    let endpoint = s3_server(&folder, std::sync::Arc::clone(&is_broken)).await;
    let with = |bucket: &'static str, secret: &'static str| {
        [
            ("RUN_ARCHIVE", bucket),
            ("RUN_ARCHIVE_ENDPOINT", endpoint.as_str()),
            ("RUN_ARCHIVE_ACCESS_KEY", ACCESS_KEY),
            ("RUN_ARCHIVE_SECRET_KEY", secret),
        ]
    };
    let settings = with("s3://runs/of/us", SECRET_KEY);
    for number in 0..30 {
        run(&pool, &format!("run-{number:02}"), "COMPLETED", 100 + number).await;
    }
    // With rejected keys, and with a server that stores something else, nothing is deleted.
    let refused = with("s3://runs/of/us", "another");
    let error = purge(&pool, &refused).pass().await.expect_err("it cannot be written").to_string();
    assert!(error.contains("SignatureDoesNotMatch"), "{error}");
    assert!(!error.contains(ACCESS_KEY) && !error.contains("X-Amz"), "{error}");
    is_broken.store(true, std::sync::atomic::Ordering::Relaxed);
    let error = purge(&pool, &settings).pass().await.expect_err("it is not the same").to_string();
    assert!(error.contains("differs from the one that was written"), "{error}");
    is_broken.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(runs(&pool).await.len(), 30);
    let objects = || folder.files().into_iter().filter(|path| path.to_string_lossy().ends_with(".ndjson.gz")).count();
    assert_eq!(objects(), 0, "{:?}", folder.files());

    pass(&pool, &purge(&pool, &settings)).await;
    assert_eq!(runs(&pool).await, [""; 0]);
    assert_eq!(objects(), 1, "{:?}", folder.files());
    let config = crate::service::config(&pool, &settings);
    let archive = Archive::new(config.retention.archive.as_ref().expect("an archive")).expect("valid settings");
    let listed = archive.list().await.expect("a list");
    assert_eq!(listed.iter().map(|object| object.name.runs()).sum::<usize>(), 30);
    let (is_well, text) = command(&pool, &settings, &["list", "--runs"]).await;
    assert!(is_well && text.lines().count() == 30, "{text}");
    let (is_well, text) = command(&pool, &settings, &["show", "run-07"]).await;
    assert!(
        is_well
            && serde_json::from_str::<Value>(&text).is_ok_and(|run| run["step_executions"][2]["run_id"] == "run-07")
    );
    let (is_well, text) = command(&pool, &settings, &["restore", "run-07", "run-11"]).await;
    assert!(is_well, "{text}");
    assert_eq!(runs(&pool).await, ["run-07", "run-11"]);
    let (is_well, text) = command(&pool, &with("s3://runs", "another"), &["list"]).await;
    assert!(!is_well && !text.contains("another") && !text.contains("X-Amz"), "{text}");
}

#[test]
fn settings_and_errors_show_no_secret_key() {
    let settings = [
        ("DATABASE_URL", "postgresql://host/db"),
        ("KAFKA_BROKERS", "host:9092"),
        ("RUN_ARCHIVE", "s3://runs"),
        ("RUN_ARCHIVE_ACCESS_KEY", ACCESS_KEY),
        ("RUN_ARCHIVE_SECRET_KEY", SECRET_KEY),
        ("RUN_ARCHIVE_ENDPOINT", "ftp://user:word@host"),
    ];
    let pairs = |settings: &[(&str, &str)]| {
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>().into_iter()
    };
    let config: Config = load(pairs(&settings[..5])).expect("valid settings");
    assert!(!format!("{config:?}").contains(SECRET_KEY));
    let problems = Config::load(pairs(&settings)).expect_err("no address of a server").to_string();
    assert!(!problems.contains("word") && !problems.contains(SECRET_KEY), "{problems}");
}
