//! Classification of addresses. Pure. Based on IANA's registries of special-purpose addresses,
//! <https://www.iana.org/assignments/iana-ipv4-special-registry> and `…ipv6-special-registry`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use url::{Host, Url};

/// Address block: an address and the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    address: IpAddr,
    bits: u8,
}

impl Block {
    /// `None` if there are more bits than the address has, or if a bit behind the prefix is set.
    pub(super) fn new(address: IpAddr, bits: u8) -> Option<Self> {
        let width = width(address);
        let rest = width.checked_sub(bits)?;
        let is_whole = number(address).checked_shr(rest.into()).unwrap_or(0).checked_shl(rest.into()).unwrap_or(0)
            == number(address);
        is_whole.then_some(Self { address, bits })
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let rest = u32::from(width(self.address) - self.bits);
        self.address.is_ipv4() == address.is_ipv4()
            && number(address).checked_shr(rest) == number(self.address).checked_shr(rest)
    }

    /// Whether the block is this one address.
    pub(super) fn is_only(&self, address: IpAddr) -> bool {
        self.bits == width(self.address) && self.address == address
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Addresses of metadata services, where clouds give virtual machines and containers their credentials.
const METADATA_V4: [Ipv4Addr; 6] = [
    Ipv4Addr::new(169, 254, 169, 254), // AWS, Azure, Google, OpenStack and others
    Ipv4Addr::new(169, 254, 170, 2),   // AWS ECS
    Ipv4Addr::new(169, 254, 170, 23),  // AWS EKS
    Ipv4Addr::new(100, 100, 100, 200), // Alibaba
    Ipv4Addr::new(168, 63, 129, 16),   // Azure's platform, from the public range
    Ipv4Addr::new(192, 0, 0, 192),     // Oracle
];
const METADATA_V6: [Ipv6Addr; 4] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),   // AWS
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),    // AWS EKS
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),    // Google
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe), // OpenStack
];

/// Whether the address is that of a metadata service.
pub(super) fn is_metadata(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => METADATA_V4.contains(&address),
        IpAddr::V6(address) => METADATA_V6.contains(&address),
    }
}

/// The IPv4 address behind an IPv6 address, if that is mapped, translated (NAT64, RFC 6052) or tunnelled (6to4, RFC
/// 3056). Any other address is returned unchanged.
pub(super) fn behind(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let v4 = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
            v4(high, low)
        }
        _ => address,
    }
}

/// Whether the host of the URL is this one, under the name `localhost` or by its address.
#[must_use]
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Reason why an address, as returned by [`behind`], is not public; `None` if it is public.
pub(super) fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        [0, ..] => Some("an unspecified"),
        [127, ..] => Some("a loopback"),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Some("a private"),
        [169, 254, ..] => Some("a link-local"),
        [100, 64..=127, ..] => Some("a shared (carrier-grade NAT)"),
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Some("a documentation"),
        [198, 18 | 19, ..] => Some("a benchmarking"),
        // Protocol assignments, and the relays of 6to4.
        [192, 0, 0, _] | [192, 88, 99, _] | [240..=255, ..] => Some("a reserved"),
        [224..=239, ..] => Some("a multicast"),
        _ => None,
    }
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some("an unspecified"),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some("a loopback"),
        [0xfc00..=0xfdff, ..] => Some("a unique local"),
        [0xfe80..=0xfebf, ..] => Some("a link-local"),
        [0xff00..=0xffff, ..] => Some("a multicast"),
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0x0fff, ..] => Some("a documentation"),
        [0x2001, 0, ..] => Some("a tunnelled (Teredo)"),
        [0x2001, 2, 0, ..] => Some("a benchmarking"),
        // Protocol assignments.
        [0x2001, 0..=0x01ff, ..] => Some("a reserved"),
        [0x2000..=0x3fff, ..] => None,
        // No other unicast addresses are in use: deprecated or local forms that wrap an IPv4 address, site-local
        // addresses, and unassigned ones.
        _ => Some("a reserved"),
    }
}
