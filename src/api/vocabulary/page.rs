//! The envelope of every list.

use std::borrow::Cow;

use serde::Serialize;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ArrayBuilder, KnownFormat, Object, ObjectBuilder, Ref, RefOr, Schema, SchemaFormat, Type, schema::SchemaType,
    },
};

use super::cursor::Asked;
use crate::db::list::{Listed, Part};

/// A part of a list.
#[derive(Serialize)]
pub struct Page<T> {
    /// The entries.
    items: Vec<T>,
    /// How many there are on all pages.
    total: i64,
    /// Which page this is, from 1; with `cursor` counted from where the reader began.
    page: i64,
    /// How many entries a page has.
    page_size: i64,
    /// How many pages there are.
    total_pages: i64,
    /// For the parameter `cursor`: the page after this one; null at the end of the list.
    next_cursor: Option<String>,
    /// For the parameter `cursor`: the page before this one; null at the beginning of the list.
    prev_cursor: Option<String>,
}

/// By hand, so that a list names its entries: a derived schema has a copy of theirs.
impl<T: ToSchema> PartialSchema for Page<T> {
    fn schema() -> RefOr<Schema> {
        let number = |description: &str| {
            let int64 = SchemaFormat::KnownFormat(KnownFormat::Int64);
            ObjectBuilder::new().schema_type(Type::Integer).format(Some(int64)).description(Some(description))
        };
        let cursor = |description: &str| {
            let text = SchemaType::from_iter([Type::String, Type::Null]);
            ObjectBuilder::new().schema_type(text).description(Some(description))
        };
        let entries = ArrayBuilder::new().items(Ref::from_schema_name(T::name())).description(Some("The entries."));
        let before = "For the parameter `cursor`: the page before this one; null at the beginning of the list.";
        let members: [(&str, RefOr<Schema>); 7] = [
            ("items", entries.into()),
            ("total", number("How many entries there are on all pages.").into()),
            ("page", number("Which page this is, from 1; with `cursor` counted from where the reader began.").into()),
            ("page_size", number("How many entries a page has.").into()),
            ("total_pages", number("How many pages there are.").into()),
            (
                "next_cursor",
                cursor("For the parameter `cursor`: the page after this one; null at the end of the list.").into(),
            ),
            ("prev_cursor", cursor(before).into()),
        ];
        let page = members
            .into_iter()
            .fold(Object::builder().description(Some("A part of a list.")), |page, (name, member)| {
                page.property(name, member).required(name)
            });
        Schema::from(page).into()
    }
}

impl<T: ToSchema> ToSchema for Page<T> {
    fn name() -> Cow<'static, str> {
        format!("{}Page", T::name()).into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((T::name().into_owned(), T::schema()));
        T::schemas(schemas);
    }
}

impl<T> Page<T> {
    /// The part of the list that was asked for.
    pub fn new<R>(part: Part<R>, asked: &Asked) -> Self
    where
        R: Listed,
        T: From<R>,
    {
        let (prev_cursor, next_cursor) = asked.neighbours(&part);
        let size = asked.cut.size;
        Self {
            total: part.total,
            page: asked.number,
            page_size: size,
            total_pages: (part.total + size - 1) / size,
            items: part.rows.into_iter().map(T::from).collect(),
            next_cursor,
            prev_cursor,
        }
    }

    /// The same with other entries.
    pub fn map<U>(self, of: impl FnMut(T) -> U) -> Page<U> {
        Page {
            items: self.items.into_iter().map(of).collect(),
            total: self.total,
            page: self.page,
            page_size: self.page_size,
            total_pages: self.total_pages,
            next_cursor: self.next_cursor,
            prev_cursor: self.prev_cursor,
        }
    }

    /// The one entry that was looked up, or none on a page of that size.
    pub fn of_one(found: Option<T>, size: i64) -> Self {
        let total = i64::from(found.is_some());
        let page_size = if found.is_some() { 1 } else { size };
        let items = found.into_iter().collect();
        Self { items, total, page: 1, page_size, total_pages: total, next_cursor: None, prev_cursor: None }
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
    #[schema(value_type = Option<HashMap<String, Value>>)]
    data: Option<()>,
}

impl Message {
    /// That sentence, now.
    #[must_use]
    pub fn new(message: &'static str) -> Self {
        Self { message, timestamp: crate::timestamp::Timestamp::now(), data: None }
    }
}
