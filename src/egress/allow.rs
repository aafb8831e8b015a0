//! Address filter: which addresses may be called. Pure.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use url::{Host, Url};

use super::address::{self, Block};

/// Allow-list `EGRESS_ALLOW`: addresses and host names that may be called besides public addresses.
///
/// An address that hands out credentials (cloud metadata) is allowed only by an entry for exactly this address. A
/// range or a name never includes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    blocks: Vec<Block>,
    /// Host names in lower case, without a trailing dot.
    hosts: Vec<String>,
}

/// Error: an entry is neither an address, nor a range, nor a host name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("has an entry that is {1}: {0:?}")]
pub struct BadEntry(String, &'static str);

impl FromStr for Allow {
    type Err = BadEntry;

    /// Parses entries that are separated by commas: `10.0.0.0/8`, `::1`, `agent.internal`.
    fn from_str(text: &str) -> Result<Self, BadEntry> {
        let mut allow = Self::default();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let bad = |why| BadEntry(entry.to_owned(), why);
            if let Some((address, bits)) = entry.split_once('/') {
                let address: IpAddr = address.parse().map_err(|_| bad("no range of addresses"))?;
                let bits = bits.parse().map_err(|_| bad("no range of addresses"))?;
                let why = "no range of addresses, or has bits set behind its prefix";
                allow.blocks.push(Block::new(address, bits).ok_or_else(|| bad(why))?);
            } else if let Ok(address) = bare(entry).parse::<IpAddr>() {
                let bits = if address.is_ipv4() { 32 } else { 128 };
                allow.blocks.extend(Block::new(address, bits));
            } else {
                let is_name = entry.chars().all(|c| c.is_alphanumeric() || "._-".contains(c));
                match Host::parse(entry) {
                    Ok(Host::Domain(name)) if is_name => allow.hosts.push(plain(&name)),
                    _ => return Err(bad("neither an address, nor a range, nor a host name")),
                }
            }
        }
        Ok(allow)
    }
}

impl Allow {
    /// Checks whether the URL may be called, without resolving the name of its host. The error may be shown to the
    /// caller who gave the URL.
    pub fn check(&self, url: &Url) -> Result<(), String> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err("its scheme is neither http nor https".to_owned());
        }
        match url.host() {
            None => Err("it has no host".to_owned()),
            Some(Host::Domain(_)) => Ok(()),
            Some(Host::Ipv4(address)) => self.check_address(address.into()),
            Some(Host::Ipv6(address)) => self.check_address(address.into()),
        }
    }

    /// Like [`Allow::check`], for a URL that is to be stored: secrets belong in `auth_config`, which is masked and
    /// redacted.
    pub fn check_new(&self, url: &Url) -> Result<(), String> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it must not hold a user or a password; use auth_type and auth_config".to_owned());
        }
        self.check(url)
    }

    /// Like [`Allow::check_new`], for the URL of a webhook: without TLS it must lead to an address or a name that is
    /// listed. A name may lead to a listed range; that is checked where it is resolved.
    pub fn check_hook(&self, url: &Url) -> Result<(), String> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it must not hold a user or a password; use headers".to_owned());
        }
        self.check(url)?;
        if url.scheme() == "https" {
            return Ok(());
        }
        let is_listed = match url.host() {
            Some(Host::Domain(name)) => !self.blocks.is_empty() || self.hosts.contains(&plain(name)),
            Some(Host::Ipv4(address)) => self.lists("", address.into()),
            Some(Host::Ipv6(address)) => self.lists("", address.into()),
            None => false,
        };
        if is_listed { Ok(()) } else { Err("http is for addresses that EGRESS_ALLOW lists; use https".to_owned()) }
    }

    /// Whether the host or its address is listed.
    pub(super) fn lists(&self, name: &str, address: IpAddr) -> bool {
        let behind = address::behind(address);
        self.hosts.contains(&plain(name))
            || self.blocks.iter().any(|block| block.contains(address) || block.contains(behind))
    }

    /// The addresses of a host that may be called.
    pub(super) fn of_host(&self, name: &str, found: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
        let is_listed = self.hosts.contains(&plain(name));
        let may_be_called = |address: IpAddr| {
            if is_listed { self.check_metadata(address).is_ok() } else { self.check_address(address).is_ok() }
        };
        found.filter(|address| may_be_called(address.ip())).collect()
    }

    fn check_address(&self, address: IpAddr) -> Result<(), String> {
        self.check_metadata(address)?;
        let behind = address::behind(address);
        match address::special(behind) {
            None => Ok(()),
            Some(_) if self.blocks.iter().any(|block| block.contains(address) || block.contains(behind)) => Ok(()),
            Some(kind) => Err(format!("{address} is {kind} address, which EGRESS_ALLOW does not list")),
        }
    }

    fn check_metadata(&self, address: IpAddr) -> Result<(), String> {
        let behind = address::behind(address);
        let is_meant = || self.blocks.iter().any(|block| block.is_only(address) || block.is_only(behind));
        if address::is_metadata(behind) && !is_meant() {
            return Err(format!("{address} hands out credentials of the host, and EGRESS_ALLOW does not name it"));
        }
        Ok(())
    }
}

