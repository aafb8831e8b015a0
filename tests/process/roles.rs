//! The roles of `docs/DATABASE_SETUP.md`, made by its statements: an owner who is no superuser migrates, and the
//! service runs with rights on rows alone.

use serde_json::json;
use sqlx::PgPool;
use uuid::Uuid;

use crate::{
    empty_database::empty,
    program::{Environment, eventually},
};

const DOCUMENT: &str = include_str!("../../docs/DATABASE_SETUP.md");

/// The roles of one test.
struct Roles {
    database: String,
    owner: String,
    service: String,
}

impl Roles {
    fn of(pool: &PgPool) -> Self {
        let unique = Uuid::new_v4().simple().to_string();
        let database = format!("\"{}\"", pool.connect_options().get_database().expect("a name"));
        Self { owner: format!("owner_{unique}"), service: format!("service_{unique}"), database }
    }

    /// A statement of the document, about the roles and the database of this test.
    fn named(&self, sql: &str) -> String {
        sql.replace("workflow_owner", &self.owner)
            .replace("workflow_service", &self.service)
            .replace("workflow_db", &self.database)
    }

    /// Executes statements as the superuser.
    async fn execute(&self, pool: &PgPool, sql: &str) {
        let sql = self.named(sql);
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.as_str()))
            .execute(pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// The environment of a program that logs in with that role.
    fn environment(environment: &Environment, role: &str) -> Environment {
        let mut url = url::Url::parse(&environment.variables["DATABASE_URL"]).expect("a URL");
        url.set_username(role).expect("a name");
        environment.clone().with("DATABASE_URL", url.as_str())
    }
}

/// The statements of the document's section about roles: those of a superuser, and those of the owner.
fn documented() -> (String, String) {
    let (_, section) = DOCUMENT.split_once("\n## Database and roles\n").expect("the section");
    let (section, _) = section.split_once("\n### ").expect("an end");
    let blocks: Vec<&str> = section.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let [first, second] = blocks[..] else { panic!("two blocks are expected, not {}", blocks.len()) };
    // The test's database is there already, and its server trusts everyone.
    let made = |line: &str| match line {
        line if line.starts_with("CREATE DATABASE") => {
            "ALTER DATABASE workflow_db OWNER TO workflow_owner;\n".to_owned()
        }
        line if line.starts_with('\\') => String::new(),
        line => format!("{line}\n"),
    };
    (first.lines().map(made).collect(), second.to_owned())
}

#[sqlx::test(migrations = false)]
async fn an_owner_without_superuser_migrates_and_the_service_needs_rights_on_rows_only(pool: PgPool) {
    empty(&pool).await;
    let roles = Roles::of(&pool);
    let (by_superuser, by_owner) = documented();
    assert!(!by_superuser.contains("PARAMETER") && !by_superuser.contains("SUPERUSER"), "{by_superuser}");
    roles.execute(&pool, &by_superuser).await;
    let environment = Environment::new(&pool).with("MIGRATE_ON_START", "false");
    let as_owner = Roles::environment(&environment, &roles.owner);
    let as_service = Roles::environment(&environment, &roles.service);
    let succeeds = async |environment: &Environment, arguments: &[&str]| {
        let output = environment.run(arguments).await;
        let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{arguments:?}: {printed}");
        printed
    };
    succeeds(&as_owner, &["migrate", "up"]).await;
    let count = succeeds(&as_owner, &["migrate", "status"]).await.lines().count().to_string();
    succeeds(&as_owner, &["migrate", "down", &count, "--yes"]).await;
    succeeds(&as_owner, &["migrate", "up"]).await;
    for _ in 0..2 {
        roles.execute(&pool, &format!("SET ROLE workflow_owner; {by_owner}; RESET ROLE")).await;
    }

    assert!(succeeds(&as_service, &["migrate", "up"]).await.contains("the schema is current"));
    let refused = as_service.run(&["migrate", "down", "1"]).await;
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("permission denied"), "{refused:?}");

    let mut api = as_service.serve().await;
    let mut executor = as_service.start(&["executor"]);
    let workflow = |name: &str, step: serde_json::Value| json!({"name": name, "start_step": "s", "steps": {"s": step}});
    let store = async |workflow: serde_json::Value| {
        let answer = as_service.post("/api/v1/workflows", &workflow).await.expect("an answer");
        assert_eq!(answer.status(), 201);
        answer.json::<serde_json::Value>().await.expect("JSON")["id"].as_str().expect("an id").to_owned()
    };
    let ends = async |run_id: &str, status: &str| {
        eventually("the run ends", async || {
            let run = as_service.get(&format!("/api/v1/runs/{run_id}")).await;
            (run["status"] == status).then_some(())
        })
        .await;
    };
    // A call that fails; a run that waits; a run inside of another one, which is cancelled with it.
    let failing = as_service.chain("failing", &["http://127.0.0.1:9/".to_owned()]).await;
    ends(&as_service.execute(&failing).await.expect("accepted"), "FAILED").await;
    let nap = |seconds: u32| json!({"id": "s", "type": "wait", "wait_config": {"duration_seconds": seconds}});
    let short = store(workflow("short", nap(0))).await;
    ends(&as_service.execute(&short).await.expect("accepted"), "COMPLETED").await;
    store(workflow("long", nap(3600))).await;
    let sub = json!({"id": "s", "type": "sub_workflow", "sub_workflow_config": {"workflow_name": "long"}});
    let outer = as_service.execute(&store(workflow("outer", sub)).await).await.expect("accepted");
    let inner: String = eventually("the inner run waits", async || {
        let sql = "SELECT run_id FROM workflow_runs WHERE parent_run_id = $1 AND status = 'RUNNING'";
        sqlx::query_scalar(sql).bind(&outer).fetch_optional(&pool).await.expect("a row")
    })
    .await;
    let cancelled = as_service.post(&format!("/api/v1/runs/{outer}/cancel"), &json!({})).await.expect("an answer");
    assert!(cancelled.status().is_success(), "{}", cancelled.status());
    ends(&outer, "CANCELLED").await;
    ends(&inner, "CANCELLED").await;
    let count = "SELECT count(*) FROM run_events WHERE kind = 'run.cancelled' AND run_id = ANY ($1)";
    let count: i64 = sqlx::query_scalar(count).bind([&outer, &inner]).fetch_one(&pool).await.expect("a count");
    assert_eq!(count, 2, "the log of each says it once");
    let seals = "SELECT count(*) FROM audit_seals";
    eventually("entries are sealed", async || {
        let count: i64 = sqlx::query_scalar(seals).fetch_one(&pool).await.expect("a count");
        (count > 0).then_some(())
    })
    .await;

    for program in [&mut api, &mut executor] {
        program.terminate().await;
        assert_eq!(program.exit_code().await, 0);
        let log = program.log();
        let denied = log.lines().find(|line| line.contains("permission denied") || line.contains("must be owner"));
        assert_eq!(denied, None);
    }
    let sql = "ALTER DATABASE workflow_db OWNER TO CURRENT_USER; REASSIGN OWNED BY workflow_owner TO CURRENT_USER;
               DROP OWNED BY workflow_service; DROP OWNED BY workflow_owner; DROP ROLE workflow_owner, workflow_service";
    roles.execute(&pool, sql).await;
}
