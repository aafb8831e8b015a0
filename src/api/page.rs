//! The envelope of every list.

use serde::Serialize;
use utoipa::ToSchema;

use super::extract;

/// A part of a list.
#[derive(Serialize, ToSchema)]
pub struct Page<T> {
    /// The entries.
    items: Vec<T>,
    /// How many there are on all pages.
    total: i64,
    /// Which page this is, from 1.
    page: i64,
    /// How many entries a page has.
    page_size: i64,
    /// How many pages there are.
    total_pages: i64,
}

impl<T> Page<T> {
    /// The entries of the page that was asked for.
    pub fn new(items: impl IntoIterator<Item = T>, total: i64, asked: extract::Page) -> Self {
        let items = items.into_iter().collect();
        let total_pages = (total + asked.size - 1) / asked.size;
        Self { items, total, page: asked.number, page_size: asked.size, total_pages }
    }
}

/// The answer to a delete request.
#[derive(Serialize, ToSchema)]
pub struct Message {
    /// A sentence for people.
    message: &'static str,
    /// Now.
    #[schema(value_type = String, format = DateTime)]
    timestamp: crate::timestamp::Timestamp,
    /// Always null.
    #[schema(value_type = Option<Object>)]
    data: Option<()>,
}

impl Message {
    /// That sentence, now.
    #[must_use]
    pub fn new(message: &'static str) -> Self {
        Self { message, timestamp: crate::timestamp::Timestamp::now(), data: None }
    }
}
