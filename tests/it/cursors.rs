//! Cursors: each old row exactly once whatever is inserted and deleted meanwhile, and what is no cursor of the query.

use std::collections::HashSet;

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use sqlx::PgPool;
use workflow_api::db::migrations::MIGRATOR;

use crate::service::{Service, seed};

/// Inserts runs with few different sort values, so that ties and absent values are everywhere.
async fn insert_runs(pool: &PgPool, random: &mut StdRng, prefix: &str, count: usize) {
    for index in 0..count {
        let (second, completed) = (random.random_range(0..4), random.random_range(0..4));
        sqlx::query(
            "INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, status, created_at, updated_at, completed_at)
             VALUES ($1, 'w', 'w', $2, timestamp '2026-01-01' + make_interval(secs => $3),
                 timestamp '2026-01-02' + make_interval(secs => $4),
                 CASE WHEN $4 > 1 THEN timestamp '2026-01-03' + make_interval(secs => $4) END)",
        )
        .bind(format!("{prefix}{}-{index}", random.random_range(0..100)))
        .bind(["PENDING", "COMPLETED"][random.random_range(0..2)])
        .bind(f64::from(second))
        .bind(f64::from(completed))
        .execute(pool)
        .await
        .expect("a run");
    }
}

fn ids(page: &Value, id: &str) -> Vec<String> {
    let items = page["items"].as_array().expect("items");
    items.iter().map(|item| item[id].as_str().expect("an id").to_owned()).collect()
}

fn cursor(page: &Value, name: &str) -> Option<String> {
    assert!(page.get(name).is_some(), "{name} is always there: {page}");
    page[name].as_str().map(str::to_owned)
}

