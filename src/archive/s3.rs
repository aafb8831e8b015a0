//! Bucket of S3, or of a compatible server. The signatures of requests are in their addresses, which therefore appear
//! in no error and no log.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::stream;
use http::header;
use http_body_util::StreamBody;
use hyper::body::Frame;
use reqwest::{Body, Client, Response};
use rusty_s3::{Credentials, S3Action, UrlStyle, actions::ListObjectsV2};
use secrecy::ExposeSecret as _;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;

use super::{ArchiveError, Object, Spooled, object::ObjectName};
use crate::config;

/// Time limits after which a server is treated as unavailable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Time limit of one request, for an object of any size.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(10);
/// Validity of a signed address.
const VALID_FOR: Duration = Duration::from_mins(15);
/// Maximum size of an error or of a list.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// Bucket. Cheap to clone.
#[derive(Clone)]
pub(super) struct Bucket(Arc<Inner>);

struct Inner {
    bucket: rusty_s3::Bucket,
    credentials: Credentials,
    prefix: String,
    client: Client,
}

impl Bucket {
    pub(super) fn new(settings: &config::S3) -> anyhow::Result<Self> {
        let config::S3 { bucket, prefix, endpoint, region, access_key, secret_key } = settings;
        // Compatible servers seldom have a host name for each bucket. Amazon's certificates do not match names with
        // dots.
        let style = if endpoint.is_some() || bucket.contains('.') { UrlStyle::Path } else { UrlStyle::VirtualHost };
        let endpoint = match endpoint {
            Some(endpoint) => endpoint.clone(),
            None => format!("https://s3.{region}.amazonaws.com").parse().context("RUN_ARCHIVE_REGION")?,
        };
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            // The objects themselves are compressed.
            .no_gzip()
            .no_deflate()
            .build()?;
        Ok(Self(Arc::new(Inner {
            bucket: rusty_s3::Bucket::new(endpoint, style, bucket.clone(), region.clone()).context("RUN_ARCHIVE")?,
            credentials: Credentials::new(access_key.as_str(), secret_key.expose_secret()),
            prefix: prefix.clone(),
            client,
        })))
    }

    fn key(&self, name: &ObjectName) -> String {
        format!("{}{name}", self.0.prefix)
    }

    /// Stores the object and reads it back. An object that differs from the written one is deleted.
    pub(super) async fn put(&self, spooled: &Spooled) -> Result<(), ArchiveError> {
        let Inner { bucket, credentials, client, .. } = &*self.0;
        let key = self.key(spooled.name());
        let failed = ArchiveError::file("read", spooled.path());
        let file = tokio::fs::File::open(spooled.path()).await.map_err(failed)?;
        let frames = stream::try_unfold(file, |mut file| async move {
            let mut bytes = vec![0; 64 << 10];
            let length = file.read(&mut bytes).await?;
            bytes.truncate(length);
            Ok::<_, std::io::Error>((length > 0).then(|| (Frame::data(Bytes::from(bytes)), file)))
        });
        let url = bucket.put_object(Some(credentials), &key).sign(VALID_FOR);
        let request = client
            .put(url)
            .header(header::CONTENT_LENGTH, spooled.bytes())
            .header(header::CONTENT_TYPE, "application/gzip")
            .body(Body::wrap(StreamBody::new(frames)));
        answered(request, "store").await?;
        let mut hash = Sha256::new();
        let mut response = self.get(spooled.name()).await?;
        while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(error, "read"))? {
            hash.update(&chunk);
        }
        if spooled.is_same(hash.finalize().into()) {
            return Ok(());
        }
        answered(client.delete(bucket.delete_object(Some(credentials), &key).sign(VALID_FOR)), "delete").await?;
        Err(ArchiveError::NotTheSame)
    }

    pub(super) async fn get(&self, name: &ObjectName) -> Result<Response, ArchiveError> {
        let Inner { bucket, credentials, client, .. } = &*self.0;
        let key = self.key(name);
        answered(client.get(bucket.get_object(Some(credentials), &key).sign(VALID_FOR)), "read").await
    }

    pub(super) async fn list(&self) -> Result<Vec<Object>, ArchiveError> {
        let Inner { bucket, credentials, client, prefix } = &*self.0;
        let (mut objects, mut token) = (Vec::new(), None::<String>);
        loop {
            let mut action = bucket.list_objects_v2(Some(credentials));
            action.with_prefix(prefix.as_str());
            if let Some(token) = &token {
                action.with_continuation_token(token.as_str());
            }
            let mut response = answered(client.get(action.sign(VALID_FOR)), "list").await?;
            let text = text(&mut response).await?;
            let page = ListObjectsV2::parse_response(&text)
                .map_err(|_| ArchiveError::Server("the bucket's list of objects cannot be read".to_owned()))?;
            objects.extend(page.contents.into_iter().filter_map(|found| {
                let name = ObjectName::parse(found.key.strip_prefix(prefix.as_str())?)?;
                Some(Object { name, bytes: found.size.unwrap_or_default() })
            }));
            token = page.next_continuation_token;
            if token.is_none() {
                return Ok(objects);
            }
        }
    }
}

/// Sends a request, and returns its answer if it has succeeded.
async fn answered(request: reqwest::RequestBuilder, what: &str) -> Result<Response, ArchiveError> {
    let mut response = request.send().await.map_err(|error| unreachable(error, what))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    // The code is a constant of the protocol, such as NoSuchBucket; the rest can repeat parts of the request.
    let text = text(&mut response).await.unwrap_or_default();
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map(|(code, _)| code);
    let code = code.filter(|code| code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let code = code.map(|code| format!(" ({code})")).unwrap_or_default();
    Err(ArchiveError::Server(format!("cannot {what} objects of the bucket: its server answered {status}{code}")))
}

fn unreachable(error: reqwest::Error, what: &str) -> ArchiveError {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    ArchiveError::Server(format!("cannot {what} objects of the bucket: {cause}"))
}

async fn text(response: &mut Response) -> Result<String, ArchiveError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(error, "list"))? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_ANSWER_BYTES {
            return Err(ArchiveError::Server("the answer of the bucket's server is too large".to_owned()));
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
