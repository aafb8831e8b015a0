//! Stream of the step attempts of a run as one JSON array. A run can have thousands of attempts with megabytes each.

use std::sync::atomic::{AtomicI64, Ordering};

use axum::response::Response;
use http::{HeaderValue, header};
use sqlx::{FromRow, postgres::PgRow};

use super::runs::wire::Step;
use crate::api::vocabulary::{
    app::App,
    caller::Caller,
    cursor::{ListQuery, ListRequest},
    error::ApiError,
    extract::Query,
    streamed::{Array, CHUNK, Entries, JSON},
};
use crate::db::{
    list::{ListRow, PageRequest, PageStart},
    runs::{self, BareStep, StepRow},
};

/// Maximum number of attempts in one array. A run has more only if `MAX_RUN_STEPS` is raised.
const MAX_ATTEMPTS: i64 = 100_000;

/// Answer with the first `MAX_ATTEMPTS` or, if a page is requested, with that page, and a `Link` to the next one.
pub async fn answer(app: App, caller: Caller, run_id: String, query: &Query) -> Result<Response, ApiError> {
    let mut parameters = ListQuery::new(query);
    let has_data = parameters.flag("data")?.unwrap_or(true);
    let ids = parameters.several("id");
    let list = ListRequest::read(&app, &parameters, &format!("steps of {run_id}")).await?;
    if has_data {
        of_rows::<StepRow>(app, caller, run_id, query, ids, list).await
    } else {
        of_rows::<BareStep>(app, caller, run_id, query, ids, list).await
    }
}

async fn of_rows<T>(
    app: App,
    caller: Caller,
    run_id: String,
    query: &Query,
    ids: Vec<String>,
    list: ListRequest,
) -> Result<Response, ApiError>
where
    T: ListRow + for<'r> FromRow<'r, PgRow> + Send + Unpin + 'static,
    Step: From<T>,
{
    let is_paged =
        ["page", "page_size", "cursor"].iter().any(|name| query.text(name).is_some_and(|text| !text.is_empty()));
    let (reads, organization, id) = (app.reads.clone(), caller.organization().clone(), run_id.clone());
    let read = move |page: PageRequest| {
        let (reads, organization, run_id, ids) = (reads.clone(), organization.clone(), id.clone(), ids.clone());
        async move {
            let (organization, run_id, ids, page) = (&organization, &run_id, &ids, &page);
            reads
                .read(|mut conn| async move { runs::steps::<T>(&mut conn, organization, run_id, ids, page).await })
                .await
        }
    };
    let chunk = PageRequest { start: PageStart::Offset(0), size: CHUNK };
    let first = read(if is_paged { list.page.clone() } else { chunk }).await?;
    if first.positions.is_empty() && !runs::exists(&app.pool, caller.organization(), &run_id).await? {
        return Err(ApiError::run_not_found());
    }
    let next = if is_paged {
        list.neighbours(&first).1.map(|cursor| query.with_cursor(&cursor))
    } else if first.next.is_some() {
        // Attempts beyond the array are read in pages.
        let last = read(PageRequest { start: PageStart::Offset(MAX_ATTEMPTS - 1), size: 1 }).await?;
        let size = app.config.pages.max_size;
        list.neighbours(&last).1.map(|cursor| format!("page_size={size}&{}", query.with_cursor(&cursor)))
    } else {
        None
    };
    let entries = if is_paged {
        Entries::of_page(app, caller, first)
    } else {
        let left = AtomicI64::new(MAX_ATTEMPTS - CHUNK);
        let behind = move |position| {
            let is_last = left.fetch_sub(CHUNK, Ordering::Relaxed) <= CHUNK;
            let page = read(PageRequest { start: PageStart::After(position), size: CHUNK });
            async move {
                let mut page = page.await?;
                page.next.take_if(|_| is_last);
                Ok(page)
            }
        };
        Entries::of_list(app, caller, first, behind)
    };
    let mut array = Array::default();
    let mut head = Some(b'[');
    let mut response = entries.answer(JSON, move |rows: Vec<T>, is_last| {
        let mut text: Vec<u8> = head.take().into_iter().collect();
        for row in rows {
            array.push(&mut text, &Step::from(row));
        }
        text.extend(is_last.then_some(b']'));
        text
    });
    let link = next.map(|query| format!("<?{query}>; rel=\"next\""));
    if let Some(link) = link.and_then(|link| HeaderValue::from_str(&link).ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}