/// Removes the brackets of an IPv6 address in URL form.
fn bare(entry: &str) -> &str {
    entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry)
}

fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow(text: &str) -> Allow {
        text.parse().expect(text)
    }

    fn check(allow: &Allow, url: &str) -> Result<(), String> {
        allow.check(&Url::parse(url).expect(url))
    }

    /// Spellings of addresses that lead to the internal network.
    const INSIDE: &[&str] = &[
        "http://127.0.0.1/",
        "http://127.0.0.1:8080/x",
        "http://127.1/",
        "http://127.0.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://017700000001/",
        "http://127.0.0.1./",
        "http://127.0.0.1.:80/",
        "http://0/",
        "http://0.0.0.0/",
        "http://0.1.2.3/",
        "http://10.0.0.1/",
        "http://10.255.255.255/",
        "http://172.16.0.1/",
        "http://172.31.255.255/",
        "http://192.168.0.1/",
        "http://169.254.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "http://0251.0376.0251.0376/",
        "http://100.64.0.1/",
        "http://100.100.100.200/",
        "http://168.63.129.16/",
        "http://192.0.0.1/",
        "http://192.0.0.192/",
        "http://192.0.2.1/",
        "http://192.88.99.1/",
        "http://198.18.0.1/",
        "http://198.19.255.255/",
        "http://198.51.100.7/",
        "http://203.0.113.7/",
        "http://224.0.0.1/",
        "http://239.255.255.255/",
        "http://240.0.0.1/",
        "http://255.255.255.255/",
        // The URL parser accepts digits of other scripts, and escapes, as digits.
        "http://１２７.０.０.１/",
        "http://①②⑦.0.0.1/",
        "http://%31%32%37.0.0.1/",
        "http://127。0。0。1/",
        "http://user:secret@127.0.0.1/",
        "http://example.com@127.0.0.1/",
        "http:\\\\127.0.0.1\\",
        "http:127.0.0.1",
        "http://[::]/",
        "http://[::1]/",
        "http://[0:0:0:0:0:0:0:1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[0:0:0:0:0:ffff:a9fe:a9fe]/",
        "http://[::127.0.0.1]/",
        "http://[::10.0.0.1]/",
        "http://[::8.8.8.8]/",
        "http://[::ffff:0:127.0.0.1]/",
        "http://[64:ff9b::127.0.0.1]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[64:ff9b:1::8.8.8.8]/",
        "http://[2002:7f00:1::]/",
        "http://[2002:a9fe:a9fe::1]/",
        "http://[2002:c0a8:1:1::1]/",
        "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/",
        "http://[2001::1]/",
        "http://[2001:2::1]/",
        "http://[2001:20::1]/",
        "http://[2001:db8::1]/",
        "http://[3fff::1]/",
        "http://[100::1]/",
        "http://[5f00::1]/",
        "http://[fc00::1]/",
        "http://[fd00:ec2::254]/",
        "http://[fd20:ce::254]/",
        "http://[fe80::1]/",
        "http://[fe80::a9fe:a9fe]/",
        "http://[fec0::1]/",
        "http://[ff02::1]/",
        "http://[4000::1]/",
    ];

    const OUTSIDE: &[&str] = &[
        "http://8.8.8.8/",
        "https://1.1.1.1:8443/x",
        "http://134744072/",
        "http://9.255.255.255/",
        "http://11.0.0.0/",
        "http://172.15.255.255/",
        "http://172.32.0.0/",
        "http://100.63.255.255/",
        "http://100.128.0.0/",
        "http://192.0.1.1/",
        "http://198.17.0.1/",
        "http://198.20.0.1/",
        "http://223.255.255.255/",
        "http://[2606:4700::1111]/",
        "http://[2a00:1450::1]/",
        "http://[::ffff:8.8.8.8]/",
        "http://[64:ff9b::8.8.8.8]/",
        "http://[2002:808:808::1]/",
        // A name is checked when it is resolved.
        "http://agent.example/",
        "http://localhost/",
    ];

    #[test]
    fn internal_addresses_are_refused_in_every_form() {
        let nothing = Allow::default();
        for url in INSIDE {
            assert!(check(&nothing, url).is_err(), "{url} is {:?}", Url::parse(url).map(|url| url.to_string()));
        }
        for url in OUTSIDE {
            assert_eq!(check(&nothing, url), Ok(()), "{url}");
        }
    }

    /// Pitfall 8 of webhooks, with and without TLS.
    #[test]
    fn a_webhook_leads_to_no_internal_address_and_without_tls_to_listed_ones_only() {
        let (nothing, listed) = (Allow::default(), allow("10.0.0.0/8, receiver.internal"));
        let check = |allow: &Allow, url: &str| allow.check_hook(&Url::parse(url).expect(url)).is_ok();
        for url in INSIDE {
            assert!(!check(&nothing, url), "{url}");
            if let Some(rest) = url.strip_prefix("http://") {
                assert!(!check(&nothing, &format!("https://{rest}")), "https://{rest}");
            }
        }
        for (url, expected) in [
            ("https://93.184.215.14/", true),
            ("http://93.184.215.14/", false),
            ("http://10.1.2.3/", true),
            ("https://10.1.2.3/", true),
            ("http://[::ffff:10.1.2.3]/", true),
            ("http://192.168.1.1/", false),
            ("http://Receiver.Internal./", true),
            ("https://user:secret@example.com/", false),
            // A name may lead to a listed range; that is checked where it is resolved.
            ("http://example.com/", true),
        ] {
            assert_eq!(check(&listed, url), expected, "{url}");
        }
        assert!(!check(&nothing, "http://example.com/") && !check(&allow("other.internal"), "http://example.com/"));
        assert!(listed.lists("RECEIVER.internal", "8.8.8.8".parse().expect("an address")));
        assert!(!listed.lists("example.com", "8.8.8.8".parse().expect("an address")));
    }

    #[test]
    fn only_listed_addresses_are_allowed_besides_public_ones() {
        for (list, url, expected) in [
            ("127.0.0.0/8", "http://127.0.0.1/", true),
            ("127.0.0.0/8", "http://[::ffff:127.0.0.1]/", true),
            ("127.0.0.0/8", "http://[::1]/", false),
            ("::1", "http://[::1]/", true),
            ("[::1]", "http://[::1]/", true),
            ("127.0.0.1", "http://127.0.0.1/", true),
            ("127.0.0.1", "http://127.0.0.2/", false),
            (" 10.0.0.0/8 , 192.168.0.0/16 ", "http://192.168.7.7/", true),
            ("10.0.0.0/9", "http://10.128.0.0/", false),
            ("fc00::/7", "http://[fd12::1]/", true),
            ("64:ff9b::/96", "http://[64:ff9b::10.0.0.1]/", true),
            ("agent.internal", "http://10.0.0.1/", false),
            // Credentials are available only to an entry with the exact address.
            ("0.0.0.0/0,::/0", "http://10.0.0.1/", true),
            ("0.0.0.0/0,::/0", "http://[fd00::1]/", true),
            ("0.0.0.0/0,::/0", "http://169.254.169.254/", false),
            ("0.0.0.0/0,::/0", "http://[::ffff:169.254.169.254]/", false),
            ("0.0.0.0/0,::/0", "http://[fd00:ec2::254]/", false),
            ("169.254.0.0/16", "http://169.254.169.254/", false),
            ("169.254.169.254", "http://169.254.169.254/", true),
            ("169.254.169.254/32", "http://169.254.169.254/", true),
        ] {
            assert_eq!(check(&allow(list), url).is_ok(), expected, "{url} with {list}");
        }
    }

    #[test]
    fn a_listed_host_may_have_any_address_but_one_that_hands_out_credentials() {
        let listed = allow("Agent.Internal.");
        let found = || ["10.0.0.1:0", "169.254.169.254:0"].into_iter().map(|address| address.parse().expect(address));
        let of = |name| listed.of_host(name, found()).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(of("agent.internal"), ["10.0.0.1:0"]);
        assert_eq!(of("AGENT.internal."), ["10.0.0.1:0"]);
        assert_eq!(of("other.internal"), [""; 0]);
        assert_eq!(of("x.agent.internal"), [""; 0]);
    }

    #[test]
    fn invalid_entries_are_refused() {
        for entry in [
            "10.0.0.1/8",
            "10.0.0.0/33",
            "::/129",
            "10.0.0.0/",
            "10.0.0/8",
            "/8",
            "*",
            "*.internal",
            "http://agent",
            "agent:80",
            "0x7f.1",
            "127.1",
            "a b",
            "[::1",
            "agent.internal/8",
        ] {
            assert!(entry.parse::<Allow>().is_err(), "{entry}");
        }
        assert_eq!(allow(" , "), Allow::default());
    }

    #[test]
    fn a_new_url_has_no_user_and_no_password() {
        for (url, expected) in [
            ("http://u:p@agent.example/", false),
            ("http://u@agent.example/", false),
            ("http://:p@agent.example/", false),
            ("http://@agent.example/", true),
            ("http://agent.example/?a=b#c", true),
            ("ftp://agent.example/", false),
        ] {
            assert_eq!(Allow::default().check_new(&Url::parse(url).expect(url)).is_ok(), expected, "{url}");
        }
    }
}
