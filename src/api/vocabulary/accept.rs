//! Content negotiation: parser of `Accept` and `Accept-Encoding` (RFC 9110, 12.4).

use http::{HeaderMap, HeaderName};

/// Entries of the header in their order: the name in lower case and the weight, which is 1 by default. An entry with an
/// invalid weight is left out.
pub fn preferences<'h>(headers: &'h HeaderMap, header: &HeaderName) -> impl Iterator<Item = (String, f32)> + use<'h> {
    let texts = headers.get_all(header).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).filter_map(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Ok(1.0), str::parse);
        Some((name, weight.ok()?))
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, header::ACCEPT};

    use super::*;

    #[test]
    fn entries_have_a_name_and_a_weight() {
        let values = ["Text/Plain;charset=utf-8; q=0.5 ,application/json", "b\u{e4}d", "*/*;q=x", "image/*;q=0"];
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
        }
        let found: Vec<_> = preferences(&headers, &ACCEPT).collect();
        let expected = [("text/plain", 0.5), ("application/json", 1.0), ("image/*", 0.0)];
        assert_eq!(found, expected.map(|(name, weight)| (name.to_owned(), weight)));
    }
}
