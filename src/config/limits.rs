//! `TRUSTED_PROXIES`, `HSTS_MAX_AGE_SECS`, `RATE_LIMIT_*`, `MAX_CONCURRENT_REQUESTS`,
//! `MAX_REQUEST_MEMORY_MB`, `MAX_RESPONSE_MEMORY_MB`, `QUOTA_*`: what clients may take.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::{Reader, Section};
use crate::{access::Quotas, rate::Rate};

/// What is believed of whom.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `TRUSTED_PROXIES`: whose word about the client counts.
    pub trusted_proxies: TrustedProxies,
    /// `HSTS_MAX_AGE_SECS`: for how long browsers come back by TLS alone; 0: they are not told to.
    pub hsts_max_age_secs: u32,
    /// `RATE_LIMIT_PER_PRINCIPAL`: requests of one API key or one subject of tokens.
    pub per_principal: Option<Rate>,
    /// `RATE_LIMIT_PER_ADDRESS`: requests from one address.
    pub per_address: Option<Rate>,
    /// `RATE_LIMIT_FAILED_AUTH`: wrong credentials from one address.
    pub failed_authentication: Option<Rate>,
    /// `MAX_CONCURRENT_REQUESTS`: that handlers work on at a time.
    pub max_concurrent_requests: usize,
    /// `MAX_REQUEST_MEMORY_MB`: of request bodies at a time.
    pub max_request_memory_bytes: u64,
    /// `MAX_RESPONSE_MEMORY_MB`: of answers that wait to be read.
    pub max_response_memory_bytes: u64,
}

/// Addresses of proxies in front of the service.
#[derive(Clone, Debug, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Addresses and networks with commas between. The error is the entry that is neither.
    pub fn parse(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        entries.map(|entry| network(entry).ok_or_else(|| entry.to_owned())).collect::<Result<_, _>>().map(Self)
    }

    /// Whether it is the address of one. An IPv4 address has to be in its own form, not mapped into IPv6.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// A network, or an address as one. Mapped IPv4 (`::ffff:10.0.0.0/104`) in its own form.
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
        // A year, as lists of such hosts ask for.
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

/// A number a minute, 0 for no limit. A burst of 0 is as many as in a minute.
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
