//! Cards of A2A agents, and the versions that agents were found to speak. A card is requested beside the calls: only the
//! first calls of an agent wait for it, together and for a short time. Without a card, and whenever it cannot be read,
//! agents are called as before there were cards.

mod route;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::{HeaderMap, Method, StatusCode, header};
use serde_json::value::RawValue;
use tokio::sync::watch;
use url::Url;
use uuid::Uuid;

pub(super) use self::route::{HttpRequest, Route};
use super::agents::{Agent, Protocol};
use crate::{
    a2a::{self, Binding, Card, Operation, Signature, Version, card, request},
    access::OrganizationId,
    agent::{A2aConfig, Credentials},
    cache::Cache,
    clock::Clock,
    db::{
        self,
        agent_cards::{self, CardOwner, CardRow, Checked},
    },
    egress::{self, Egress},
    input::shorten_to,
};

/// How long the first calls of an agent wait for its card, together.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// Part of the agent's time-out that they wait at most.
const WAIT_SHARE: u32 = 4;
/// Time-out of all requests for one card.
const FETCH_TIME: Duration = Duration::from_secs(10);
/// Maximum size of a card.
const MAX_CARD_BYTES: usize = 1 << 20;
/// Minimum time between two requests for a card.
const MIN_AGE: Duration = Duration::from_mins(1);
/// Time between two requests for a card whose server names none, and after a failure.
const DEFAULT_AGE: Duration = Duration::from_mins(5);
/// Maximum time between two requests for a card.
const MAX_AGE: Duration = Duration::from_hours(24);
/// Time between two requests for the card of an agent that has none.
const WITHOUT_CARD: Duration = Duration::from_hours(1);
/// Time for which another version than the card's is spoken, once the agent has refused the card's.
const PINNED: Duration = Duration::from_hours(1);
/// Maximum number of agents that are remembered.
const MAX_AGENTS: usize = 10_000;
/// Maximum length of a problem.
const MAX_PROBLEM_CHARS: usize = 300;

/// Cards of the agents that this executor calls. Cheap to clone.
#[derive(Clone)]
pub(super) struct Cards(Arc<Shared>);

struct Shared {
    pool: db::Pool,
    egress: Egress,
    clock: Clock,
    /// Whether a changed card is an entry of the audit trail.
    audit: bool,
    slots: Mutex<Cache<(Uuid, String), Arc<Slot>>>,
}

/// What is known about one agent under one URL.
#[derive(Default)]
struct Slot {
    known: Mutex<Known>,
    /// Whether it is known if there is a card.
    is_certain: watch::Sender<bool>,
    /// Held while what has become known is written, so that a version is noted after the card that led to it.
    writes: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    card: Option<Arc<Card>>,
    /// Instant at which the card is requested again; `None`: now.
    due: Option<Instant>,
    /// Instant at which the request under way began.
    refreshing: Option<Instant>,
    /// Version that the agent speaks instead of the card's, until the instant.
    pinned: Option<(Version, Instant)>,
    /// Version in the database, and when it was written.
    noted: Option<(Version, Instant)>,
}

impl Known {
    fn set(&mut self, found: Found) {
        match found {
            Found::Card(card) => self.card = Some(Arc::new(card)),
            Found::None => self.card = None,
            Found::Unknown => {}
        }
    }

    /// Takes the version over that another executor has seen the agent speak instead of the one of its card.
    fn pin(&mut self, row: &CardRow, config: &A2aConfig, now: Instant) {
        let seen = row.protocol_seen.as_deref().and_then(Version::parse).zip(row.seen_at);
        let expected = match Found::of_row(row, config) {
            Found::Card(card) => match card.choose() {
                Ok(Some(interface)) if interface.binding != Binding::JsonRpc => return,
                Ok(interface) => interface.and_then(|interface| interface.version).unwrap_or(Version::V03),
                Err(_) => return,
            },
            // Without a card 0.3 is spoken.
            Found::None | Found::Unknown => Version::V03,
        };
        let seen = seen.filter(|(version, _)| *version != expected && self.pinned.is_none());
        let Some((version, seen_at)) = seen else { return };
        let age = (row.read_at - seen_at).to_std().unwrap_or_default();
        self.pinned = PINNED.checked_sub(age).map(|left| (version, now + left));
        // It is not noted anew, which would make the hour longer.
        self.noted = now.checked_sub(age).map(|noted_at| (version, noted_at));
    }
}

impl Slot {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cards {
    pub(super) fn new(pool: db::Pool, egress: Egress, clock: Clock, audit: bool) -> Self {
        let slots = Mutex::new(Cache::new(MAX_AGENTS));
        Self(Arc::new(Shared { pool, egress, clock, audit, slots }))
    }

