//! What stands between the service and its database: several hosts, of which one accepts writes, and poolers.

use std::process::Stdio;

use sqlx::PgPool;
use tokio::process::Command;

use crate::{
    cluster::Cluster,
    program::{Environment, eventually, free_port},
    secure_kafka::Folder,
};

async fn value(pool: &PgPool, sql: &'static str) -> Option<String> {
    sqlx::query_scalar(sql).fetch_optional(pool).await.expect(sql)
}

/// A run is accepted by the API and fails by the executor, whose agent does not exist.
async fn runs_a_workflow(environment: &Environment, workflow_id: &str) {
    let run_id = eventually("a run is accepted", || environment.execute(workflow_id)).await;
    eventually("it ends", async || {
        let run = environment.get(&format!("/api/v1/runs/{run_id}")).await;
        (run["status"] == "FAILED").then_some(())
    })
    .await;
}

/// The first primary crashes and a standby takes its place. That one is then demoted without ending its sessions.
#[tokio::test(flavor = "multi_thread")]
async fn the_service_follows_the_primary_without_a_restart() {
    let (first, second, third) = (Cluster::new(), Cluster::new(), Cluster::new());
    let connect = |cluster: &Cluster| {
        PgPool::connect_lazy(&format!("postgresql://postgres@127.0.0.1:{}/postgres", cluster.port)).expect("a URL")
    };
    first.create();
    first.start(&[]);
    second.follow(&first);
    let hosts = [&third, &second, &first].map(|cluster| format!("127.0.0.1:{}", cluster.port)).join(",");
    let url = format!("postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write");
    let environment = Environment::new(&connect(&first)).with("DATABASE_URL", &url);
    let replicated = async |primary: &Cluster| {
        let sql = "SELECT 'yes' FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()";
        let primary = connect(primary);
        eventually("the standby has everything", || value(&primary, sql)).await;
    };
    let mut api = environment.serve().await;
    let mut executor = environment.start(&["executor"]);
    let workflow_id = environment.chain("failover", &["http://127.0.0.1:9/".to_owned()]).await;
    runs_a_workflow(&environment, &workflow_id).await;

    replicated(&first).await;
    first.crash();
    second.promote();
    runs_a_workflow(&environment, &workflow_id).await;
    let output = environment.run(&["migrate", "status"]).await;
    assert!(output.status.success(), "{output:?}");

    third.follow(&second);
    replicated(&second).await;
    let demoted = connect(&second);
    let sql = "ALTER SYSTEM SET default_transaction_read_only = on";
    sqlx::raw_sql(sql).execute(&demoted).await.expect("a setting");
    sqlx::query("SELECT pg_reload_conf()").execute(&demoted).await.expect("a setting");
    third.promote();
    runs_a_workflow(&environment, &workflow_id).await;
    for program in [&mut api, &mut executor] {
        program.terminate().await;
        assert_eq!(program.exit_code().await, 0, "{}", program.log());
    }
}

