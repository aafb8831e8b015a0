//! Client of the REST API, for commands that call a running service.

mod events;
pub mod run;

use std::{env, fmt, fs, path::PathBuf, time::Duration};

use anyhow::{Context, bail, ensure};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use reqwest::{RequestBuilder, Response, redirect::Policy};
use serde::{Deserialize, de::DeserializeOwned};
use url::Url;

use crate::{config, egress::is_loopback};

/// Time in which a connection has to be there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence of the service: above its time to answer, and above the pause between two bytes of an event stream.
const READ_TIMEOUT: Duration = Duration::from_secs(40);
/// Header of API keys, unless `API_KEY_HEADER` names another one.
const API_KEY_HEADER: HeaderName = HeaderName::from_static("x-api-key");

/// Address and credentials of the API. No option takes a secret: other users of the host see the command line.
#[derive(clap::Args, Clone, Debug)]
pub struct Target {
    /// Address of the API; without a path, `API_PREFIX` (/api/v1) is added
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// File that contains an API key
    #[arg(long, value_name = "FILE", conflicts_with = "token_file")]
    api_key_file: Option<PathBuf>,
    /// File that contains a bearer token
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl Target {
    /// Address with its prefix.
    fn url(&self, api: &config::Api) -> anyhow::Result<Url> {
        let (given, source) = match (&self.url, given("WORKFLOW_API_URL")) {
            (Some(url), _) => (url.clone(), "--url"),
            (None, Some(url)) => (url, "WORKFLOW_API_URL"),
            (None, None) => (api.public_url.clone(), "PUBLIC_URL"),
        };
        let mut url = Url::parse(&given).with_context(|| format!("{source}: {given:?} is not a URL"))?;
        ensure!(["http", "https"].contains(&url.scheme()), "{source}: an http or https URL is expected");
        let is_plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        ensure!(is_plain && url.fragment().is_none(), "{source}: a URL without user, query and fragment is expected");
        // `PUBLIC_URL` may have a path, which a reverse proxy takes away.
        if url.path() == "/" || source == "PUBLIC_URL" {
            url.set_path(&format!("{}{}", url.path().trim_end_matches('/'), api.prefix));
        }
        Ok(url)
    }

    /// Header with the credentials, if there are any. Options count before the environment.
    fn credentials(&self) -> anyhow::Result<Option<(HeaderName, HeaderValue)>> {
        let file = |path: &PathBuf| {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            ensure!(!text.trim().is_empty(), "{} is empty", path.display());
            Ok(text)
        };
        let mut found = Vec::new();
        if let Some(path) = &self.api_key_file {
            found.push((true, "--api-key-file", file(path)?));
        }
        if let Some(path) = &self.token_file {
            found.push((false, "--token-file", file(path)?));
        }
        if found.is_empty() {
            for (is_key, name) in [(true, "WORKFLOW_API_KEY"), (false, "WORKFLOW_API_TOKEN")] {
                found.extend(given(name).map(|secret| (is_key, name, secret)));
            }
            for (is_key, name) in [(true, "WORKFLOW_API_KEY_FILE"), (false, "WORKFLOW_API_TOKEN_FILE")] {
                if let Some(path) = given(name) {
                    found.push((is_key, name, file(&path.into()).context(name)?));
                }
            }
        }
        if let [(_, first, _), (_, second, _), ..] = &found[..] {
            bail!("{first} and {second} are both set; set one of them");
        }
        let Some((is_key, source, secret)) = found.pop() else { return Ok(None) };
        let secret = secret.trim();
        let (name, value) = if is_key {
            let name = given("API_KEY_HEADER").map_or(Ok(API_KEY_HEADER), |name| name.parse());
            (name.context("API_KEY_HEADER: not the name of a header")?, secret.to_owned())
        } else {
            (header::AUTHORIZATION, format!("Bearer {secret}"))
        };
        // The error of the library does not show the value either.
        let mut value: HeaderValue = value.parse().with_context(|| format!("{source}: one line is expected"))?;
        value.set_sensitive(true);
        Ok(Some((name, value)))
    }
}

/// A variable of the environment that is not empty.
fn given(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Connection to an API.
struct Client {
    http: reqwest::Client,
    base: Url,
}

impl Client {
    fn new(target: &Target, api: &config::Api) -> anyhow::Result<Self> {
        let base = target.url(api)?;
        let headers: HeaderMap = target.credentials()?.into_iter().collect();
        // Redirects are not followed: credentials would go to another host.
        let builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(Policy::none())
            .default_headers(headers);
        let builder = if is_loopback(&base) { builder.no_proxy() } else { builder };
        Ok(Self { http: builder.build()?, base })
    }

    /// Address below the prefix, of any segments.
    fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    fn get(&self, segments: &[&str]) -> RequestBuilder {
        self.http.get(self.url(segments))
    }

    fn post(&self, segments: &[&str]) -> RequestBuilder {
        self.http.post(self.url(segments))
    }
}

/// Sends a request; an answer that is not a success is an error.
async fn send(request: RequestBuilder) -> Result<Response, CallError> {
    let response = request.send().await?;
    if response.status().is_success() { Ok(response) } else { Err(refusal(response).await) }
}

/// Sends a request and reads the answer as JSON.
async fn read<T: DeserializeOwned>(request: RequestBuilder) -> Result<T, CallError> {
    Ok(send(request).await?.json().await?)
}

/// Error of a call of the API.
#[derive(Debug, thiserror::Error)]
enum CallError {
    /// No connection.
    #[error("cannot connect to the API; --url or WORKFLOW_API_URL names its address")]
    Connect(#[source] reqwest::Error),
    /// The connection broke, or the answer is not what an API answers.
    #[error("no valid answer")]
    Broken(#[source] reqwest::Error),
    /// An answer with another status than success.
    #[error("{0}")]
    Refused(Refusal),
}

impl From<reqwest::Error> for CallError {
    fn from(error: reqwest::Error) -> Self {
        if error.is_connect() { Self::Connect(error) } else { Self::Broken(error) }
    }
}

impl CallError {
    /// Whether the same request may succeed a little later.
    fn is_transient(&self) -> bool {
        match self {
            Self::Connect(_) => true,
            Self::Broken(error) => !error.is_decode(),
            Self::Refused(refusal) => matches!(
                refusal.status,
                StatusCode::TOO_MANY_REQUESTS
                    | StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT
            ),
        }
    }

    /// Status of the answer, if there was one.
    fn status(&self) -> Option<StatusCode> {
        if let Self::Refused(refusal) = self { Some(refusal.status) } else { None }
    }

    /// Pause before the next try, if the API has named one.
    fn retry_after(&self) -> Option<Duration> {
        if let Self::Refused(refusal) = self { refusal.retry_after } else { None }
    }
}

/// Answer of the API that is not a success.
#[derive(Debug)]
struct Refusal {
    url: Url,
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Option<ErrorBody>,
}

/// Body of an error answer.
#[derive(Debug, Deserialize)]
struct ErrorBody {
    detail: String,
    #[serde(default)]
    errors: Vec<FieldError>,
    request_id: Option<String>,
}

/// A problem of one member of the request.
#[derive(Debug, Deserialize)]
struct FieldError {
    field: String,
    message: String,
}

async fn refusal(response: Response) -> CallError {
    let (url, status) = (response.url().clone(), response.status());
    let retry_after = response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    // Proxies and other servers answer with other bodies; then the status is all that is known.
    let body = response.json().await.ok();
    CallError::Refused(Refusal { url, status, retry_after: retry_after.map(Duration::from_secs), body })
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} answered {}", self.url, self.status)?;
        let Some(body) = &self.body else { return write!(f, " without a reason; is this the address of the API?") };
        write!(f, ": {}", body.detail)?;
        for FieldError { field, message } in &body.errors {
            write!(f, "\n  {field}: {message}")?;
        }
        match (self.status, &body.request_id) {
            (StatusCode::UNAUTHORIZED, _) => {
                write!(f, " (--api-key-file, --token-file, WORKFLOW_API_KEY or WORKFLOW_API_TOKEN)")
            }
            (status, Some(id)) if status.is_server_error() => write!(f, " (request {id})"),
            _ => Ok(()),
        }
    }
}
