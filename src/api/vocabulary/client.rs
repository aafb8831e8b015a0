//! Client address: the peer of the connection or, if that is a trusted proxy, the address that it forwards.
//!
//! Every proxy appends the address of its peer at the right end of `X-Forwarded-For`, or of `Forwarded` (RFC 7239),
//! and keeps the rest. The list is therefore read from the right, as long as it names trusted proxies. Everything
//! left of the first other address may be forged, and is ignored.

use std::net::{IpAddr, SocketAddr};

use http::{Extensions, HeaderMap, HeaderName};

use crate::config::TrustedProxies;

const FORWARDED: HeaderName = http::header::FORWARDED;
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Address of the peer of the connection; `server` puts it into the request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// Address of the client, as far as it can be known; in the request's extensions. IPv4 is never mapped into IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

impl ClientAddress {
    /// Client address of a request with these extensions and headers; `None` if it arrived without a connection.
    #[must_use]
    pub fn of(extensions: &Extensions, headers: &HeaderMap, trusted: &TrustedProxies) -> Option<Self> {
        let peer = extensions.get::<Peer>()?.0.to_canonical();
        let mut address = peer;
        for hop in hops(headers) {
            if !trusted.contains(address) {
                break;
            }
            // An entry that is not an address ends the search: what is behind it cannot be known.
            let Some(hop) = hop else { break };
            address = hop;
        }
        Some(Self(address))
    }

    /// Network that shares a rate limit or a share of permits: an IPv4 address, or the 64 bits of IPv6 that belong to
    /// one customer.
    #[must_use]
    pub fn network(self) -> (bool, u64) {
        match self.0 {
            IpAddr::V4(v4) => (false, u64::from(v4.to_bits())),
            IpAddr::V6(v6) => (true, u64::try_from(v6.to_bits() >> 64).unwrap_or_default()),
        }
    }
}

/// Whether the client used TLS, according to a trusted proxy.
#[must_use]
pub fn came_by_tls(extensions: &Extensions, headers: &HeaderMap, trusted: &TrustedProxies) -> bool {
    let is_trusted = extensions.get::<Peer>().is_some_and(|peer| trusted.contains(peer.0.to_canonical()));
    let first = |name: &HeaderName| headers.get(name)?.to_str().ok()?.split(',').next();
    let proto = || first(&FORWARDED_PROTO).or_else(|| parameter(first(&FORWARDED)?, "proto"));
    is_trusted && proto().is_some_and(|proto| proto.trim().eq_ignore_ascii_case("https"))
}

/// Addresses that proxies have recorded, the nearest first; `None` for an entry that is not an address.
/// `X-Forwarded-For` takes precedence.
fn hops(headers: &HeaderMap) -> impl Iterator<Item = Option<IpAddr>> {
    let (name, read): (_, fn(&str) -> Option<IpAddr>) = if headers.contains_key(&FORWARDED_FOR) {
        (&FORWARDED_FOR, address)
    } else {
        (&FORWARDED, |element| address(parameter(element, "for")?))
    };
    let lines: Vec<_> = headers.get_all(name).iter().collect();
    // A comma inside of quotes separates elements too: proxies write no such commas, and a client must not be able to
    // hide what a proxy has appended.
    lines.into_iter().rev().flat_map(move |line| {
        let elements = line.to_str().unwrap_or("?").rsplit(',');
        elements.map(str::trim).filter(|element| !element.is_empty()).map(read)
    })
}

/// Value of a parameter of an element of `Forwarded`, without its quotes.
fn parameter<'a>(element: &'a str, wanted: &str) -> Option<&'a str> {
    let value = element.split(';').find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.trim().eq_ignore_ascii_case(wanted).then_some(value.trim())
    })?;
    match value.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"'),
        None => Some(value),
    }
}