/// Follows `name` from the given page to the end; `between` runs before each further page.
async fn follow(service: &Service, list: &str, first: Value, name: &str, id: &str) -> Vec<Vec<String>> {
    let (mut pages, mut page) = (vec![ids(&first, id)], first);
    while let Some(cursor) = cursor(&page, name) {
        page = service.get(&format!("{list}&cursor={cursor}")).await.expect(200);
        pages.push(ids(&page, id));
        assert!(pages.len() < 1000, "{list} never ends");
    }
    pages
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn each_old_row_is_seen_exactly_once_while_rows_come_and_go(pool: PgPool) {
    let (service, seed) = (Service::start(&pool), seed());
    for (round, sort_by) in
        ["created_at", "updated_at", "completed_at", "status"].into_iter().cycle().take(8).enumerate()
    {
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(round as u64));
        let sort_order = if round < 4 { "asc" } else { "desc" };
        sqlx::query("DELETE FROM workflow_runs").execute(&pool).await.expect("an empty table");
        insert_runs(&pool, &mut random, "old", 60).await;
        let stays: Vec<String> =
            sqlx::query_scalar("SELECT run_id FROM workflow_runs").fetch_all(&pool).await.expect("ids");
        // Half of the old rows may be deleted on the way.
        let (doomed, stays) = stays.split_at(30);
        let mut doomed = doomed.to_vec();

        let mut seen = Vec::new();
        let mut query = String::new();
        loop {
            let size = random.random_range(1..7);
            let path = format!("/api/v1/runs?sort_by={sort_by}&sort_order={sort_order}&page_size={size}{query}");
            let page = service.get(&path).await.expect(200);
            seen.extend(ids(&page, "run_id"));
            let total: i64 =
                sqlx::query_scalar("SELECT count(*) FROM workflow_runs").fetch_one(&pool).await.expect("a count");
            assert_eq!(page["total"], total);
            let Some(next) = cursor(&page, "next_cursor") else { break };
            query = format!("&cursor={next}");
            insert_runs(&pool, &mut random, &format!("new{}-", seen.len()), 2).await;
            let gone: Vec<String> = (0..2).filter_map(|_| doomed.pop()).collect();
            sqlx::query("DELETE FROM workflow_runs WHERE run_id = ANY($1)")
                .bind(&gone)
                .execute(&pool)
                .await
                .expect("gone");
        }
        let about = format!("{sort_by} {sort_order}, seed {seed}");
        let different: HashSet<&String> = seen.iter().collect();
        assert_eq!(different.len(), seen.len(), "twice: {about}");
        let missed: Vec<_> = stays.iter().filter(|id| !different.contains(id)).collect();
        assert!(missed.is_empty(), "missed {missed:?}: {about}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn there_and_back_again_are_the_same_pages_as_by_number(pool: PgPool) {
    let service = Service::start(&pool);
    let agents: Vec<String> = (0..7).map(|index| format!("a{index}")).collect();
    for name in &agents {
        service.agent(name, "http://a").await;
    }
    for name in ["x", "y", "x", "z", "x", "x", "y"] {
        service.chain(name, &["a0"]).await;
    }
    let x = service.get("/api/v1/workflows?name=x").await.expect(200)["items"][0]["id"].clone();
    insert_runs(&pool, &mut StdRng::seed_from_u64(7), "run", 23).await;
    let versions = format!("/api/v1/workflows/{}/versions?x=1", x.as_str().expect("an id"));
    let mut lists = vec![("/api/v1/agents?x=1".to_owned(), "id"), (versions, "id")];
    for order in ["asc", "desc"] {
        for sort in ["name", "version", "created_at", "updated_at"] {
            lists.push((format!("/api/v1/workflows?sort_by={sort}&sort_order={order}"), "id"));
        }
        for sort in ["created_at", "updated_at", "completed_at", "status"] {
            lists.push((format!("/api/v1/runs?sort_by={sort}&sort_order={order}"), "run_id"));
        }
    }
    for (list, id) in lists {
        let list = format!("{list}&page_size=3");
        let mut numbered = Vec::new();
        let total_pages = service.get(&list).await.expect(200)["total_pages"].as_u64().expect("a number");
        for number in 1..=total_pages {
            let page = service.get(&format!("{list}&page={number}")).await.expect(200);
            assert_eq!(page["prev_cursor"].is_null(), number == 1, "{list} page {number}");
            assert_eq!(page["next_cursor"].is_null(), number == total_pages, "{list} page {number}");
            numbered.push(ids(&page, id));
        }
        assert!(numbered.len() > 1, "{list}");
        let first = service.get(&list).await.expect(200);
        assert_eq!(follow(&service, &list, first, "next_cursor", id).await, numbered, "{list}");
        let last = service.get(&format!("{list}&page={total_pages}")).await.expect(200);
        let before = cursor(&last, "prev_cursor").expect("a page before the last");
        let before = service.get(&format!("{list}&cursor={before}")).await.expect(200);
        assert_eq!(before["page"], json!(total_pages - 1));
        numbered.pop();
        let mut back = follow(&service, &list, before, "prev_cursor", id).await;
        back.reverse();
        assert_eq!(back, numbered, "{list}");
    }
}

#[sqlx::test(migrator = "MIGRATOR")]
async fn a_cursor_that_is_damaged_or_of_another_query_is_400(pool: PgPool) {
    let service = Service::start(&pool);
    insert_runs(&pool, &mut StdRng::seed_from_u64(1), "run", 9).await;
    let page = service.get("/api/v1/runs?page_size=2&status=PENDING,COMPLETED&sort_by=status").await.expect(200);
    let cursor = cursor(&page, "next_cursor").expect("more runs");
    // Another page size is the same query.
    let same = format!("/api/v1/runs?page_size=3&status=PENDING,COMPLETED&sort_by=status&cursor={cursor}");
    service.get(&same).await.expect(200);
    let mut damaged = cursor.clone();
    damaged.replace_range(9..10, if &cursor[9..10] == "A" { "B" } else { "A" });
    for path in [
        format!("/api/v1/runs?status=PENDING&sort_by=status&cursor={cursor}"),
        format!("/api/v1/runs?status=PENDING,COMPLETED&sort_by=created_at&cursor={cursor}"),
        format!("/api/v1/runs?status=PENDING,COMPLETED&sort_by=status&sort_order=asc&cursor={cursor}"),
        format!("/api/v1/workflows?status=PENDING,COMPLETED&sort_by=status&cursor={cursor}"),
        format!("/api/v1/agents?cursor={cursor}"),
        format!("/api/v1/runs?status=PENDING,COMPLETED&sort_by=status&cursor={damaged}"),
        format!("/api/v1/runs?status=PENDING,COMPLETED&sort_by=status&cursor={}", &cursor[1..]),
        "/api/v1/runs?cursor=x".to_owned(),
        "/api/v1/runs?cursor=%F0%9F%98%80".to_owned(),
        format!("/api/v1/runs?cursor={}", "A".repeat(6000)),
    ] {
        assert_eq!(service.get(&path).await.error(400)["code"], "invalid_cursor", "{path}");
    }
    let both = service.get(&format!("{same}&page=2")).await;
    assert_eq!(both.field_errors(), ["query.cursor value_error"]);
    both.error(422);
    let deep = service.get("/api/v1/runs?page=101&page_size=100").await.error(422);
    assert!(deep["errors"][0]["message"].as_str().is_some_and(|text| text.contains("cursor")), "{deep}");
}
