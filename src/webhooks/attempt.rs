//! One attempt: signing, sending, and reading the beginning of the answer.

use std::{sync::Arc, time::Duration};

use http::header;
use reqwest::{RequestBuilder, Response};
use url::Url;

use crate::{
    a2a::Version,
    clock::Clock,
    db::webhooks::{
        self as rows,
        sending::{Claimed, Outcome},
    },
    egress::{self, Hooks},
    event::{DEPTH_HEADER, wire_id},
    masking::Secrets,
    timestamp::retry_after,
    trace::{self, TRACEPARENT},
    vault::Vault,
    webhook::{
        schedule::{self, Ended},
        secret::signatures,
    },
};

/// Bytes of an answer that are read, and that are stored.
const READ_BYTES: usize = 16 << 10;
const STORED_BYTES: usize = 4 << 10;
/// Characters of a header of an answer that are stored.
const HEADER_CHARS: usize = 200;
/// Header of the number of the attempt.
const ATTEMPT_HEADER: &str = "webhook-attempt";

/// What sends deliveries. Cheap to clone.
#[derive(Clone)]
pub struct Sending {
    pub(super) hooks: Hooks,
    pub(super) vault: Arc<Vault>,
    pub(super) clock: Clock,
    pub(super) schedule: Arc<[Duration]>,
}

/// Beginning of an answer.
#[derive(Default)]
struct Answer {
    content_type: Option<String>,
    retry_after: Option<String>,
    text: Option<String>,
    is_internal: bool,
}

impl Sending {
    /// Sends a delivery once, within that time.
    pub async fn attempt(&self, claimed: &Claimed, within: Duration) -> Outcome {
        let (began, started_at) = (self.clock.instant(), self.clock.now());
        let number = claimed.attempts + 1;
        let (ended, error, answer) = self.send(claimed, number, within).await;
        let asked = answer.retry_after.as_deref().and_then(|value| retry_after(value, self.clock.now()));
        let failed = usize::try_from(number - claimed.schedule_from).unwrap_or(usize::MAX);
        let pause = schedule::pause(&self.schedule, failed, (claimed.id, number), ended, asked);
        Outcome {
            delivery_id: claimed.id,
            created_at: claimed.created_at,
            webhook_id: claimed.webhook_id,
            lease: claimed.lease,
            number,
            ended,
            pause: pause.filter(|_| !ended.is_success() && !ended.is_gone() && !claimed.is_single),
            started_at: started_at.into(),
            duration: self.clock.since(began),
            error,
            content_type: answer.content_type,
            retry_after: answer.retry_after,
            answer: answer.text,
            is_internal: answer.is_internal,
            counts: !claimed.is_test,
        }
    }

    async fn send(&self, claimed: &Claimed, number: i32, within: Duration) -> (Ended, Option<String>, Answer) {
        let failed = |ended, error: &str| (ended, Some(error.to_owned()), Answer::default());
        let (request, secrets) = match self.request(claimed, number) {
            Ok(prepared) => prepared,
            Err((ended, error)) => return failed(ended, error),
        };
        let deadline = self.clock.instant() + within;
        let response = match self.clock.timeout_at(deadline, request.send()).await {
            None => return failed(Ended::Timeout, "no answer in time"),
            Some(Err(error)) if egress::was_not_allowed(&error) => return failed(Ended::NotAllowed, NOT_ALLOWED),
            Some(Err(error)) if error.is_timeout() => return failed(Ended::Timeout, "no connection in time"),
            Some(Err(error)) => {
                let cause = egress::cause_of(&error).unwrap_or_else(|| "the connection failed".to_owned());
                return failed(Ended::Network, &stored(cause.as_bytes()));
            }
            Some(Ok(response)) => response,
        };
        let status = response.status().as_u16();
        let answer = self.read(response, deadline, &secrets).await;
        let ended = Ended::Status(status);
        let error = match status {
            _ if ended.is_success() => None,
            300..=399 => Some(format!("the answer is {status}; redirects are not followed")),
            _ => Some(format!("the answer is {status}")),
        };
        (ended, error, answer)
    }

    /// The request: signed, or of a push notification with the token and the credentials of its client. With it the
    /// secrets that its answer may repeat.
    fn request(&self, claimed: &Claimed, number: i32) -> Result<(RequestBuilder, Secrets), (Ended, &'static str)> {
        let unusable = |error| (Ended::NotAllowed, error);
        let sealed = rows::open(&self.vault, claimed.push_id.unwrap_or(claimed.webhook_id), &claimed.sealed.0)
            .map_err(|_| unusable("the secret cannot be decrypted: ENCRYPTION_KEY lacks its key"))?;
        let url = Url::parse(&claimed.url).map_err(|_| unusable("the URL is not valid"))?;
        let now = self.clock.now().timestamp();
        let id = wire_id(claimed.event_id);
        let version = claimed.protocol.as_deref().and_then(Version::parse);
        let signed = version.is_none().then(|| signatures(&sealed.valid_at(now), &id, now, &claimed.body));
        let mut secrets = Secrets::default();
        secrets.add_url(&claimed.url);
        let mut request = self.hooks.post(url).map_err(|_| unusable(NOT_ALLOWED))?;
        for (name, value) in sealed.headers {
            secrets.add_header(&value);
            request = request.header(name, value);
        }
        if let Some(signed) = signed {
            request = request.header("webhook-timestamp", now).header("webhook-signature", signed);
        }
        request = request
            .header(header::CONTENT_TYPE, version.map_or("application/json", Version::notification_type))
            .header("webhook-id", id)
            .header(ATTEMPT_HEADER, number)
            .header(DEPTH_HEADER, claimed.depth);
        if let Some(run_id) = &claimed.run_id {
            request = request.header(TRACEPARENT, trace::of_run(run_id, claimed.traceparent.as_deref()));
        }
        Ok((request.body(claimed.body.clone()), secrets))
    }

