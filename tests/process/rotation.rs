//! Secrets that change while the service runs: it reads their files again.

use serde_json::json;
use sqlx::{ConnectOptions as _, PgPool};
use uuid::Uuid;

use crate::{
    program::{Environment, Program, eventually},
    secure_kafka::Folder,
};

async fn says(program: &Program, text: &str) {
    eventually(&format!("it says: {text}"), async || program.log().contains(text).then_some(())).await;
}

/// `pg_hba.conf` of the tests asks members of `password_users` for a password, and trusts all others.
#[sqlx::test(migrations = false)]
async fn a_new_password_of_the_database_role_is_used_without_a_restart(pool: PgPool) {
    let role = format!("role_{}", Uuid::new_v4().simple());
    let run = async |sql: String| {
        sqlx::query(sqlx::AssertSqlSafe(sql.clone()))
            .execute(&pool)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"));
    };
    // Another test may do this at the same time.
    sqlx::query("CREATE ROLE password_users NOLOGIN").execute(&pool).await.ok();
    run(format!("CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'planted-first' IN ROLE password_users")).await;
    let url = |password: &str| {
        let mut url = pool.connect_options().to_url_lossy();
        url.set_username(&role).expect("a host");
        url.set_password(Some(password)).expect("a host");
        url.to_string()
    };
    let folder = Folder::new();
    let mut environment = Environment::new(&pool).with("DATABASE_URL_FILE", &folder.put("url", &url("planted-first")));
    environment.variables.remove("DATABASE_URL");
    let api = environment.serve().await;
    let agent = json!({"name": "before", "url": "http://127.0.0.1:9/"});
    assert_eq!(environment.post("/api/v1/agents", &agent).await.expect("an answer").status(), 201);

    run(format!("ALTER ROLE {role} PASSWORD 'planted-second'")).await;
    // The existing connections would live on, and one may have been about to exist.
    let is_refused = async || {
        run(format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")).await;
        environment.is_ready().await.is_none().then_some(())
    };
    eventually("the old password is refused", is_refused).await;
    folder.put("url", &url("planted-second"));
    eventually("the new password is used", || environment.is_ready()).await;
    let agent = json!({"name": "after", "url": "http://127.0.0.1:9/"});
    assert_eq!(environment.post("/api/v1/agents", &agent).await.expect("an answer").status(), 201);
    assert!(!api.log().contains("planted-"), "{}", api.log());
    drop(api);
    run(format!("REASSIGN OWNED BY {role} TO CURRENT_USER")).await;
    run(format!("DROP OWNED BY {role}")).await;
    run(format!("DROP ROLE {role}")).await;
}

#[sqlx::test(migrations = false)]
async fn keys_of_tokens_and_of_credentials_change_without_a_restart(pool: PgPool) {
    const FIRST: &str = "84cd64d53ef3e6aa5e0f541e11c026f01fdb5065eb63ee8aadef23104102cff7";
    const SECOND: &str = "13aa104afa1c87996b66aa110a84e9ca9c91705b6c347b3a8b3b8cacc109e5ba";
    let folder = Folder::new();
    let environment = Environment::new(&pool)
        .with("JWT_SECRET_FILE", &folder.put("jwt", FIRST))
        .with("ENCRYPTION_KEY_FILE", &folder.put("encryption", FIRST));
    let token = async || {
        let printed = environment.run(&["token"]).await;
        String::from_utf8(printed.stdout).expect("text").trim().to_owned()
    };
    let api = environment.serve().await;
    let client = reqwest::Client::new();
    let status = async |token: &str| {
        let request = client.get(format!("{}/api/v1/agents", environment.url)).bearer_auth(token);
        request.send().await.expect("an answer").status().as_u16()
    };
    let create = async |token: &str, name: &str| {
        let agent =
            json!({"name": name, "url": "http://127.0.0.1:9/", "auth_type": "bearer", "auth_config": {"token": "t"}});
        let request = client.post(format!("{}/api/v1/agents", environment.url)).bearer_auth(token).json(&agent);
        assert_eq!(request.send().await.expect("an answer").status(), 201);
        let sql = "SELECT auth_config->'encrypted'->>'key_id' FROM agents WHERE name = $1";
        sqlx::query_scalar::<_, String>(sql).bind(name).fetch_one(&pool).await.expect("an encrypted agent")
    };
    let old = token().await;
    let first_key = create(&old, "first").await;

    folder.put("jwt", "");
    says(&api, "a changed secret is not used: JWT_SECRET_FILE: the file is empty").await;
    assert_eq!(status(&old).await, 200);

    folder.put("jwt", SECOND);
    folder.put("encryption", &format!("{SECOND},{FIRST}"));
    says(&api, "JWT_SECRET was read again from its file").await;
    let new = token().await;
    eventually("the new key counts, and the old one does not", async || {
        (status(&new).await == 200 && status(&old).await == 401).then_some(())
    })
    .await;
    says(&api, "ENCRYPTION_KEY was read again from its file").await;
    assert_ne!(create(&new, "second").await, first_key);
    let rotated = environment.run(&["rotate-keys"]).await;
    assert!(rotated.status.success(), "{rotated:?}");
    drop(api);

    // During a rotation the key before is accepted as well.
    let environment = environment.clone().with("JWT_SECRET_PREVIOUS", FIRST);
    let _api = environment.serve().await;
    assert_eq!((status(&old).await, status(&new).await), (200, 200));
}