    fn slot(&self, agent: &Agent) -> Arc<Slot> {
        let key = (agent.id, agent.url.as_ref().map_or_else(String::new, Url::to_string));
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(key, Arc::default)
    }

    /// The route to the agent. The error is the reason why it cannot be called.
    pub(super) async fn route(
        &self,
        agent: &Arc<Agent>,
        organization: &OrganizationId,
        config: &A2aConfig,
    ) -> Result<Route, String> {
        let own = own_url(agent)?;
        let slot = self.slot(agent);
        let began = self.refresh_if_due(&slot, agent, organization, config);
        let is_known = *slot.is_certain.borrow();
        if let Some(began) = began.filter(|_| !is_known) {
            let mut is_certain = slot.is_certain.subscribe();
            tokio::select! {
                _ = is_certain.wait_for(|certain| *certain) => {}
                () = self.0.clock.sleep_until(began + FIRST_WAIT.min(agent.timeout / WAIT_SHARE)) => {}
            }
        }
        let (card, pinned) = self.look(&slot);
        Route::decide(own, config, card.as_deref(), pinned)
    }

    /// The route for the other version, after the agent has refused that of the route.
    pub(super) fn other_route(&self, agent: &Agent, config: &A2aConfig, refused: &Route) -> Result<Route, String> {
        let (card, _) = self.look(&self.slot(agent));
        let route = Route::decide(own_url(agent)?, config, card.as_deref(), Some(refused.version.other()))?;
        Ok(Route { streams: route.streams && refused.streams, ..route })
    }

    fn look(&self, slot: &Slot) -> (Option<Arc<Card>>, Option<Version>) {
        let (now, known) = (self.0.clock.instant(), slot.known());
        (known.card.clone(), known.pinned.filter(|(_, until)| *until > now).map(|(version, _)| version))
    }

    /// Notes the version in which the agent has answered, and whether it is another one than was expected.
    pub(super) fn answered(
        &self,
        agent: &Arc<Agent>,
        organization: &OrganizationId,
        version: Version,
        is_unexpected: bool,
    ) {
        let (slot, now) = (self.slot(agent), self.0.clock.instant());
        {
            let mut known = slot.known();
            if is_unexpected {
                known.pinned = Some((version, now + PINNED));
            }
            let is_new = |(noted, at): (Version, Instant)| noted != version || now.duration_since(at) >= PINNED;
            if !known.noted.is_none_or(is_new) {
                return;
            }
            known.noted = Some((version, now));
        }
        let (pool, owner) = (self.0.pool.clone(), owner(agent, organization));
        tokio::spawn(async move {
            let _writing = slot.writes.lock().await;
            let written =
                db::bounded(async move { agent_cards::record_version(&pool, &owner, version.as_str()).await });
            if let Err(error) = written.await {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the version of an agent is not noted: {error}"
                );
            }
        });
    }

    /// Begins a request for the card, if it is due and none is under way. Returns when the request under way began.
    fn refresh_if_due(
        &self,
        slot: &Arc<Slot>,
        agent: &Arc<Agent>,
        organization: &OrganizationId,
        config: &A2aConfig,
    ) -> Option<Instant> {
        let now = self.0.clock.instant();
        let mut known = slot.known();
        if known.refreshing.is_some() || known.due.is_some_and(|due| due > now) {
            return known.refreshing;
        }
        known.refreshing = Some(now);
        drop(known);
        let (this, slot, agent, config) = (self.clone(), Arc::clone(slot), Arc::clone(agent), config.clone());
        let owner = owner(&agent, organization);
        // A task of its own, since calls may be abandoned.
        tokio::spawn(async move {
            let (found, age) = this.refresh(&slot, &owner, &agent, &config).await;
            let now = this.0.clock.instant();
            let mut known = slot.known();
            known.refreshing = None;
            known.due = Some(now + age);
            known.set(found);
            drop(known);
            slot.is_certain.send_replace(true);
        });
        Some(now)
    }

