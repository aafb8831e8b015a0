//! Secrets in Vault, with a real server: `OpenBao`, which has the API of `HashiCorp` Vault.

use std::process::Stdio;

use axum::{Json, Router, http::StatusCode, routing::post};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use reqwest::{Certificate, Client, Method};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::process::{Child, Command};

use crate::{
    program::{Environment, Program, eventually, free_port},
    secure_kafka::Folder,
};

const FIRST: &str = "84cd64d53ef3e6aa5e0f541e11c026f01fdb5065eb63ee8aadef23104102cff7";
const SECOND: &str = "13aa104afa1c87996b66aa110a84e9ca9c91705b6c347b3a8b3b8cacc109e5ba";
const ROOT: &str = "planted-root-token";

/// A server in memory, with a key-value store of version 2 at `secret` and a policy `app`.
struct Vault {
    address: String,
    client: Client,
    folder: Folder,
    _server: Child,
}

impl Vault {
    async fn start() -> Self {
        let program = std::env::var("TEST_OPENBAO").expect("TEST_OPENBAO names the program `bao` of OpenBao");
        let (folder, port) = (Folder::new(), free_port());
        let tls = folder.path("");
        let server = Command::new(program)
            .args(["server", "-dev", "-dev-tls", "-dev-no-store-token"])
            .args([format!("-dev-tls-cert-dir={tls}"), format!("-dev-root-token-id={ROOT}")])
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .env_clear()
            .env("HOME", &tls)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("OpenBao starts");
        let address = format!("https://127.0.0.1:{port}");
        let authority = folder.path("vault-ca.pem");
        let read = async || Certificate::from_pem(&std::fs::read(&authority).ok()?).ok();
        let authority = eventually("the certificate is written", read).await;
        let client = Client::builder().tls_certs_only([authority]).build().expect("a client");
        let vault = Self { address, client, folder, _server: server };
        eventually("the store is there", async || vault.try_call(Method::POST, "secret/config", &json!({})).await.ok())
            .await;
        let policy = "path \"secret/data/app\" { capabilities = [\"read\"] }";
        vault.call(Method::PUT, "sys/policies/acl/app", &json!({"policy": policy})).await;
        vault
    }

    async fn try_call(&self, method: Method, path: &str, body: &Value) -> reqwest::Result<Value> {
        let request = self.client.request(method, format!("{}/v1/{path}", self.address)).header("x-vault-token", ROOT);
        let answer = request.json(body).send().await?.error_for_status()?;
        Ok(serde_json::from_slice(&answer.bytes().await?).unwrap_or_default())
    }

