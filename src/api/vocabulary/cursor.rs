//! Pagination: by page number or by signed cursor.
//!
//! A cursor is opaque to clients: base64url of a signature and of a position. The signature also covers the list with
//! its filters and its order. A cursor of another query is refused, and so is a forged one: the content of a cursor
//! always has the types that the database compares with.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    app::App,
    error::ApiError,
    extract::Query,
    signing::{Key, SIGNATURE_BYTES},
};
use crate::{
    access::OrganizationId,
    db::list::{Entries, EntryId, MAX_PAGE_DEPTH, PageRequest, PageStart, Position, SortValue},
    input::{self, FieldError},
    timestamp::Timestamp,
};

/// Content of a cursor.
#[derive(Serialize, Deserialize)]
struct Cursor {
    /// Position of the entry next to the page.
    #[serde(rename = "p")]
    position: Position,
    /// Whether the page ends before the entry; otherwise it begins after it.
    #[serde(rename = "b")]
    is_before: bool,
    /// Number of the page, counted from the first page that was read.
    #[serde(rename = "n")]
    number: i64,
}

/// Reader of a list's parameters. A cursor is bound to those that are read here, in the order in which they are read.
pub struct ListQuery<'q> {
    query: &'q Query,
    given: Vec<(String, &'q str)>,
}

impl<'q> ListQuery<'q> {
    /// Reader of this query.
    #[must_use]
    pub fn new(query: &'q Query) -> Self {
        Self { query, given: Vec::new() }
    }

    /// The parameter, if it is present and not empty.
    pub fn text(&mut self, name: &str) -> Option<&'q str> {
        let text = self.query.text(name)?;
        self.given.push((name.to_owned(), text));
        Some(text)
    }

    /// The comma-separated values of the parameter, without empty ones.
    pub fn several(&mut self, name: &str) -> Vec<String> {
        let texts = self.text(name).into_iter().flat_map(|text| text.split(','));
        texts.filter(|text| !text.is_empty()).map(str::to_owned).collect()
    }

    /// The parameter as a boolean.
    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        match self.text(name) {
            None => Ok(None),
            Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(_) => {
                let message = "Input should be a valid boolean, unable to interpret input";
                Err(FieldError::new(format!("query.{name}"), "bool_parsing", message).into())
            }
        }
    }

    /// Both ends of a time span, `NAME_after` and `NAME_before`.
    pub fn span(&mut self, name: &str) -> Result<(Option<Timestamp>, Option<Timestamp>), ApiError> {
        Ok((self.instant(&format!("{name}_after"))?, self.instant(&format!("{name}_before"))?))
    }

    /// Both ends of the time span of creation: `from` and `to`, or `created_after` and `created_before`. Of two names of the
    /// same end one is allowed.
    pub fn created(&mut self) -> Result<(Option<Timestamp>, Option<Timestamp>), ApiError> {
        let (after, before) = self.span("created")?;
        let (from, to) = (self.instant("from")?, self.instant("to")?);
        for (name, other, is_double) in [
            ("from", "created_after", from.is_some() && after.is_some()),
            ("to", "created_before", to.is_some() && before.is_some()),
        ] {
            if is_double {
                let text = format!("is another name of {other}, and cannot be given together with it");
                return Err(FieldError::rule(format!("query.{name}"), text).into());
            }
        }
        Ok((from.or(after), to.or(before)))
    }

    fn instant(&mut self, name: &str) -> Result<Option<Timestamp>, ApiError> {
        Ok(self.text(name).map(|text| input::query_datetime(name, text)).transpose()?.map(Timestamp::from))
    }

    /// Whether `sort_order` is `asc`.
    pub fn is_ascending(&mut self) -> bool {
        self.text("sort_order").is_some_and(|order| order.eq_ignore_ascii_case("asc"))
    }

    fn fingerprint(&self, list: &str) -> [u8; 32] {
        // Encoded as JSON, so that different queries never give the same text.
        Sha256::digest(input::to_raw(&(list, &self.given)).get()).into()
    }
}

/// Requested page of a list.
#[derive(Debug)]
pub struct ListRequest {
    /// Number of the page, from 1.
    pub number: i64,
    /// Page request for the database.
    pub page: PageRequest,
    /// Hash of the query, which the signature of a cursor covers.
    query: [u8; 32],
    key: Key,
}