    /// The card, and how long it is used.
    async fn refresh(&self, slot: &Slot, owner: &CardOwner, agent: &Agent, config: &A2aConfig) -> (Found, Duration) {
        let (pool, id, url) = (self.0.pool.clone(), owner.agent_id, owner.url.clone());
        let row = db::bounded(async move { agent_cards::find(&pool, id, &url).await }).await.ok().flatten();
        if let Some(row) = row.as_ref().filter(|row| row.checked_at.is_some()) {
            if let Some(left) = fresh_for(row) {
                // Another executor has read it.
                slot.known().pin(row, config, self.0.clock.instant());
                return (Found::of_row(row, config), left);
            }
            // Meanwhile calls use the one that is stored.
            let mut known = slot.known();
            known.set(Found::of_row(row, config));
            known.pin(row, config, self.0.clock.instant());
            drop(known);
            slot.is_certain.send_replace(true);
        }
        let etag = row.as_ref().filter(|row| row.card.is_some()).and_then(|row| row.etag.clone());
        let fetch = Fetch { egress: &self.0.egress, agent };
        let fetched = tokio::time::timeout(FETCH_TIME, fetch.card(etag.as_deref())).await;
        let fetched = fetched.unwrap_or_else(|_| Err(NoCard::Failed("no answer in time".to_owned())));
        let (checked, found, age) = match fetched {
            Ok(Fetched::Card { card, etag, age }) => {
                let signature = Signature::of(&card, &config.card_keys);
                let found = Found::of_card(&card, signature, config);
                (Checked::Card { card, etag, signature: Some(signature.as_str()) }, found, age)
            }
            Ok(Fetched::Unchanged { age }) => {
                let found = row.as_ref().map_or(Found::Unknown, |row| Found::of_row(row, config));
                (Checked::Unchanged, found, age)
            }
            Err(NoCard::Missing(problem)) => (Checked::Missing(problem), Found::None, WITHOUT_CARD),
            Err(NoCard::Failed(problem)) => {
                tracing::debug!(
                    agent = agent.name,
                    reason = problem,
                    "the card of agent {} cannot be read",
                    agent.name
                );
                let problem = shorten_to(&agent.secrets.mask(problem), MAX_PROBLEM_CHARS).into_owned();
                let found = row.as_ref().map_or(Found::Unknown, |row| Found::of_row(row, config));
                (Checked::Failed(problem), found, DEFAULT_AGE)
            }
        };
        let _writing = slot.writes.lock().await;
        // Calls go on before it is stored.
        slot.known().set(found);
        slot.is_certain.send_replace(true);
        let (pool, owner, audit) = (self.0.pool.clone(), owner.clone(), self.0.audit);
        let written = db::bounded(async move { agent_cards::record(&pool, &owner, checked, Some(age), audit).await });
        if let Err(error) = written.await {
            tracing::debug!(error = &error as &dyn std::error::Error, "the card of an agent is not stored: {error}");
        }
        (Found::Unknown, age)
    }
}

/// How long a stored result still counts; `None`: the card has to be requested.
fn fresh_for(row: &CardRow) -> Option<Duration> {
    let age = (row.read_at - row.checked_at?).to_std().unwrap_or_default();
    let valid = row.valid_seconds.and_then(|secs| u64::try_from(secs).ok()).map_or(DEFAULT_AGE, Duration::from_secs);
    valid.checked_sub(age).filter(|left| !left.is_zero())
}

/// What is known of a card.
enum Found {
    Card(Card),
    /// The agent has none that may be used.
    None,
    /// Nothing has become known.
    Unknown,
}

impl Found {
    fn of_row(row: &CardRow, config: &A2aConfig) -> Self {
        let Some(card) = &row.card else { return Self::None };
        // The keys may have changed since it was stored.
        Self::of_card(&card.0, Signature::of(&card.0, &config.card_keys), config)
    }

    /// With keys, only a card with a valid signature is used.
    fn of_card(card: &RawValue, signature: Signature, config: &A2aConfig) -> Self {
        if config.card_keys.is_empty() || signature == Signature::Valid {
            Self::Card(Card::read(card))
        } else {
            Self::None
        }
    }
}

fn own_url(agent: &Agent) -> Result<&Url, String> {
    agent.url.as_ref().ok_or_else(|| "its URL cannot be called".to_owned())
}

fn owner(agent: &Agent, organization: &OrganizationId) -> CardOwner {
    CardOwner {
        agent_id: agent.id,
        url: agent.url.as_ref().map_or_else(String::new, Url::to_string),
        name: agent.name.clone(),
        organization: organization.clone(),
    }
}

/// Answer to a request for a card.
enum Fetched {
    Card { card: Box<RawValue>, etag: Option<String>, age: Duration },
    Unchanged { age: Duration },
}

/// Reason why there is no card.
enum NoCard {
    /// The agent has none.
    Missing(String),
    /// It cannot be read now.
    Failed(String),
}

/// Requests for the card of one agent.
struct Fetch<'a> {
    egress: &'a Egress,
    agent: &'a Agent,
}