    /// Calls it as root.
    async fn call(&self, method: Method, path: &str, body: &Value) -> Value {
        self.try_call(method, path, body).await.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    async fn put(&self, secret: &Value) {
        self.call(Method::POST, "secret/data/app", &json!({"data": secret})).await;
    }

    /// Settings that lead to the server, without credentials.
    fn known_to(&self, pool: &PgPool) -> Environment {
        Environment::new(pool)
            .with("VAULT_ADDR", &self.address)
            .with("VAULT_CACERT", &self.folder.path("vault-ca.pem"))
            .with("JWT_SECRET", "vault://secret/app#jwt")
    }
}

async fn token(environment: &Environment) -> String {
    let printed = environment.run(&["token"]).await;
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    String::from_utf8(printed.stdout).expect("text").trim().to_owned()
}

async fn status(environment: &Environment, token: &str) -> u16 {
    let request = Client::new().get(format!("{}/api/v1/agents", environment.url)).bearer_auth(token);
    request.send().await.expect("an answer").status().as_u16()
}

async fn says(program: &Program, text: &str) {
    eventually(&format!("it says: {text}"), async || program.log().contains(text).then_some(())).await;
}

#[sqlx::test(migrations = false)]
async fn values_in_vault_are_used_and_read_again(pool: PgPool) {
    let vault = Vault::start().await;
    let url = Environment::new(&pool).variables["DATABASE_URL"].clone();
    vault.put(&json!({"jwt": FIRST, "url": format!("{url}\n")})).await;
    let created = vault.call(Method::POST, "auth/token/create", &json!({"policies": ["app"], "ttl": "40s"})).await;
    let (vault_token, accessor) = (&created["auth"]["client_token"], &created["auth"]["accessor"]);
    let environment = vault
        .known_to(&pool)
        .with("DATABASE_URL", "vault://secret/data/app#url")
        .with("VAULT_TOKEN_FILE", &vault.folder.put("token", vault_token.as_str().expect("a token")))
        .with("VAULT_REFRESH_SECS", "1");
    let api = environment.serve().await;
    let old = token(&environment).await;
    assert_eq!(status(&environment, &old).await, 200);

    vault.put(&json!({"jwt": "short", "url": url})).await;
    says(&api, "a changed secret is not used: JWT_SECRET: must have at least 32 bytes").await;
    assert_eq!(status(&environment, &old).await, 200);
    vault.put(&json!({"jwt": SECOND, "url": url})).await;
    says(&api, "JWT_SECRET was read again from Vault").await;
    eventually("the old key does not count", async || (status(&environment, &old).await == 401).then_some(())).await;
    assert_eq!(status(&environment, &token(&environment).await).await, 200);

    // The token would have ended.
    let body = json!({"accessor": accessor});
    eventually("the token is renewed", async || {
        let found = vault.call(Method::POST, "auth/token/lookup-accessor", &body).await;
        found["data"]["last_renewal"].is_string().then_some(())
    })
    .await;
    vault.call(Method::POST, "auth/token/revoke-accessor", &body).await;
    says(
        &api,
        "a changed secret is not used: DATABASE_URL: vault://secret/data/app#url: the server denies access (403)",
    )
    .await;
    assert_eq!(status(&environment, &token_with(SECOND, &environment).await).await, 200);
    for planted in [FIRST, SECOND, ROOT, vault_token.as_str().expect("a token")] {
        assert!(!api.log().contains(planted), "{}", api.log());
    }
}

/// A token that is signed with that key.
async fn token_with(key: &str, environment: &Environment) -> String {
    token(&environment.clone().with("JWT_SECRET", key)).await
}

#[sqlx::test(migrations = false)]
async fn a_login_by_app_role_leaves_no_token_behind(pool: PgPool) {
    let vault = Vault::start().await;
    vault.put(&json!({"jwt": FIRST})).await;
    vault.call(Method::POST, "sys/auth/machines", &json!({"type": "approle"})).await;
    vault.call(Method::POST, "auth/machines/role/app", &json!({"token_policies": "app"})).await;
    let role_id = vault.call(Method::GET, "auth/machines/role/app/role-id", &json!({})).await;
    let secret_id = vault.call(Method::POST, "auth/machines/role/app/secret-id", &json!({})).await;
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let environment = vault
        .known_to(&pool)
        .with("VAULT_AUTH_MOUNT", "machines")
        .with("VAULT_ROLE_ID", &text(&role_id["data"]["role_id"]))
        .with("VAULT_SECRET_ID_FILE", &vault.folder.put("secret-id", &text(&secret_id["data"]["secret_id"])));
    let accessors = async || {
        let found =
            vault.call(Method::from_bytes(b"LIST").expect("a method"), "auth/token/accessors", &json!({})).await;
        found["data"]["keys"].as_array().expect("a list").len()
    };
    let before = accessors().await;
    assert!(!token(&environment).await.is_empty());
    assert_eq!(accessors().await, before);
    // What needs no secret does not ask for one: the check of a container runs every 30 s.
    let checked = environment.clone().with("VAULT_ADDR", "nowhere").run(&["healthcheck"]).await;
    assert!(String::from_utf8_lossy(&checked.stderr).contains("/health does not answer"), "{checked:?}");
}

/// The server asks the API server of the cluster about the token of the pod; here a test answers.
#[sqlx::test(migrations = false)]
async fn a_pod_logs_in_with_the_token_of_its_service_account(pool: PgPool) {
    let review = post(async |Json(asked): Json<Value>| {
        let user = json!({"username": "system:serviceaccount:default:workflow-api", "uid": "1"});
        let audiences = &asked["spec"]["audiences"];
        let status = json!({"authenticated": asked["spec"]["token"].is_string(), "user": user, "audiences": audiences});
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status});
        (StatusCode::CREATED, Json(body))
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let cluster = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(review)).await });

    let vault = Vault::start().await;
    vault.put(&json!({"jwt": FIRST})).await;
    vault.call(Method::POST, "sys/auth/kubernetes", &json!({"type": "kubernetes"})).await;
    // Required, and without a use here: the cluster speaks HTTP.
    let authority = std::fs::read_to_string(vault.folder.path("vault-ca.pem")).expect("a certificate");
    let config = json!({"kubernetes_host": cluster, "token_reviewer_jwt": "x", "disable_local_ca_jwt": true,
        "kubernetes_ca_cert": authority});
    vault.call(Method::POST, "auth/kubernetes/config", &config).await;
    let role = json!({"bound_service_account_names": "workflow-api", "bound_service_account_namespaces": "default",
        "token_policies": "app"});
    vault.call(Method::POST, "auth/kubernetes/role/workflow-api", &role).await;
    let encoded = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let account = json!({"namespace": "default", "serviceaccount": {"name": "workflow-api", "uid": "1"}});
    let claims = json!({"iss": "kubernetes", "sub": "system:serviceaccount:default:workflow-api", "aud": ["vault"],
        "iat": 1, "nbf": 1, "exp": 4_102_444_800_u64, "kubernetes.io": account});
    let pod =
        format!("{}.{}.{}", encoded(json!({"alg": "RS256"})), encoded(claims), BASE64_URL_SAFE_NO_PAD.encode("x"));
    let environment = vault
        .known_to(&pool)
        .with("VAULT_KUBERNETES_ROLE", "workflow-api")
        .with("VAULT_KUBERNETES_TOKEN_PATH", &vault.folder.put("pod", &pod));
    assert!(!token(&environment).await.is_empty());
    let other = environment.with("VAULT_KUBERNETES_ROLE", "other").run(&["token"]).await;
    let errors = String::from_utf8_lossy(&other.stderr);
    assert!(errors.contains("JWT_SECRET: vault://secret/data/app#jwt: the login by Kubernetes failed: "), "{errors}");
}

