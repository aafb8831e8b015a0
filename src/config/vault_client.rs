//! Client of `HashiCorp` Vault and `OpenBao`: reads values of settings from a key-value store of version 2.
//!
//! `vault://PATH#KEY` in place of a secret names the value. The settings of the client are `VAULT_*`. A client lives as long
//! as the settings are read: what it has read, and that the server cannot be reached, is remembered that long.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use http::{HeaderName, HeaderValue, Method};
use reqwest::{Certificate, Client, redirect};
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::{Map, Value, json};
use url::Url;

use super::{Reader, files};
use crate::egress;

/// Beginning of a value that names another one in Vault.
pub(super) const SCHEME: &str = "vault://";
/// Time-out of a request.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Time-out of all requests together.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(20);
/// Maximum size of an answer, as that of a secret's file.
const MAX_BYTES: usize = 1 << 20;
/// File with the token of a pod's service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Name of a value in Vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// Segments of the path below `/v1/`.
    path: Vec<String>,
    key: String,
}

impl Reference {
    /// Parses `vault://MOUNT/PATH#KEY`. The path may be that of the API, `MOUNT/data/PATH`, as it has to be if the mount
    /// has several segments.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        const FORM: &str = "is not of the form vault://MOUNT/PATH#KEY";
        let (path, key) = text.strip_prefix(SCHEME).and_then(|rest| rest.split_once('#')).ok_or(FORM)?;
        let mut path: Vec<String> = path.trim_matches('/').split('/').map(str::to_owned).collect();
        let is_segment = |segment: &String| {
            !matches!(segment.as_str(), "" | "." | "..")
                && !segment.contains(|c: char| c.is_control() || "?#%".contains(c))
        };
        if path.len() < 2 || !path.iter().all(is_segment) || key.is_empty() {
            return Err(FORM);
        }
        if !path[1..path.len() - 1].iter().any(|segment| segment == "data") {
            path.insert(1, "data".to_owned());
        }
        Ok(Self { path, key: key.to_owned() })
    }
}

/// As in the API: no part of it is secret.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}#{}", self.path.join("/"), self.key)
    }
}

/// Source of the client's token.
enum Login {
    /// `VAULT_TOKEN`.
    Token(SecretString),
    /// `VAULT_ROLE_ID` and `VAULT_SECRET_ID`.
    AppRole { mount: String, role_id: String, secret_id: SecretString },
    /// `VAULT_KUBERNETES_ROLE` and the token of the pod.
    Kubernetes { mount: String, role: String, token: PathBuf },
}

/// Client for the time of reading the settings.
pub(super) struct VaultClient {
    client: Client,
    address: Url,
    namespace: Option<HeaderValue>,
    login: Login,
    deadline: Instant,
    /// Token of the session, after the login.
    token: Option<Result<HeaderValue, String>>,
    /// Answers by path, or the reasons why there are none.
    secrets: HashMap<Vec<String>, Result<Map<String, Value>, String>>,
    /// Reason why the server cannot be used any more.
    down: Option<String>,
}

impl VaultClient {
    /// Reads the settings. `None` means that problems were added to the reader.
    pub(super) fn read(reader: &mut Reader) -> Option<Self> {
        let address = reader.required("vault_addr").and_then(|text| match Url::parse(&text) {
            Ok(url)
                if matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.username().is_empty() =>
            {
                Some(url)
            }
            _ => reader.problem("vault_addr", "must be an http or https address"),
        });
        let namespace = reader.parsed("vault_namespace", None, |text| {
            HeaderValue::from_str(text).map(Some).map_err(|_| "has characters that are not possible".to_owned())
        });
        let authority = reader.parsed("vault_cacert", Vec::new(), |path| {
            let text = files::read(path.as_ref()).map_err(|why| format!("{why}: {path}"))?;
            let found = Certificate::from_pem_bundle(text.as_bytes()).ok().filter(|found| !found.is_empty());
            found.ok_or_else(|| format!("the file has no certificate in PEM form: {path}"))
        });
        let login = read_login(reader);
        let builder = Client::builder()
            .timeout(TIMEOUT)
            .redirect(redirect::Policy::none())
            // Each read has a runtime of its own, and connections belong to one.
            .pool_max_idle_per_host(0)
            .tls_certs_merge(authority?);
        let client = builder.build().map_err(|error| reader.problem::<()>("vault_addr", error.without_url())).ok()?;
        Some(Self {
            client,
            address: address?,
            namespace: namespace?,
            login: login?,
            deadline: Instant::now() + TOTAL_TIMEOUT,
            token: None,
            secrets: HashMap::new(),
            down: None,
        })
    }

    /// Value with that name, without blanks and line breaks around it. Blocks the thread.
    pub(super) fn value(&mut self, reference: &Reference) -> Result<String, String> {
        if !self.secrets.contains_key(&reference.path) {
            let secret = in_thread(self.fetch(&reference.path)).and_then(|secret| secret);
            self.secrets.insert(reference.path.clone(), secret);
        }
        match self.secrets[&reference.path].as_ref()?.get(&reference.key) {
            Some(Value::String(text)) if text.trim().is_empty() => Err("the value is empty".to_owned()),
            Some(Value::String(text)) => Ok(text.trim().to_owned()),
            Some(_) => Err("the value is not text".to_owned()),
            None => Err(format!("the secret has no key {:?}", reference.key)),
        }
    }

