//! Masking of agents' URLs: how they are shown without credentials, and how a masked URL is read back.

use url::Url;

use super::auth::MASK;
use crate::input::{FieldError, Read};

/// Query parameters whose values are not secret: API versions, as in Azure's model addresses.
const PUBLIC_PARAMETERS: [&str; 2] = ["api-version=", "version="];

/// Masked URL, without user and password, and with asterisks for the values of its query, which may be secrets.
#[must_use]
pub fn masked_url(url: &str) -> String {
    let bare = without_user(url);
    let Some(parts) = Parts::of(&bare) else { return bare };
    let pairs: Vec<String> = parts.pairs().map(Pair::masked).collect();
    parts.with_query(&pairs)
}

/// Restores a masked URL from the stored one. Also returns whether it had masks.
pub(super) fn unmasked_url(given: &str, stored: Option<&str>) -> Read<(String, bool)> {
    let Some(parts) = Parts::of(given).filter(|parts| parts.pairs().any(|pair| pair.secret == MASK)) else {
        return Ok((given.to_owned(), false));
    };
    let mut known: Vec<Pair<'_>> =
        stored.and_then(Parts::of).map(|stored| stored.pairs().collect()).unwrap_or_default();
    let pairs = parts.pairs().map(|pair| {
        // Of several parameters with the same name, each has its own value.
        let same = known.iter().position(|known| known.name == pair.name).map(|index| known.remove(index));
        if pair.secret != MASK {
            return Ok(pair.text().to_owned());
        }
        let unknown = || {
            vec![FieldError::rule(
                "body.url",
                "has asterisks for a secret that is not stored; give its value, or export with include_secrets=true",
            )]
        };
        Ok(same.ok_or_else(unknown)?.text().to_owned())
    });
    let pairs = pairs.collect::<Read<Vec<String>>>()?;
    Ok((parts.with_query(&pairs), true))
}

fn without_user(url: &str) -> String {
    // Most URLs have no user, and parsing is expensive.
    let parsed = if url.contains('@') { Url::parse(url).ok() } else { None };
    let Some(mut bare) = parsed.filter(|url| !url.username().is_empty() || url.password().is_some()) else {
        return url.to_owned();
    };
    // Both fail only for URLs without a host, which have no user either.
    let _ = bare.set_username("");
    let _ = bare.set_password(None);
    bare.into()
}

/// URL split around its query. It is kept as text, since decoding and encoding would change other parts.
struct Parts<'a> {
    before: &'a str,
    query: &'a str,
    /// Fragment with its `#`.
    fragment: &'a str,
}

impl<'a> Parts<'a> {
    /// Returns `None` if the URL has no query.
    fn of(url: &'a str) -> Option<Self> {
        let (rest, fragment) = url.split_at(url.find('#').unwrap_or(url.len()));
        let (before, query) = rest.split_once('?')?;
        Some(Self { before, query, fragment })
    }

    fn pairs(&self) -> impl Iterator<Item = Pair<'a>> {
        self.query.split('&').map(|text| match text.find('=') {
            Some(at) => Pair { name: &text[..=at], secret: &text[at + 1..], text },
            None => Pair { name: "", secret: text, text },
        })
    }

    fn with_query(&self, pairs: &[String]) -> String {
        format!("{}?{}{}", self.before, pairs.join("&"), self.fragment)
    }
}

/// Parameter of a query. One without a name may be a secret as a whole.
#[derive(Clone, Copy)]
struct Pair<'a> {
    /// Name with its `=`.
    name: &'a str,
    secret: &'a str,
    text: &'a str,
}

impl<'a> Pair<'a> {
    fn text(self) -> &'a str {
        self.text
    }

    fn masked(self) -> String {
        let is_public = self.secret.is_empty() || PUBLIC_PARAMETERS.contains(&self.name);
        if is_public { self.text.to_owned() } else { format!("{}{MASK}", self.name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_url_shows_no_secret_and_can_be_sent_back() {
        for (stored, shown) in [
            ("http://h/p", "http://h/p"),
            ("http://u:p@h/p", "http://h/p"),
            ("http://h/p?key=s%20x&v=1#f?x", "http://h/p?key=********&v=********#f?x"),
            ("http://h/p?api-version=2024-10-21&key=s", "http://h/p?api-version=2024-10-21&key=********"),
            ("http://h/p?key=&flag&&k==", "http://h/p?key=&********&&k=********"),
            ("http://h/p?", "http://h/p?"),
            ("http://h/#a?b=c", "http://h/#a?b=c"),
            ("no URL?k=s", "no URL?k=********"),
        ] {
            assert_eq!(masked_url(stored), shown);
            let (meant, _) = unmasked_url(shown, Some(stored)).expect("all are stored");
            assert_eq!(meant, without_user(stored));
        }
    }

    #[test]
    fn asterisks_stand_for_the_value_of_the_same_name() {
        let stored = Some("http://h/?a=1&a=2&b=3&c");
        for (given, meant) in [
            ("http://h/?a=********&a=********", Some(("http://h/?a=1&a=2", true))),
            ("http://h/?a=7&a=********&d=8", Some(("http://h/?a=7&a=2&d=8", true))),
            ("http://h/x?********&b=********", Some(("http://h/x?c&b=3", true))),
            ("http://h/?b=*********", Some(("http://h/?b=*********", false))),
            ("http://h/?d=********", None),
            ("http://h/?a=********&a=********&a=********", None),
        ] {
            let found = unmasked_url(given, stored).ok();
            assert_eq!(found, meant.map(|(url, keeps)| (url.to_owned(), keeps)), "{given}");
        }
        assert!(unmasked_url("http://h/?a=********", None).is_err());
    }
}