    /// Reads the beginning of an answer until the deadline. The rest is not read: the connection is closed. The status has
    /// been decided already.
    async fn read(&self, mut response: Response, deadline: std::time::Instant, secrets: &Secrets) -> Answer {
        let text_of = |name| {
            let value = response.headers().get(name)?;
            Some(secrets.mask(stored(value.as_bytes())).chars().take(HEADER_CHARS).collect())
        };
        let (content_type, retry_after) = (text_of(header::CONTENT_TYPE), text_of(header::RETRY_AFTER));
        let is_internal = response.remote_addr().is_none_or(|address| !egress::is_public(address.ip()));
        let (mut bytes, mut is_whole) = (Vec::new(), false);
        while bytes.len() < READ_BYTES {
            match self.clock.timeout_at(deadline, response.chunk()).await {
                Some(Ok(Some(chunk))) => bytes.extend_from_slice(&chunk[..chunk.len().min(READ_BYTES - bytes.len())]),
                Some(Ok(None)) => {
                    is_whole = true;
                    break;
                }
                // A broken connection, or no more in time.
                Some(Err(_)) | None => break,
            }
        }
        let text = stored(&bytes);
        let mut text = if is_whole { secrets.mask(text) } else { secrets.mask_beginning(text) };
        text.truncate(text.floor_char_boundary(STORED_BYTES));
        Answer { content_type, retry_after, text: Some(text).filter(|text| !text.is_empty()), is_internal }
    }
}

const NOT_ALLOWED: &str = "the address of the URL is not allowed";

/// Text that the database can store.
fn stored(text: &[u8]) -> String {
    String::from_utf8_lossy(text).replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, SocketAddr},
        sync::Mutex,
    };

    use reqwest::dns::{Addrs, Name, Resolve, Resolving};
    use serde_json::value::RawValue;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };
    use uuid::Uuid;

    use super::*;
    use crate::egress::Allow;

    /// A name that leads somewhere else each time.
    struct Changing(Mutex<Vec<Vec<IpAddr>>>);

    impl Resolve for Changing {
        fn resolve(&self, _: Name) -> Resolving {
            let next = self.0.lock().expect("no panic").pop().unwrap_or_default();
            Box::pin(async move {
                let found: Addrs = Box::new(next.into_iter().map(|address| SocketAddr::new(address, 0)));
                Ok(found)
            })
        }
    }

    /// Pitfall 8: what a name leads to is checked at each connection, and nothing else is connected to.
    #[tokio::test]
    async fn a_name_that_leads_inside_after_its_first_delivery_is_not_followed() {
        // Every loopback address reaches it.
        let listener = TcpListener::bind("0.0.0.0:0").await.expect("a free port");
        let url = format!("http://rebound.example:{}/", listener.local_addr().expect("an address").port());
        let served = tokio::spawn(async move {
            let mut served = 0;
            while served < 2 {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let mut bytes = [0; 4096];
                while !bytes.ends_with(b"}") {
                    let length = stream.read(&mut bytes).await.expect("a request");
                    assert_ne!(length, 0, "the whole request comes");
                    bytes.rotate_left(length);
                }
                let answer = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).await.expect("it takes the answer");
                served += 1;
            }
        });
        let of = |addresses: &[&str]| addresses.iter().map(|text| text.parse().expect("an address")).collect();
        let mut answers: Vec<Vec<IpAddr>> = vec![
            of(&["127.0.0.1"]),
            of(&["127.0.0.2"]),
            of(&["::ffff:127.0.0.2", "::1"]),
            of(&["10.0.0.1", "169.254.169.254"]),
            of(&["127.0.0.2", "127.0.0.1"]),
        ];
        answers.reverse();
        let names: Arc<dyn Resolve> = Arc::new(Changing(Mutex::new(answers)));
        let allow = Arc::new("127.0.0.1/32".parse::<Allow>().expect("a range"));
        let clock = Clock::stopped();
        let sending = Sending {
            hooks: Hooks::with(&allow, &names).expect("a client"),
            vault: Arc::default(),
            clock: clock.clone(),
            schedule: [Duration::from_secs(5)].into(),
        };
        let claimed = Claimed {
            id: Uuid::nil(),
            created_at: clock.now(),
            webhook_id: Uuid::nil(),
            organization_id: "default".to_owned(),
            event_id: Uuid::nil(),
            event_type: "run.failed".to_owned(),
            run_id: None,
            body: "{}".to_owned(),
            traceparent: None,
            depth: 0,
            attempts: 0,
            schedule_from: 0,
            is_single: false,
            is_test: false,
            lease: Uuid::nil(),
            url,
            sealed: sqlx::types::Json(RawValue::from_string("{}".to_owned()).expect("JSON")),
            push_id: None,
            protocol: None,
        };
        for (number, expected) in
            [Ended::Status(204), Ended::NotAllowed, Ended::NotAllowed, Ended::NotAllowed, Ended::Status(204)]
                .into_iter()
                .enumerate()
        {
            let outcome = sending.attempt(&claimed, Duration::from_secs(15)).await;
            assert_eq!(outcome.ended, expected, "attempt {number}: {:?}", outcome.error);
            assert_eq!(outcome.pause.is_none(), outcome.ended.is_success());
        }
        served.await.expect("no other address was connected to");
    }
}
