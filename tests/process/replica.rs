//! Lists and exports are read from a streaming replica, and show every write that was acknowledged before.

use std::collections::HashMap;

use futures_util::future::join_all;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::sync::watch;
use workflow_api::{
    config::{self, Database},
    db::{self, Reads, migrations, processes::Registration},
    lifecycle::Lifecycle,
};

use crate::{
    cluster::Cluster,
    program::{Environment, eventually},
};

fn connect(cluster: &Cluster) -> PgPool {
    PgPool::connect_lazy(&url(&[cluster])).expect("a URL")
}

fn url(clusters: &[&Cluster]) -> String {
    let hosts = clusters.iter().map(|cluster| format!("127.0.0.1:{}", cluster.port)).collect::<Vec<_>>().join(",");
    format!("postgresql://postgres@{hosts}/postgres")
}

/// A primary with a standby, and an API that uses both.
fn replicated() -> (Cluster, Cluster, Environment) {
    let (primary, standby) = (Cluster::new(), Cluster::new());
    primary.create();
    primary.start(&[]);
    standby.follow(&primary);
    let environment = Environment::new(&connect(&primary)).with("DATABASE_REPLICA_URL", &url(&[&standby]));
    (primary, standby, environment)
}

/// The state of the replica in `/health/detailed`.
async fn state(environment: &Environment) -> Value {
    environment.get("/health/detailed").await["components"]["replica"]["status"].take()
}

async fn is_in_state(environment: &Environment, expected: &str) {
    eventually(expected, async || (state(environment).await == expected).then_some(())).await;
}

/// How many reads had each outcome.
async fn reads(environment: &Environment) -> HashMap<String, u64> {
    let answer = reqwest::get(format!("{}/metrics", environment.url)).await.expect("an answer");
    let text = answer.text().await.expect("a text");
    let counted = text.lines().filter_map(|line| {
        let (outcome, count) = line.strip_prefix("db_replica_reads_total{outcome=\"")?.split_once("\"} ")?;
        Some((outcome.to_owned(), count.parse().expect("a number")))
    });
    counted.collect()
}

async fn create_agent(environment: &Environment, name: &str) -> bool {
    let answer = environment.post("/api/v1/agents", &json!({"name": name, "url": "http://127.0.0.1:9/"})).await;
    answer.is_ok_and(|answer| answer.status() == 201)
}

/// Whether the list of agents has this one, which was just created. It is not found by its name, because that is no list.
async fn is_listed(environment: &Environment, name: &str) -> bool {
    let list = environment.get(&format!("/api/v1/agents?name_prefix={name}")).await;
    list["items"].as_array().is_some_and(|items| items.iter().any(|agent| agent["name"] == name))
}

