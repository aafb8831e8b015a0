//! Maintained counts of runs: exact in every snapshot, for all writers.

use futures_util::future::join_all;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use sqlx::{Connection as _, PgConnection, PgPool};
use workflow_api::db::{
    migrations::MIGRATOR,
    run_counts::{Fold, fold, recount},
};

use crate::service::{own_pool, seed};

/// Groups whose count is wrong in the current snapshot.
async fn wrong(conn: &mut PgConnection) -> Vec<String> {
    sqlx::query_scalar(
        "SELECT format('%s %s %s %s: %s instead of %s', organization_id, workflow_id, workflow_name, status, said, counted)
         FROM (SELECT organization_id, workflow_id, workflow_name, status, sum(runs) AS said FROM run_counts
             GROUP BY 1, 2, 3, 4 HAVING sum(runs) <> 0) AS said
             FULL JOIN (SELECT organization_id, workflow_id, workflow_name, status, count(*) AS counted
                 FROM workflow_runs GROUP BY 1, 2, 3, 4) AS counted
             USING (organization_id, workflow_id, workflow_name, status)
         WHERE said IS DISTINCT FROM counted
         UNION ALL
         SELECT format('%s %s: %s instead of %s', organization_id, status, said, counted)
         FROM (SELECT organization_id, status, sum(runs) AS said FROM run_totals GROUP BY 1, 2 HAVING sum(runs) <> 0) AS said
             FULL JOIN (SELECT organization_id, status, count(*) AS counted FROM workflow_runs GROUP BY 1, 2) AS counted
             USING (organization_id, status)
         WHERE said IS DISTINCT FROM counted",
    )
    .fetch_all(conn)
    .await
    .expect("the numbers")
}

/// Inserts runs as other programs do.
async fn insert(conn: &mut PgConnection, prefix: &str, count: i32) {
    sqlx::query(
        "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, organization_id)
         SELECT $1 || i, 'w' || i % 3, 'flow' || i % 2, 'PENDING', CASE i % 4 WHEN 0 THEN 'acme' ELSE 'default' END
         FROM generate_series(1, $2) AS i",
    )
    .bind(prefix)
    .bind(count)
    .execute(conn)
    .await
    .expect("runs");
}