    /// Revokes the token of a login: the next reading of the settings makes another one.
    pub(super) fn end(mut self) {
        if let Some(Ok(token)) = self.token.take()
            && !matches!(self.login, Login::Token(_))
        {
            // Otherwise it expires by itself.
            let _ = in_thread(self.request(Method::POST, &["auth", "token", "revoke-self"], Some(token), None));
        }
    }

    async fn fetch(&mut self, path: &[String]) -> Result<Map<String, Value>, String> {
        if self.token.is_none() {
            self.token = Some(self.log_in().await);
        }
        let token = self.token.clone().unwrap_or_else(|| Err("there is no token".to_owned()))?;
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let answer = self.request(Method::GET, &path, Some(token), None).await?;
        match answer.pointer("/data/data") {
            Some(Value::Object(members)) => Ok(members.clone()),
            // A version that was deleted, or a store of version 1.
            _ => Err("there is no such secret in a key-value store of version 2".to_owned()),
        }
    }

    async fn log_in(&mut self) -> Result<HeaderValue, String> {
        let (method, mount, credentials) = match &self.login {
            Login::Token(token) => {
                let token = header(token.expose_secret())?;
                self.renew(&token).await;
                return Ok(token);
            }
            Login::AppRole { mount, role_id, secret_id } => {
                ("AppRole", mount.clone(), json!({"role_id": role_id, "secret_id": secret_id.expose_secret()}))
            }
            Login::Kubernetes { mount, role, token } => {
                let jwt = files::read(token).map_err(|why| format!("{why}: {}", token.display()))?;
                ("Kubernetes", mount.clone(), json!({"role": role, "jwt": jwt}))
            }
        };
        let path: Vec<&str> = ["auth"].into_iter().chain(mount.split('/')).chain(["login"]).collect();
        let answer = self.request(Method::POST, &path, None, Some(credentials)).await;
        let answer = answer.map_err(|why| format!("the login by {method} failed: {why}"))?;
        let token = answer.pointer("/auth/client_token").and_then(Value::as_str);
        header(token.ok_or("the answer to the login has no token")?)
    }

    /// Renews a token in the second half of its lifetime. If that is not possible, reading tells so when the token has ended.
    async fn renew(&mut self, token: &HeaderValue) {
        let path = ["auth", "token", "lookup-self"];
        let Ok(found) = self.request(Method::GET, &path, Some(token.clone()), None).await else { return };
        let secs = |name: &str| found["data"][name].as_u64().filter(|secs| *secs > 0);
        let lifetime = secs("period").or_else(|| secs("creation_ttl"));
        let is_due = secs("ttl").zip(lifetime).is_some_and(|(left, lifetime)| left < lifetime / 2);
        if is_due && found["data"]["renewable"] == true {
            let path = ["auth", "token", "renew-self"];
            let _ = self.request(Method::POST, &path, Some(token.clone()), Some(json!({}))).await;
        }
    }

    /// Answer to a request. The error never has a token.
    async fn request(
        &mut self,
        method: Method,
        path: &[&str],
        token: Option<HeaderValue>,
        body: Option<Value>,
    ) -> Result<Value, String> {
        if let Some(down) = &self.down {
            return Err(down.clone());
        }
        let mut url = self.address.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        let left = self.deadline.saturating_duration_since(Instant::now());
        let mut request = self.client.request(method, url).timeout(TIMEOUT.min(left)).header("x-vault-request", "true");
        let headers = [("x-vault-token", token), ("x-vault-namespace", self.namespace.clone())];
        for (name, value) in headers {
            if let Some(value) = value {
                request = request.header(HeaderName::from_static(name), value);
            }
        }
        if let Some(body) = body {
            request = request.json(&body);
        }
        let unreachable = |error: reqwest::Error| match egress::cause_of(&error) {
            _ if error.is_timeout() => "the server of VAULT_ADDR does not answer in time".to_owned(),
            Some(cause) => format!("the server of VAULT_ADDR cannot be reached: {cause}"),
            None => "the server of VAULT_ADDR cannot be reached".to_owned(),
        };
        let mut answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return Err(self.down.insert(unreachable(error)).clone()),
        };
        match answer.status().as_u16() {
            200 | 204 => {}
            400 => return Err("the server refuses the request (400)".to_owned()),
            403 => return Err("the server denies access (403)".to_owned()),
            404 => return Err("there is nothing at this path (404)".to_owned()),
            503 => return Err("the server is sealed, or in maintenance (503)".to_owned()),
            status => return Err(format!("the server answered {status}")),
        }
        let mut bytes = Vec::new();
        while let Some(piece) = answer.chunk().await.map_err(unreachable)? {
            if bytes.len() + piece.len() > MAX_BYTES {
                return Err(format!("the answer of the server is larger than {MAX_BYTES} bytes"));
            }
            bytes.extend_from_slice(&piece);
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|_| "the answer of the server is not JSON".to_owned())
    }
}

