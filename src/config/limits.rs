//! `TRUSTED_PROXIES`, `HSTS_MAX_AGE_SECS`.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

use super::Reader;

/// What is believed of whom.
#[derive(Clone, Debug)]
pub struct Limits {
    /// `TRUSTED_PROXIES`: whose word about the client counts.
    pub trusted_proxies: TrustedProxies,
    /// `HSTS_MAX_AGE_SECS`: for how long browsers come back by TLS alone; 0: they are not told to.
    pub hsts_max_age_secs: u32,
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

impl Reader {
    pub(super) fn limits(&mut self) -> Option<Limits> {
        let trusted_proxies = self.parsed("trusted_proxies", TrustedProxies::default(), |text| {
            TrustedProxies::parse(text)
                .map_err(|entry| format!("has an entry that is no IP address or network: {entry:?}"))
        });
        // A year, as lists of such hosts ask for.
        let hsts_max_age_secs = self.number("hsts_max_age_secs", 31_536_000, 0..=63_072_000);
        Some(Limits { trusted_proxies: trusted_proxies?, hsts_max_age_secs: hsts_max_age_secs? })
    }
}
