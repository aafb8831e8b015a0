//! HTTP/1.1 client: one connection, without a pool.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Request of a benchmark.
pub type Call = Request<Full<Bytes>>;

/// Connection to a server.
pub struct Connection(SendRequest<Full<Bytes>>);

/// Answer without its body.
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
}

impl Connection {
    /// Opens a connection.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // It ends with the connection; a failure is reported to the request under way.
        tokio::spawn(connection);
        Ok(Self(sender))
    }

    /// Whether the server has not closed it.
    pub fn is_open(&self) -> bool {
        !self.0.is_closed()
    }

    /// Sends a request and reads the answer to its end.
    pub async fn send(&mut self, call: Call) -> Result<Answer> {
        self.0.ready().await?;
        let (parts, mut body) = self.0.send_request(call).await?.into_parts();
        while let Some(frame) = body.frame().await {
            frame?;
        }
        Ok(Answer { status: parts.status, headers: parts.headers })
    }

    /// Sends a request and returns status and body.
    pub async fn fetch(&mut self, call: Call) -> Result<(StatusCode, Bytes)> {
        self.0.ready().await?;
        let answer = self.0.send_request(call).await?;
        let status = answer.status();
        Ok((status, answer.into_body().collect().await?.to_bytes()))
    }
}

/// Server with the credentials of a caller.
#[derive(Clone, Debug)]
pub struct Server {
    /// Address.
    pub address: SocketAddr,
    host: HeaderValue,
    key: Option<HeaderValue>,
}

impl Server {
    /// Server without credentials.
    pub fn new(address: SocketAddr) -> Result<Self> {
        Ok(Self { address, host: HeaderValue::from_str(&address.to_string())?, key: None })
    }

    /// The same with an API key.
    pub fn with_key(&self, key: &str) -> Result<Self> {
        Ok(Self { key: Some(HeaderValue::from_str(key)?), ..self.clone() })
    }

    fn call(&self, method: Method, path: &str, body: Bytes) -> Call {
        let is_json = !body.is_empty();
        let mut call = Request::new(Full::new(body));
        *call.method_mut() = method;
        *call.uri_mut() = path.parse().expect("the suite writes valid paths");
        let headers = call.headers_mut();
        headers.insert(header::HOST, self.host.clone());
        if is_json {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(key) = &self.key {
            headers.insert(HeaderName::from_static("x-api-key"), key.clone());
        }
        call
    }

    /// GET request.
    pub fn get(&self, path: &str) -> Call {
        self.call(Method::GET, path, Bytes::new())
    }

    /// POST request with a JSON body.
    pub fn post(&self, path: &str, body: impl Into<Bytes>) -> Call {
        self.call(Method::POST, path, body.into())
    }

    /// Sends a request on a new connection; an error unless the answer is JSON with a status of success.
    pub async fn json(&self, call: Call) -> Result<Value> {
        let what = format!("{} {}", call.method(), call.uri());
        let (status, body) = Connection::open(self.address).await?.fetch(call).await?;
        ensure!(status.is_success(), "{what}: {status} {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).with_context(|| what)
    }
}