/// Reads how the client gets its token.
fn read_login(reader: &mut Reader) -> Option<Login> {
    let ways = ["vault_token", "vault_role_id", "vault_kubernetes_role"];
    let given: Vec<&str> = ways.into_iter().filter(|name| reader.has(name)).collect();
    let mut mount = |default: &str| reader.text("vault_auth_mount", default).trim_matches('/').to_owned();
    match given[..] {
        ["vault_token"] => reader.required("vault_token").map(|token| Login::Token(token.into())),
        ["vault_role_id"] => {
            let mount = mount("approle");
            let (role_id, secret_id) = (reader.required("vault_role_id"), reader.required("vault_secret_id"));
            Some(Login::AppRole { mount, role_id: role_id?, secret_id: secret_id?.into() })
        }
        ["vault_kubernetes_role"] => {
            let mount = mount("kubernetes");
            let token = reader.text("vault_kubernetes_token_path", SERVICE_ACCOUNT).into();
            Some(Login::Kubernetes { mount, role: reader.required("vault_kubernetes_role")?, token })
        }
        _ => reader.problem(
            "vault_token",
            "exactly one of VAULT_TOKEN, VAULT_ROLE_ID and VAULT_KUBERNETES_ROLE is required to read values of Vault",
        ),
    }
}

/// Header with a token, which is not shown.
fn header(token: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(token).map_err(|_| "the token has characters that are not possible")?;
    value.set_sensitive(true);
    Ok(value)
}

/// Output of the future, from a thread with a runtime of its own: the caller can be a thread of any kind.
fn in_thread<T: Send>(work: impl Future<Output = T> + Send) -> Result<T, String> {
    let failed = |error: std::io::Error| format!("no thread can be started: {error}");
    thread::scope(|scope| {
        let working = thread::Builder::new().name("vault".to_owned()).spawn_scoped(scope, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Ok(runtime.block_on(work))
        });
        working.map_err(failed)?.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(failed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Problems};

    #[test]
    fn a_reference_has_the_path_of_the_api_or_gets_it() {
        for (text, expected) in [
            ("vault://secret/app#key", Some("vault://secret/data/app#key")),
            ("vault://secret/team/app#key", Some("vault://secret/data/team/app#key")),
            ("vault:///secret/data/app#a#b", Some("vault://secret/data/app#a#b")),
            ("vault://kv/team/data/app#key", Some("vault://kv/team/data/app#key")),
            ("vault://secret/data#key", Some("vault://secret/data/data#key")),
            ("vault://secret#key", None),
            ("vault://secret/app", None),
            ("vault://secret/app#", None),
            ("vault://secret/../sys#key", None),
            ("vault://secret//app#key", None),
            ("vault://secret/a?b#key", None),
        ] {
            assert_eq!(Reference::parse(text).map(|found| found.to_string()).ok().as_deref(), expected, "{text}");
        }
    }

    fn problems(variables: &[(&str, &str)]) -> Vec<String> {
        let pairs = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let Problems(problems) = Config::load(pairs.collect::<Vec<_>>().into_iter()).expect_err("nothing can be read");
        problems.iter().map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn all_values_that_cannot_be_read_are_listed() {
        let named = [
            ("DATABASE_URL", "vault://secret/app#url"),
            ("JWT_SECRET", "vault://secret/app#jwt"),
            ("KAFKA_BROKERS", "vault://secret/app#brokers"),
            ("ENCRYPTION_KEY", "vault://secret"),
        ];
        let wrong = [
            "ENCRYPTION_KEY: is not of the form vault://MOUNT/PATH#KEY",
            "KAFKA_BROKERS: cannot be in Vault, because it is no secret",
        ];
        let found = problems(&named);
        for expected in wrong.into_iter().chain([
            "VAULT_ADDR: is required and not set",
            "VAULT_TOKEN: exactly one of VAULT_TOKEN, VAULT_ROLE_ID and VAULT_KUBERNETES_ROLE is required to read values of Vault",
            "DATABASE_URL: vault://secret/data/app#url cannot be read without the settings VAULT_*",
            "JWT_SECRET: vault://secret/data/app#jwt cannot be read without the settings VAULT_*",
        ]) {
            assert_eq!(found.iter().filter(|line| *line == expected).count(), 1, "{expected}: {found:#?}");
        }
        assert_eq!(found.len(), 6, "{found:#?}");

        // Nobody listens there.
        let server = [("VAULT_ADDR", "http://127.0.0.1:1"), ("VAULT_TOKEN", "t")];
        let found = problems(&[&named[..], &server].concat());
        for name in ["DATABASE_URL: vault://secret/data/app#url", "JWT_SECRET: vault://secret/data/app#jwt"] {
            let start = format!("{name}: the server of VAULT_ADDR cannot be reached: ");
            assert!(found.iter().any(|line| line.starts_with(&start)), "{name}: {found:#?}");
        }
        assert_eq!(found.len(), 4, "{found:#?}");
    }
}