/// Parses an address, with or without a port; IPv6 with or without brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).filter(|text| text.contains(':'));
    let address = bare.unwrap_or(text).parse().or_else(|_| text.parse::<SocketAddr>().map(|socket| socket.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const TRUSTED: &str = "10.0.0.0/8, 192.168.7.7, fd00::/8, ::ffff:172.16.0.0/108";

    fn headers(lines: &[(&'static str, &[u8])]) -> HeaderMap {
        let lines = lines.iter().map(|(name, value)| (*name, HeaderValue::from_bytes(value).expect("a value")));
        lines.map(|(name, value)| (HeaderName::from_static(name), value)).collect()
    }

    #[track_caller]
    fn check(peer: &str, lines: &[(&'static str, &str)], expected: &str) {
        let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
        let mut extensions = Extensions::new();
        extensions.insert(Peer(peer.parse().expect(peer)));
        let trusted = TrustedProxies::parse(TRUSTED).expect("valid");
        let found = ClientAddress::of(&extensions, &headers(&lines), &trusted).expect("there is a peer");
        assert_eq!(found.0.to_string(), expected, "{peer} {lines:?}");
    }

    #[test]
    fn an_untrusted_peer_is_the_client_whatever_its_headers_say() {
        for lines in [
            &[][..],
            &[("x-forwarded-for", "1.2.3.4")],
            &[("forwarded", "for=1.2.3.4")],
            &[("x-forwarded-for", "10.0.0.1"), ("x-real-ip", "1.2.3.4")],
        ] {
            check("9.9.9.9", lines, "9.9.9.9");
            check("11.0.0.0", lines, "11.0.0.0");
            check("2001:db8::1", lines, "2001:db8::1");
            check("::ffff:9.9.9.9", lines, "9.9.9.9");
        }
    }

    #[test]
    fn the_right_most_address_that_is_not_trusted_is_the_client() {
        for (lines, expected) in [
            (&[][..], "10.0.0.1"),
            (&[("x-forwarded-for", "1.2.3.4")], "1.2.3.4"),
            (&[("x-forwarded-for", "6.6.6.6, 1.2.3.4")], "1.2.3.4"),
            (&[("x-forwarded-for", "6.6.6.6,1.2.3.4 ,10.1.1.1, 192.168.7.7")], "1.2.3.4"),
            (&[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.2.3.4, 10.2.2.2")], "1.2.3.4"),
            (&[("x-forwarded-for", "10.9.9.9, 10.1.1.1")], "10.9.9.9"),
            (&[("x-forwarded-for", "192.168.7.8, 10.1.1.1")], "192.168.7.8"),
            (&[("x-forwarded-for", "172.16.0.9, 172.31.255.255")], "172.16.0.9"),
            (&[("x-forwarded-for", "172.32.0.1, fd00::1")], "172.32.0.1"),
            (&[("x-forwarded-for", ",, 1.2.3.4 , ,")], "1.2.3.4"),
            (&[("x-forwarded-for", "1.2.3.4:5678")], "1.2.3.4"),
            (&[("x-forwarded-for", "2001:db8::1")], "2001:db8::1"),
            (&[("x-forwarded-for", "[2001:db8::1]")], "2001:db8::1"),
            (&[("x-forwarded-for", "[2001:DB8::1]:443")], "2001:db8::1"),
            (&[("x-forwarded-for", "::ffff:1.2.3.4")], "1.2.3.4"),
            (&[("x-forwarded-for", "1.2.3.4, ::ffff:10.0.0.7")], "1.2.3.4"),
            (&[("forwarded", "for=1.2.3.4")], "1.2.3.4"),
            (&[("forwarded", "For=\"[2001:db8::1]:4711\";proto=https;by=203.0.113.43")], "2001:db8::1"),
            (&[("forwarded", "for=6.6.6.6, for = 1.2.3.4 ;host=x, for=10.1.1.1")], "1.2.3.4"),
            (&[("forwarded", "for=6.6.6.6"), ("forwarded", "by=_x;for=\"1.2.3.4:80\"")], "1.2.3.4"),
            (&[("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=6.6.6.6")], "1.2.3.4"),
        ] {
            check("10.0.0.1", lines, expected);
            check("::ffff:10.0.0.1", lines, expected);
        }
    }

    #[test]
    fn an_invalid_address_ends_the_search_at_the_last_valid_one() {
        for garbage in [
            "unknown",
            "_hidden",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.4:x",
            "1.2.3.4:99999",
            "[1.2.3.4]",
            "[::1",
            "::1]",
            "[fe80::1%eth0]",
            "0x7f.1",
            "010.0.0.1",
            "1.2.3.4 5",
            "\"1.2.3.4\"",
            "'",
            "for=1.2.3.4",
            "localhost",
        ] {
            check("10.0.0.1", &[("x-forwarded-for", garbage)], "10.0.0.1");
            check("10.0.0.1", &[("x-forwarded-for", &format!("6.6.6.6, {garbage}, 10.2.2.2"))], "10.2.2.2");
            check("10.0.0.1", &[("x-forwarded-for", &format!("{garbage}, 1.2.3.4, 10.2.2.2"))], "1.2.3.4");
        }
        for garbage in ["for=unknown", "for=_x", "proto=https", "1.2.3.4", "for", "for=\"1.2.3.4", "for=1.2.3.4\"", "="]
        {
            check("10.0.0.1", &[("forwarded", garbage)], "10.0.0.1");
            check("10.0.0.1", &[("forwarded", &format!("for=6.6.6.6, {garbage}, for=10.2.2.2"))], "10.2.2.2");
        }
        // A client's quotes do not hide what the proxy has appended.
        check("10.0.0.1", &[("forwarded", "for=\"6.6.6.6, for=1.2.3.4")], "1.2.3.4");
        check("10.0.0.1", &[("forwarded", "for=\"x, for=6.6.6.6\", for=1.2.3.4")], "1.2.3.4");
    }

    #[test]
    fn bytes_that_are_not_text_are_not_an_address() {
        let mut extensions = Extensions::new();
        extensions.insert(Peer("10.0.0.1".parse().expect("an address")));
        let trusted = TrustedProxies::parse(TRUSTED).expect("valid");
        let lines = headers(&[("x-forwarded-for", b"1.2.3.4"), ("x-forwarded-for", b"\xff\xfe")]);
        let found = ClientAddress::of(&extensions, &lines, &trusted);
        assert_eq!(found, Some(ClientAddress("10.0.0.1".parse().expect("an address"))));
        assert_eq!(ClientAddress::of(&Extensions::new(), &lines, &trusted), None);
    }

    #[test]
    fn only_a_trusted_proxy_can_say_that_the_client_came_by_tls() {
        let trusted = TrustedProxies::parse(TRUSTED).expect("valid");
        for (peer, lines, expected) in [
            ("10.0.0.1", &[("x-forwarded-proto", "https")][..], true),
            ("10.0.0.1", &[("x-forwarded-proto", "HTTPS, http")], true),
            ("10.0.0.1", &[("x-forwarded-proto", "http")], false),
            ("10.0.0.1", &[("forwarded", "for=1.2.3.4;proto=https, for=10.1.1.1;proto=http")], true),
            ("10.0.0.1", &[("forwarded", "for=1.2.3.4;proto=\"https\"")], true),
            ("10.0.0.1", &[], false),
            ("9.9.9.9", &[("x-forwarded-proto", "https")], false),
            ("9.9.9.9", &[("forwarded", "proto=https")], false),
        ] {
            let lines: Vec<_> = lines.iter().map(|(name, value): &(_, &str)| (*name, value.as_bytes())).collect();
            let mut extensions = Extensions::new();
            extensions.insert(Peer(peer.parse().expect(peer)));
            assert_eq!(came_by_tls(&extensions, &headers(&lines), &trusted), expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn an_error_names_the_entry_that_is_not_a_network() {
        for wrong in ["10.0.0.0/33", "10.0.0", "proxy.example", "10.0.0.1:80", "[::1]", "*", "10.0.0.0/-1", "::1/129"] {
            let parsed = TrustedProxies::parse(&format!("127.0.0.1, {wrong}"));
            assert_eq!(parsed.err().as_deref(), Some(wrong));
        }
        for right in ["", ",", "127.0.0.1", "10.0.0.1/8,::1", "0.0.0.0/0"] {
            assert!(TrustedProxies::parse(right).is_ok(), "{right}");
        }
    }
}