impl ListRequest {
    /// Reads `page`, `page_size` and `cursor`. A cursor is bound to `list` and to the parameters that were read before.
    pub async fn read(app: &App, parameters: &ListQuery<'_>, list: &str) -> Result<Self, ApiError> {
        let query = parameters.query;
        let pages = app.config.pages;
        let mut errors = Vec::new();
        let mut number =
            |name: &str, default: i64| match query.given(name).map(|text| input::query_int(name, text, 1..=i64::MAX)) {
                None => default,
                Some(Ok(number)) => number,
                Some(Err(error)) => {
                    errors.push(error);
                    default
                }
            };
        let page = number("page", 1);
        let size = number("page_size", pages.default_size).min(pages.max_size);
        let fingerprint = parameters.fingerprint(list);
        let cursor = query.text("cursor");
        if cursor.is_some() && query.text("page").is_some() {
            errors.push(FieldError::rule("query.cursor", "`cursor` and `page` exclude each other"));
        } else if page > 1 && page.checked_mul(size).is_none_or(|depth| depth > MAX_PAGE_DEPTH) {
            let message = format!(
                "Input should be less than or equal to {}; further pages are reached by `cursor`, with the \
                 `next_cursor` of the page before",
                (MAX_PAGE_DEPTH / size).max(1)
            );
            errors.push(FieldError::new("query.page", "less_than_equal", message));
        }
        if !errors.is_empty() {
            return Err(errors.into());
        }
        let key = app.signing.key().await?;
        let Some(cursor) = cursor else {
            let request = PageRequest { start: PageStart::Offset((page - 1) * size), size };
            return Ok(Self { number: page, page: request, query: fingerprint, key });
        };
        let cursor = decode(cursor, &fingerprint, &key).filter(|cursor| fits(&cursor.position)).ok_or_else(|| {
            let detail = "The cursor is damaged, or belongs to another list, other filters or another order; begin \
                          again without it";
            ApiError::bad_request("invalid_cursor", detail)
        })?;
        let start =
            if cursor.is_before { PageStart::Before(cursor.position) } else { PageStart::After(cursor.position) };
        Ok(Self { number: cursor.number.max(1), page: PageRequest { start, size }, query: fingerprint, key })
    }

    /// Key for shared reads: the same for requests of the same page of an organisation's list.
    #[must_use]
    pub fn key(&self, organization: &OrganizationId) -> [u8; 32] {
        let Self { number, page: PageRequest { start, size }, query, .. } = self;
        let start = match start {
            PageStart::Offset(offset) => (*offset, None, false),
            PageStart::After(position) => (0, Some(position), false),
            PageStart::Before(position) => (0, Some(position), true),
        };
        Sha256::digest(input::to_raw(&(query, organization.as_str(), number, size, start)).get()).into()
    }

    /// Cursors of the previous and the next page; `None` where the list ends.
    #[must_use]
    pub fn neighbours<T>(&self, page: &Entries<T>) -> (Option<String>, Option<String>) {
        let cursor = |position: Option<&Position>, is_before: bool, number: i64| {
            let cursor = Cursor { position: position?.clone(), is_before, number };
            Some(encode(&cursor, &self.query, &self.key))
        };
        let (previous, next) = (page.previous.as_ref(), page.next.as_ref());
        (cursor(previous, true, (self.number - 1).max(1)), cursor(next, false, self.number.saturating_add(1)))
    }
}

/// Whether the database can compare with the position: it refuses NUL, which no entry contains.
fn fits(position: &Position) -> bool {
    let has_nul = |text: &str| text.contains('\0');
    !matches!(&position.value, SortValue::Text(text) if has_nul(text))
        && !matches!(&position.id, EntryId::Text(id) if has_nul(id))
}

fn encode(cursor: &Cursor, query: &[u8; 32], key: &Key) -> String {
    let text = input::to_raw(cursor);
    let mut bytes = key.sign(query, text.get().as_bytes()).to_vec();
    bytes.extend_from_slice(text.get().as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn decode(cursor: &str, query: &[u8; 32], key: &Key) -> Option<Cursor> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
    let (signature, text) = bytes.split_at_checked(SIGNATURE_BYTES)?;
    key.verifies(query, text, signature).then(|| serde_json::from_slice(text).ok())?
}

#[cfg(test)]
mod tests {
    use super::{super::signing::tests::key, *};

    fn cursor() -> Cursor {
        let value = SortValue::Text("ä\"".to_owned());
        let position = Position { segment: "FAILED".to_owned(), value, id: EntryId::Uuid(uuid::Uuid::nil()) };
        Cursor { position, is_before: true, number: 7 }
    }

    #[test]
    fn an_encoded_cursor_is_decoded_unchanged() {
        let decoded = decode(&encode(&cursor(), &[1; 32], &key(1)), &[1; 32], &key(1)).expect("our own cursor");
        assert_eq!((decoded.position, decoded.is_before, decoded.number), (cursor().position, true, 7));
    }

    #[test]
    fn a_cursor_is_bound_to_the_parameters_that_are_read() {
        let query =
            Query::parse("status=FAILED,RUNNING&other=1&name=&created_before=60&sort_order=asc").expect("a query");
        let mut parameters = ListQuery::new(&query);
        assert_eq!(parameters.several("status"), ["FAILED", "RUNNING"]);
        assert_eq!(parameters.text("name"), None);
        assert!(parameters.span("created").is_ok_and(|span| span.0.is_none() && span.1.is_some()));
        assert!(parameters.is_ascending());
        let bound = r#"["runs",[["status","FAILED,RUNNING"],["created_before","60"],["sort_order","asc"]]]"#;
        assert_eq!(parameters.fingerprint("runs")[..], Sha256::digest(bound)[..]);
    }

    #[test]
    fn every_changed_character_is_detected() {
        let text = encode(&cursor(), &[1; 32], &key(1));
        assert!(decode(&text, &[2; 32], &key(1)).is_none(), "another query");
        assert!(decode(&text, &[1; 32], &key(2)).is_none(), "another key");
        for index in 0..text.len() {
            for other in ["", "A", "-", "=", "\u{e4}"] {
                let mut changed = text.clone();
                changed.replace_range(index..=index, other);
                assert!(changed == text || decode(&changed, &[1; 32], &key(1)).is_none(), "{changed}");
            }
        }
    }
}