#[sqlx::test(migrations = false)]
async fn a_start_names_all_values_that_cannot_be_read(pool: PgPool) {
    let vault = Vault::start().await;
    vault.put(&json!({"jwt": FIRST, "number": 7, "blank": " \n"})).await;
    let created = vault.call(Method::POST, "auth/token/create", &json!({"policies": ["app"]})).await;
    let environment = vault
        .known_to(&pool)
        .with("VAULT_TOKEN", created["auth"]["client_token"].as_str().expect("a token"))
        .with("DATABASE_URL", "vault://secret/app#none")
        .with("ENCRYPTION_KEY", "vault://secret/app#number")
        .with("JWT_PUBLIC_KEY", "vault://secret/app#blank")
        .with("BOOTSTRAP_API_KEY", "vault://secret/other#key");
    let output = environment.run(&["serve"]).await;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{printed}");
    let mut found: Vec<String> = printed
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["message"].as_str().expect("text").to_owned())
        .collect();
    found.sort_unstable();
    assert_eq!(
        found,
        [
            "BOOTSTRAP_API_KEY: vault://secret/data/other#key: the server denies access (403)",
            "DATABASE_URL: vault://secret/data/app#none: the secret has no key \"none\"",
            "ENCRYPTION_KEY: vault://secret/data/app#number: the value is not text",
            "JWT_PUBLIC_KEY: vault://secret/data/app#blank: the value is empty",
        ]
    );
    // Without its authority the server is not trusted.
    let mut strange = environment;
    strange.variables.remove("VAULT_CACERT");
    let output = strange.run(&["check", "config"]).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    let expected =
        "JWT_SECRET: vault://secret/data/app#jwt: the server of VAULT_ADDR cannot be reached: invalid peer certificate";
    assert!(errors.contains(expected), "{errors}");
}