/// Random change of runs, as programs make them.
async fn change(conn: &mut PgConnection, random: &mut StdRng, name: &str) {
    let sql = match random.random_range(0..6) {
        0 => return insert(conn, name, random.random_range(1..20)).await,
        1 => "DELETE FROM workflow_runs WHERE run_id IN (SELECT run_id FROM workflow_runs
                  WHERE run_id LIKE $1 || '%' ORDER BY random() LIMIT 5 FOR UPDATE SKIP LOCKED)",
        // As the reference executor does it: one run at a time, blindly.
        2 => "UPDATE workflow_runs SET status = 'RUNNING', updated_at = now() WHERE run_id = (SELECT run_id
                  FROM workflow_runs WHERE run_id LIKE left($1, 1) || '%' ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED)",
        3 => "UPDATE workflow_runs SET status = 'COMPLETED', completed_at = now() WHERE run_id IN (SELECT run_id
                  FROM workflow_runs WHERE status = 'RUNNING' ORDER BY random() LIMIT 9 FOR UPDATE SKIP LOCKED)
                  AND $1 <> ''",
        4 => "UPDATE workflow_runs SET updated_at = now() WHERE run_id IN (SELECT run_id FROM workflow_runs
                  WHERE run_id LIKE $1 || '%' LIMIT 9 FOR UPDATE SKIP LOCKED)",
        _ => "UPDATE workflow_runs SET workflow_name = 'renamed', organization_id = 'acme' WHERE run_id IN (SELECT run_id
                  FROM workflow_runs WHERE run_id LIKE $1 || '%' ORDER BY random() LIMIT 2 FOR UPDATE SKIP LOCKED)",
    };
    sqlx::query(sql).bind(name).execute(conn).await.expect(sql);
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn they_are_exact_in_every_snapshot_while_many_write_roll_back_and_fold(pool: PgPool) {
    let seed = seed();
    // A reader with an old snapshot, which must not change.
    let mut old = pool.acquire().await.expect("a connection");
    insert(&mut old, "old", 50).await;
    let mut old = old.begin().await.expect("a transaction");
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *old).await.expect("a snapshot");
    assert_eq!(wrong(&mut old).await, Vec::<String>::new(), "at the beginning");

    let writers = join_all((0..4_u64).map(|number| {
        let pool = pool.clone();
        async move {
            let mut random = StdRng::seed_from_u64(seed.wrapping_add(number));
            let mut conn = pool.acquire().await.expect("a connection");
            for turn in 0..40 {
                let name = format!("{number}-{turn}-");
                let mut transaction = conn.begin().await.expect("a transaction");
                change(&mut transaction, &mut random, &name).await;
                let mut inner = transaction.begin().await.expect("a savepoint");
                change(&mut inner, &mut random, &format!("{name}inner-")).await;
                if random.random_bool(0.3) {
                    inner.rollback().await.expect("a partial rollback");
                } else {
                    inner.commit().await.expect("no savepoint");
                }
                if random.random_bool(0.3) {
                    transaction.rollback().await.expect("a rollback");
                } else {
                    transaction.commit().await.expect("a commit");
                }
            }
        }
    }));
    let folds = async {
        let own = own_pool(&pool);
        for turn in 0..40 {
            // Small folds end in the middle of the changes.
            fold(&own, [3, 1_000_000][turn % 2]).await.expect("a fold");
        }
    };
    let readers = async {
        let mut conn = pool.acquire().await.expect("a connection");
        for _ in 0..40 {
            let mut transaction = conn.begin().await.expect("a transaction");
            assert_eq!(wrong(&mut transaction).await, Vec::<String>::new(), "meanwhile, seed {seed}");
            transaction.commit().await.expect("the end");
        }
    };
    tokio::join!(writers, folds, readers);
    assert_eq!(wrong(&mut old).await, Vec::<String>::new(), "in the old snapshot, seed {seed}");
    old.commit().await.expect("the end");
    let own = own_pool(&pool);
    while fold(&own, 10).await.expect("a fold") == Fold::More {}
    let mut conn = pool.acquire().await.expect("a connection");
    assert_eq!(wrong(&mut conn).await, Vec::<String>::new(), "at the end, seed {seed}");
    let left: i64 =
        sqlx::query_scalar("SELECT count(*) FROM run_count_changes").fetch_one(&pool).await.expect("a count");
    assert_eq!(left, 0, "all is added up");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_transaction_that_is_open_during_folds_counts_when_it_commits_and_not_before(pool: PgPool) {
    let (own, mut conn) = (own_pool(&pool), pool.acquire().await.expect("a connection"));
    let mut open = pool.begin().await.expect("a transaction");
    insert(&mut open, "open", 7).await;
    for turn in 0..3 {
        insert(&mut conn, &format!("{turn}-"), 5).await;
        fold(&own, 1_000_000).await.expect("a fold");
        assert_eq!(wrong(&mut conn).await, Vec::<String>::new(), "turn {turn}");
        assert_eq!(wrong(&mut open).await, Vec::<String>::new(), "its own view, turn {turn}");
    }
    open.commit().await.expect("a commit");
    assert_eq!(wrong(&mut conn).await, Vec::<String>::new(), "committed");
    fold(&own, 1_000_000).await.expect("a fold");
    assert_eq!(wrong(&mut conn).await, Vec::<String>::new(), "folded");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn runs_written_with_triggers_turned_off_are_counted_too(pool: PgPool) {
    let mut conn = pool.acquire().await.expect("a connection");
    // Bulk loads do this.
    sqlx::query("SET session_replication_role = replica").execute(&mut *conn).await.expect("the role");
    insert(&mut conn, "loaded", 100).await;
    assert_eq!(wrong(&mut conn).await, Vec::<String>::new(), "loaded");
    fold(&own_pool(&pool), 1_000_000).await.expect("a fold");
    insert(&mut conn, "more", 10).await;
    sqlx::query("TRUNCATE workflow_runs CASCADE").execute(&mut *conn).await.expect("truncated");
    assert_eq!(wrong(&mut conn).await, Vec::<String>::new(), "truncated");
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_database_that_was_copied_to_another_server_is_counted_again(pool: PgPool) {
    let (own, mut conn) = (own_pool(&pool), pool.acquire().await.expect("a connection"));
    insert(&mut conn, "run", 30).await;
    fold(&own, 1_000_000).await.expect("a fold");
    // The transaction ids are not those of this server.
    let far = "UPDATE run_count_folds SET next_xid = '9000000000000000000'";
    sqlx::query(far).execute(&pool).await.expect("another server's");
    insert(&mut conn, "unseen", 3).await;
    assert_ne!(wrong(&mut conn).await, Vec::<String>::new(), "the new ones are not seen");
    assert_eq!(fold(&own, 1_000_000).await.expect("a fold"), Fold::Foreign);
    recount(&own).await.expect("a count");
    assert_eq!(wrong(&mut conn).await, Vec::<String>::new(), "counted");
}
