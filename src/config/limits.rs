//! Client limits: `TRUSTED_PROXIES`, `HSTS_MAX_AGE_SECS`, `RATE_LIMIT_*`, `MAX_CONCURRENT_REQUESTS`,
//! `MAX_REQUEST_MEMORY_MB`, `MAX_RESPONSE_MEMORY_MB` and `QUOTA_*`.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::{Reader, Section};
use crate::{access::Quotas, rate::Rate};

/// Limits of requests, and the proxies that are trusted.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `TRUSTED_PROXIES`: proxies whose client address is believed.
    pub trusted_proxies: TrustedProxies,
    /// `HSTS_MAX_AGE_SECS`: `max-age` of HSTS. 0 sends no header.
    pub hsts_max_age_secs: u32,
    /// `RATE_LIMIT_PER_PRINCIPAL`: requests of one API key or one token subject.
    pub per_principal: Option<Rate>,
    /// `RATE_LIMIT_PER_ADDRESS`: requests from one address.
    pub per_address: Option<Rate>,
    /// `RATE_LIMIT_FAILED_AUTH`: failed authentications from one address.
    pub failed_authentication: Option<Rate>,
    /// `MAX_CONCURRENT_REQUESTS`: requests that handlers process at a time.
    pub max_concurrent_requests: usize,
    /// `MAX_REQUEST_MEMORY_MB`: memory of all request bodies at a time.
    pub max_request_memory_bytes: u64,
    /// `MAX_RESPONSE_MEMORY_MB`: memory of all responses that clients have not read yet.
    pub max_response_memory_bytes: u64,
}

/// Addresses of proxies in front of the service.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Parses comma-separated addresses and networks. The error is the invalid entry.
    pub fn parse(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(|entry| network(entry).ok_or_else(|| entry.to_owned())).collect::<Result<_, _>>().map(Self)
    }

    /// Whether the address belongs to a trusted proxy. An IPv4 address must be in its own form, not mapped into IPv6.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// Parses a network or a single address. Mapped IPv4 (`::ffff:10.0.0.0/104`) becomes IPv4.
fn network(text: &str) -> Option<IpNet> {
    let network = text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
    let mapped = match network {
        IpNet::V6(v6) => v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    match mapped {
        Some((address, prefix)) => Ipv4Net::new(address, prefix).ok().map(IpNet::V4),
        None => Some(network),
    }
}

impl Section for Limits {
    fn read(reader: &mut Reader) -> Option<Self> {
        let trusted_proxies = reader.parsed("trusted_proxies", TrustedProxies::default(), |text| {
            TrustedProxies::parse(text)
                .map_err(|entry| format!("has an entry that is no IP address or network: {entry:?}"))
        });
        // One year, as HSTS preload lists require.
        let hsts_max_age_secs = reader.number("hsts_max_age_secs", 31_536_000, 0..=63_072_000);
        let burst = reader.number("rate_limit_burst", 0, 0..=Rate::MAX);
        let per_principal = rate(reader, "rate_limit_per_principal", 0, burst);
        let per_address = rate(reader, "rate_limit_per_address", 0, burst);
        let failed_authentication = rate(reader, "rate_limit_failed_auth", 300, Some(0));
        let max_concurrent_requests = reader.number("max_concurrent_requests", 4096, 1..=100_000);
        let max_request_memory_mb = reader.number("max_request_memory_mb", 64, 16..=65_536_u64);
        let max_response_memory_mb = reader.number("max_response_memory_mb", 64, 16..=65_536_u64);
        Some(Self {
            trusted_proxies: trusted_proxies?,
            hsts_max_age_secs: hsts_max_age_secs?,
            per_principal: per_principal?,
            per_address: per_address?,
            failed_authentication: failed_authentication?,
            max_concurrent_requests: max_concurrent_requests?,
            max_request_memory_bytes: max_request_memory_mb? << 20,
            max_response_memory_bytes: max_response_memory_mb? << 20,
        })
    }
}

/// Requests a minute; 0 means no limit. A burst of 0 means one minute's requests.
#[expect(clippy::option_option, reason = "no limit is a value, and not that there is a problem")]
fn rate(reader: &mut Reader, name: &str, default: u32, burst: Option<u32>) -> Option<Option<Rate>> {
    let per_minute = reader.number(name, default, 0..=Rate::MAX)?;
    let burst = if burst? == 0 { per_minute } else { burst? };
    Some((per_minute > 0).then_some(Rate { per_minute, burst }))
}

impl Section for Quotas {
    fn read(reader: &mut Reader) -> Option<Self> {
        let mut quota = |name| {
            reader.parsed(name, None, |value| match value.parse() {
                Ok(number @ 0..) => Ok(Some(number)),
                _ => Err(format!("must be a whole number from 0 to {}, not {value:?}", i32::MAX)),
            })
        };
        let (agents, workflows) = (quota("quota_agents"), quota("quota_workflows"));
        let (api_keys, queued_runs) = (quota("quota_api_keys"), quota("quota_queued_runs"));
        Some(Self { agents: agents?, workflows: workflows?, api_keys: api_keys?, queued_runs: queued_runs? })
    }
}