async fn run(pool: &PgPool, sql: &'static str) {
    sqlx::raw_sql(sql).execute(pool).await.expect(sql);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_list_is_read_from_the_replica() {
    let (_primary, standby, environment) = replicated();
    let mut api = environment.serve().await;
    let output = environment.run(&["check", "db"]).await;
    assert!(String::from_utf8_lossy(&output.stdout).contains("connected to a replica, PostgreSQL"), "{output:?}");
    let workflow_id = environment.chain("replicated", &["http://127.0.0.1:9/".to_owned()]).await;
    let run_id = eventually("a run is accepted", || environment.execute(&workflow_id)).await;
    is_in_state(&environment, "connected").await;
    for path in [
        "agents".to_owned(),
        "workflows".to_owned(),
        format!("workflows/{workflow_id}/versions"),
        "runs".to_owned(),
        "runs?status=PENDING&sort_by=updated_at".to_owned(),
        format!("runs/{run_id}/steps"),
        format!("runs/{run_id}/logs"),
        "organizations".to_owned(),
        "organizations/default".to_owned(),
        "api-keys".to_owned(),
        "dead-letters".to_owned(),
        "audit-logs".to_owned(),
        "audit-logs/export".to_owned(),
        "audit-logs/verify".to_owned(),
        "export".to_owned(),
    ] {
        // On a busy machine the replica may be behind for a moment.
        eventually(&path, async || {
            let before = reads(&environment).await["replica"];
            let answer = reqwest::get(format!("{}/api/v1/{path}", environment.url)).await.expect("an answer");
            assert_eq!(answer.status(), 200, "{path}");
            answer.bytes().await.expect("the whole answer");
            (reads(&environment).await["replica"] > before).then_some(())
        })
        .await;
    }
    assert_eq!(reads(&environment).await["repeated"], 0, "something wrote: {}", api.log());
    let scans = "SELECT sum(coalesce(seq_scan, 0) + coalesce(idx_scan, 0))::bigint FROM pg_stat_user_tables
                 WHERE relname IN ('agents', 'workflow_definitions', 'api_keys', 'organizations')";
    let standby = connect(&standby);
    eventually("the standby has served them", async || {
        let scans: Option<i64> = sqlx::query_scalar(scans).fetch_one(&standby).await.expect("statistics");
        scans.filter(|count| *count >= 4)
    })
    .await;
    api.terminate().await;
    assert_eq!(api.exit_code().await, 0, "{}", api.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_shows_each_acknowledged_write_while_the_replica_falls_behind_and_catches_up() {
    let (_primary, standby, environment) = replicated();
    let _api = environment.serve().await;
    let standby = connect(&standby);
    is_in_state(&environment, "connected").await;
    let (stop, stopped) = watch::channel(false);
    let clients = join_all((0..4).map(async |client| {
        let mut number = 0;
        while !*stopped.borrow() {
            let name = format!("agent-{client}-{number:06}");
            assert!(create_agent(&environment, &name).await, "{name}");
            assert!(is_listed(&environment, &name).await, "{name} is not listed");
            number += 1;
        }
    }));
    let interruptions = async {
        for _ in 0..3 {
            run(&standby, "SELECT pg_wal_replay_pause()").await;
            is_in_state(&environment, "behind").await;
            run(&standby, "SELECT pg_wal_replay_resume()").await;
            is_in_state(&environment, "connected").await;
        }
        stop.send_replace(true);
    };
    tokio::join!(clients, interruptions);
    let counted = reads(&environment).await;
    assert!(counted["replica"] > 0 && counted["behind"] > 0 && counted["repeated"] == 0, "{counted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_replica_the_service_reads_from_the_primary_and_stays_ready() {
    let (_primary, standby, environment) = replicated();
    let api = environment.serve().await;
    is_in_state(&environment, "connected").await;
    standby.crash();
    for number in 0..3 {
        let name = format!("lost-{number}");
        assert!(create_agent(&environment, &name).await);
        assert!(is_listed(&environment, &name).await, "{name}");
    }
    is_in_state(&environment, "disconnected").await;
    assert!(environment.is_ready().await.is_some());
    eventually("the log says so", async || api.log().contains("the replica cannot be used").then_some(())).await;
    standby.start(&[]);
    is_in_state(&environment, "connected").await;
}

/// The heir has less of the log than the old primary had, and the replica has replayed all of that. So the replica's
/// position is beyond the new primary's for some time, but of another timeline.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_failover_a_standby_of_the_old_timeline_is_not_read() {
    let (old, heir, left, right) = (Cluster::new(), Cluster::new(), Cluster::new(), Cluster::new());
    old.create();
    old.start(&[]);
    heir.follow(&old);
    left.follow(&old);
    let environment = Environment::new(&connect(&old))
        .with("DATABASE_URL", &url(&[&old, &heir]))
        .with("DATABASE_REPLICA_URL", &url(&[&left, &right]));
    let _api = environment.serve().await;
    is_in_state(&environment, "connected").await;
    assert!(create_agent(&environment, "before").await);

    heir.crash();
    let writes = "CREATE TABLE lost AS SELECT repeat('x', 1000) AS text FROM generate_series(1, 50000)";
    run(&connect(&old), writes).await;
    let replayed = "SELECT 'yes' FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()";
    let primary = connect(&old);
    eventually("the replica has everything", async || {
        sqlx::query_scalar::<_, String>(replayed).fetch_optional(&primary).await.expect("an answer")
    })
    .await;
    old.crash();
    heir.start(&[]);
    heir.promote();
    for number in 0..5 {
        let name = format!("after-{number}");
        eventually("the new primary accepts writes", async || create_agent(&environment, &name).await.then_some(()))
            .await;
        assert!(is_listed(&environment, &name).await, "{name}");
    }
    let position = async |pool: PgPool, sql| {
        let bytes: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("a position");
        bytes
    };
    let reached = position(connect(&heir), "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint").await;
    let stuck = position(connect(&left), "SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint").await;
    assert!(stuck > reached, "the positions alone would say that the replica has everything: {stuck} {reached}");
    is_in_state(&environment, "behind").await;

    // The other host of the replica is found, although the first one still answers.
    right.follow(&heir);
    is_in_state(&environment, "connected").await;
    let before = reads(&environment).await["replica"];
    eventually("it is read", async || {
        assert!(is_listed(&environment, "after-4").await);
        (reads(&environment).await["replica"] > before).then_some(())
    })
    .await;
}

/// The same hosts are named for both, as for a cluster whose members change their roles.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_promoted_is_used_as_the_primary_only() {
    let (first, second, third) = (Cluster::new(), Cluster::new(), Cluster::new());
    first.create();
    first.start(&[]);
    second.follow(&first);
    let hosts = url(&[&first, &second, &third]);
    let environment =
        Environment::new(&connect(&first)).with("DATABASE_URL", &hosts).with("DATABASE_REPLICA_URL", &hosts);
    let api = environment.serve().await;
    is_in_state(&environment, "connected").await;
    first.crash();
    second.promote();
    for number in 0..3 {
        let name = format!("promoted-{number}");
        eventually("the new primary accepts writes", async || create_agent(&environment, &name).await.then_some(()))
            .await;
        assert!(is_listed(&environment, &name).await, "{name}");
    }
    is_in_state(&environment, "disconnected").await;
    eventually("the log says why", async || api.log().contains("it is no standby").then_some(())).await;
    third.follow(&second);
    is_in_state(&environment, "connected").await;
    assert!(is_listed(&environment, "promoted-2").await);
}

/// The lock of the primary cancels the statement on the standby as soon as it is replayed.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_conflicts_with_recovery_is_repeated_on_the_primary() {
    let (primary, standby) = (Cluster::new(), Cluster::new());
    primary.create();
    primary.start(&[]);
    let (writer, reader) = (connect(&primary), connect(&standby));
    run(&writer, "ALTER SYSTEM SET max_standby_streaming_delay = 0").await;
    standby.follow(&primary);
    let variables = [("DATABASE_URL", url(&[&primary])), ("DATABASE_REPLICA_URL", url(&[&standby]))];
    let variables = variables.map(|(name, value)| (name.to_owned(), value));
    let settings: Database = config::load(variables.into_iter()).expect("valid settings");
    migrations::up(&settings, &migrations::WaitLimit::none()).await.expect("a schema");
    let (pool, lifecycle) = (db::pool(&settings), Lifecycle::new());
    let registration = Registration::start(pool.clone(), "serve", true, &lifecycle);
    let reads = Reads::start(pool, &settings, registration, &lifecycle);
    eventually("the replica is used", async || {
        reads.replica().filter(|replica| replica.status == "connected").map(drop)
    })
    .await;
    let read = reads.read(|mut conn| async move {
        let sql =
            "SELECT count(*), pg_is_in_recovery(), pg_sleep(CASE WHEN pg_is_in_recovery() THEN 4 ELSE 0 END)::text
                   FROM agents";
        let (count, is_standby, _): (i64, bool, String) = sqlx::query_as(sql).fetch_one(&mut *conn).await?;
        Ok((count, is_standby))
    });
    let conflict = async {
        let sleeping = "SELECT 'yes' FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        eventually("the standby reads", async || {
            sqlx::query_scalar::<_, String>(sleeping).fetch_optional(&reader).await.expect("an answer")
        })
        .await;
        run(&writer, "BEGIN; LOCK TABLE agents IN ACCESS EXCLUSIVE MODE; COMMIT").await;
    };
    let (found, ()) = tokio::join!(read, conflict);
    assert_eq!(found.expect("an answer"), (0, false));
    lifecycle.soft_stop().cancel();
    lifecycle.hard_stop().cancel();
}
