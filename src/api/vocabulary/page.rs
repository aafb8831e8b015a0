//! Page: the envelope of every list.

use std::{borrow::Cow, marker::PhantomData};

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header;
use serde::Serialize;
use sqlx::{FromRow, postgres::PgRow};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        ArrayBuilder, KnownFormat, Object, ObjectBuilder, Ref, RefOr, Schema, SchemaFormat, Type, schema::SchemaType,
    },
};

use super::{
    app::App,
    caller::Caller,
    cursor::ListRequest,
    streamed::{Array, Entries, JSON},
};
use crate::{
    db::list::{self, ListRow},
    input,
};

/// Schema of a page of a list; [`answer`] writes it.
pub struct Page<T>(PhantomData<T>);

/// Members of a page that follow its entries.
#[derive(Serialize)]
struct About {
    total: i64,
    total_is_exact: bool,
    page: i64,
    page_size: i64,
    total_pages: i64,
    next_cursor: Option<String>,
    prev_cursor: Option<String>,
}

impl About {
    fn of<R>(list: &ListRequest, list::Page { entries, total }: &list::Page<R>) -> Self {
        let (prev_cursor, next_cursor) = list.neighbours(entries);
        let size = list.page.size;
        Self {
            total: total.count,
            total_is_exact: total.is_exact,
            page: list.number,
            page_size: size,
            total_pages: (total.count + size - 1) / size,
            next_cursor,
            prev_cursor,
        }
    }
}

/// Answer with the requested page, whose entries `show` converts.
pub fn answer<R, T>(
    app: App,
    caller: Caller,
    list: &ListRequest,
    page: list::Page<R>,
    show: impl Fn(R) -> T + Send + 'static,
) -> Response
where
    R: ListRow + for<'r> FromRow<'r, PgRow> + Send + Unpin + 'static,
    T: Serialize,
{
    let mut writer = Writer::new(About::of(list, &page));
    Entries::of_page(app, caller, page.entries)
        .answer(JSON, move |rows, is_last| writer.write(rows.into_iter().map(&show), is_last))
}

/// Whole text of the answer; `None` if some entries are large.
pub fn whole<R, T: Serialize>(list: &ListRequest, page: list::Page<R>, show: impl Fn(R) -> T) -> Option<Bytes> {
    if !page.entries.rest.is_empty() {
        return None;
    }
    let mut writer = Writer::new(About::of(list, &page));
    Some(writer.write(page.entries.rows.into_iter().map(show), true).into())
}

/// Answer with the one entry that was found, or none, on a page of that size.
pub fn of_one(found: Option<impl Serialize>, size: i64) -> Response {
    let total = i64::from(found.is_some());
    let page_size = if found.is_some() { 1 } else { size };
    let about = About {
        total,
        total_is_exact: true,
        page: 1,
        page_size,
        total_pages: total,
        next_cursor: None,
        prev_cursor: None,
    };
    ([(header::CONTENT_TYPE, JSON)], Writer::new(about).write(found, true)).into_response()
}

/// Writer of a page.
struct Writer {
    head: Option<&'static str>,
    entries: Array,
    about: About,
}

impl Writer {
    fn new(about: About) -> Self {
        Self { head: Some("{\"items\":["), entries: Array::default(), about }
    }

    fn write<T: Serialize>(&mut self, entries: impl IntoIterator<Item = T>, is_last: bool) -> Vec<u8> {
        let mut text = self.head.take().unwrap_or_default().as_bytes().to_vec();
        for entry in entries {
            self.entries.push(&mut text, &entry);
        }
        if is_last {
            text.extend_from_slice(b"],");
            // The members of `about` follow in the same object.
            text.extend_from_slice(&input::to_raw(&self.about).get().as_bytes()[1..]);
        }
        text
    }
}

/// Written by hand, so that a list refers to the schema of its entries: a derived schema would contain a copy.
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
        let before = "For the parameter `cursor`: the previous page; null at the beginning of the list.";
        let exact = ObjectBuilder::new().schema_type(Type::Boolean).description(Some(
            "Whether `total` is exact. If not, the list has at least that many entries; counting stops at the 10 000th.",
        ));
        let members: [(&str, RefOr<Schema>); 8] = [
            ("items", entries.into()),
            ("total", number("Number of entries on all pages.").into()),
            ("total_is_exact", exact.into()),
            (
                "page",
                number("Number of this page, from 1; with `cursor` counted from the first page that was read.").into(),
            ),
            ("page_size", number("Maximum number of entries on a page.").into()),
            ("total_pages", number("Number of pages.").into()),
            ("next_cursor", cursor("For the parameter `cursor`: the next page; null at the end of the list.").into()),
            ("prev_cursor", cursor(before).into()),
        ];
        let page = members
            .into_iter()
            .fold(Object::builder().description(Some("A page of a list.")), |page, (name, member)| {
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

/// Answer to a delete request.
#[derive(Serialize, ToSchema)]
pub struct Message {
    /// Message for people.
    message: &'static str,
    /// Time of the answer.
    #[schema(value_type = String, format = DateTime)]
    timestamp: crate::timestamp::Timestamp,
    /// Always null.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    data: Option<()>,
}

impl Message {
    /// Creates a message with the current time.
    #[must_use]
    pub fn new(message: &'static str) -> Self {
        Self { message, timestamp: crate::timestamp::Timestamp::now(), data: None }
    }
}