/// A standby takes the place of the primary before it had the newest migration.
#[tokio::test(flavor = "multi_thread")]
async fn an_api_runs_a_migration_again_that_a_failover_has_lost_but_not_one_that_was_reverted() {
    let (first, second) = (Cluster::new(), Cluster::new());
    let connect = |cluster: &Cluster| {
        PgPool::connect_lazy(&format!("postgresql://postgres@127.0.0.1:{}/postgres", cluster.port)).expect("a URL")
    };
    first.create();
    first.start(&[]);
    let hosts = [&first, &second].map(|cluster| format!("127.0.0.1:{}", cluster.port)).join(",");
    let url = format!("postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write");
    let environment = Environment::new(&connect(&first)).with("DATABASE_URL", &url);
    let migrate = async |arguments: &[&str]| {
        let output = environment.run(&[&["migrate"], arguments].concat()).await;
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    for arguments in [&["up"][..], &["down", "1"]] {
        let (is_done, printed) = migrate(arguments).await;
        assert!(is_done, "{printed}");
    }
    second.follow(&first);
    let sql = "SELECT 'yes' FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()";
    let primary = connect(&first);
    eventually("the standby has everything", || value(&primary, sql)).await;
    second.crash();

    let mut api = environment.serve().await;
    let workflow_id = environment.chain("lost", &["http://127.0.0.1:9/".to_owned()]).await;
    assert!(migrate(&["status"]).await.0);
    first.crash();
    second.start(&[]);
    second.promote();
    eventually("the schema is current again", async || migrate(&["status"]).await.0.then_some(())).await;
    eventually("the API is ready", || environment.is_ready()).await;
    let told = "another server of the database lacks migrations that were run";
    assert!(api.log().contains(told) && api.log().contains("1 migrations were run"), "{}", api.log());
    // The workflow was lost as well.
    assert!(environment.execute(&workflow_id).await.is_none());
    let workflow_id = environment.chain("lost", &["http://127.0.0.1:9/".to_owned()]).await;
    eventually("a run is accepted", || environment.execute(&workflow_id)).await;

    // An operator reverts it on the server that goes on: it stays reverted, as the API says after some checks.
    let waits = || api.log().matches("waiting for the schema").count();
    let before = waits();
    let (is_done, printed) = migrate(&["down", "1"]).await;
    assert!(is_done, "{printed}");
    eventually("the API says so", async || (waits() > before).then_some(())).await;
    assert!(!migrate(&["status"]).await.0);
    assert_eq!(api.log().matches(told).count(), 1, "{}", api.log());
    api.terminate().await;
    assert_eq!(api.exit_code().await, 0, "{}", api.log());
}

/// The pooler is Debian's `pgbouncer`, which needs no parameter beyond these.
#[sqlx::test(migrations = false)]
async fn a_pooler_in_session_mode_serves_the_service_and_one_in_transaction_mode_is_refused(pool: PgPool) {
    let options = pool.connect_options();
    let database = options.get_database().expect("a name").to_owned();
    let folder = Folder::new();
    let start = async |mode: &str| {
        let port = free_port();
        let target = format!("host={} port={} user={}", options.get_host(), options.get_port(), options.get_username());
        let settings = format!(
            "[databases]\n{database} = {target}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             auth_type = any\npool_mode = {mode}\ndefault_pool_size = 50\nunix_socket_dir =\n"
        );
        let file = folder.path(mode);
        std::fs::write(&file, settings).expect("a file");
        let mut command = Command::new("pgbouncer");
        // It refuses to run as root.
        if rustix::process::geteuid().is_root() {
            command.args(["-u", "postgres"]);
        }
        command.arg("-q").arg(file).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let pooler = command.spawn().expect("PgBouncer is installed");
        let mut url = url::Url::parse(&Environment::new(&pool).variables["DATABASE_URL"]).expect("a URL");
        url.set_ip_host([127, 0, 0, 1].into()).expect("a host");
        url.set_port(Some(port)).expect("a port");
        let environment = Environment::new(&pool).with("DATABASE_URL", url.as_str());
        eventually("it listens", async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
        (pooler, environment)
    };
    let (_session, environment) = start("session").await;
    let output = environment.run(&["check", "db"]).await;
    assert!(output.status.success(), "{output:?}");
    let _api = environment.serve().await;
    let _executor = environment.start(&["executor"]);
    let workflow_id = environment.chain("pooled", &["http://127.0.0.1:9/".to_owned()]).await;
    runs_a_workflow(&environment, &workflow_id).await;
    let sql = "SELECT pg_terminate_backend(pid)::text FROM pg_stat_activity
               WHERE application_name = 'workflow-api' AND datname = current_database()";
    value(&pool, sql).await.expect("a session was ended");
    runs_a_workflow(&environment, &workflow_id).await;

    let (_transaction, environment) = start("transaction").await;
    let refused = "pooler in transaction or statement mode";
    for arguments in [&["check", "db"][..], &["migrate", "up"]] {
        let output = environment.run(arguments).await;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && errors.contains(refused), "{arguments:?}: {errors}");
    }
    let api = environment.start(&["serve"]);
    eventually("the API says why it is not ready", async || api.log().contains(refused).then_some(())).await;
    assert!(environment.is_ready().await.is_none());
}