impl Fetch<'_> {
    /// The first card that is found, or the card for authenticated clients if it names one.
    async fn card(&self, etag: Option<&str>) -> Result<Fetched, NoCard> {
        let own = own_url(self.agent).map_err(NoCard::Missing)?;
        let mut missing = None;
        for url in card::addresses(own) {
            match self.get(url, etag).await {
                Err(NoCard::Missing(why)) => missing = missing.or(Some(why)),
                Ok(Fetched::Card { card, etag, age }) => {
                    let extended = self.extended(own, &card).await;
                    return Ok(Fetched::Card { card: extended.unwrap_or(card), etag, age });
                }
                other => return other,
            }
        }
        Err(NoCard::Missing(missing.unwrap_or_default()))
    }

    async fn get(&self, url: Url, etag: Option<&str>) -> Result<Fetched, NoCard> {
        let request = HttpRequest {
            method: Method::GET,
            url,
            body: None,
            media_type: "application/json",
            accept: "application/json",
            version: None,
            headers: Vec::new(),
        };
        let response = self.send(request, etag).await?;
        let status = response.status();
        let age = age(response.headers());
        match status {
            StatusCode::NOT_MODIFIED if etag.is_some() => return Ok(Fetched::Unchanged { age }),
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::GONE => {
                return Err(NoCard::Missing(format!("the agent answers {} for its card", status.as_u16())));
            }
            status => return Err(NoCard::Failed(format!("the agent answers {} for its card", status.as_u16()))),
        }
        let etag = response.headers().get(header::ETAG).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let etag = etag.filter(|etag| etag.len() <= MAX_PROBLEM_CHARS);
        let card = object(response).await?;
        Ok(Fetched::Card { card, etag, age })
    }

    /// The card for authenticated clients, if the public one says that there is one and it can be read.
    async fn extended(&self, own: &Url, public: &RawValue) -> Option<Box<RawValue>> {
        let card = Card::read(public);
        if !card.has_extended || matches!(self.agent.credentials, Ok(Credentials::None) | Err(_)) {
            return None;
        }
        let Protocol::A2a(config) = &self.agent.protocol else { return None };
        let route = Route::decide(own, config, Some(&card), None).ok()?;
        let params = request::about(route.version, Operation::ExtendedCard, None, route.tenant.as_deref());
        let request = route.request("card", Operation::ExtendedCard, &params, None);
        let answer = object(self.send(request, None).await.ok()?).await.ok()?;
        let extended =
            if route.is_rest { answer } else { a2a::reply::rpc_result(&answer).ok()?.ok().map(ToOwned::to_owned)? };
        extended.get().starts_with('{').then_some(extended)
    }

    async fn send(&self, request: HttpRequest, etag: Option<&str>) -> Result<reqwest::Response, NoCard> {
        let none = Credentials::None;
        let credentials = self.agent.credentials.as_ref().unwrap_or(&none);
        let prepared = self.egress.request_as(request.method, request.url, credentials).await;
        let mut http = prepared.map_err(|error| NoCard::Failed(error.to_string()))?;
        http = http.header(header::CONTENT_TYPE, request.media_type).header(header::ACCEPT, request.accept);
        if let Some(version) = request.version {
            http = http.header(a2a::VERSION_HEADER, version);
        }
        if let Some(etag) = etag {
            http = http.header(header::IF_NONE_MATCH, etag);
        }
        if let Some(body) = request.body {
            http = http.body(body);
        }
        http.send().await.map_err(|error| {
            let cause = egress::cause_of(&error).unwrap_or_else(|| "no answer".to_owned());
            NoCard::Failed(format!("the card cannot be requested: {cause}"))
        })
    }
}

/// A JSON object in an answer.
async fn object(response: reqwest::Response) -> Result<Box<RawValue>, NoCard> {
    let failed = |why: String| NoCard::Failed(format!("the card cannot be read: {why}"));
    let body = egress::read_body(response, MAX_CARD_BYTES, None).await.map_err(|error| failed(error.to_string()))?;
    let card = body.json().map_err(|fault| failed(fault.to_string()))?;
    if card.get().starts_with('{') { Ok(card.to_owned()) } else { Err(failed("it is not a JSON object".to_owned())) }
}

/// How long an answer may be used, within the limits.
fn age(headers: &HeaderMap) -> Duration {
    let directives = headers.get(header::CACHE_CONTROL).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let max_age = directives.split(',').find_map(|directive| directive.trim().strip_prefix("max-age=")?.parse().ok());
    max_age.map_or(DEFAULT_AGE, |secs| Duration::from_secs(secs).clamp(MIN_AGE, MAX_AGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_used_for_as_long_as_its_server_says_within_limits() {
        for (value, expected) in [
            (None, DEFAULT_AGE),
            (Some("no-store"), DEFAULT_AGE),
            (Some("public, max-age=600"), Duration::from_mins(10)),
            (Some("max-age=0"), MIN_AGE),
            (Some("max-age=99999999"), MAX_AGE),
            (Some("max-age=soon"), DEFAULT_AGE),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(value.map(|value| (header::CACHE_CONTROL, value.parse().expect(value))));
            assert_eq!(age(&headers), expected, "{value:?}");
        }
    }
}
