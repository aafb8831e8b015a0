//! Stream of the step attempts of a run as one JSON array. A run can have thousands of attempts with megabytes each.

use axum::response::Response;
use http::{HeaderValue, header};

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
    list::{PageRequest, PageStart},
    runs::{self, StepRow},
};

/// Answer with all attempts or, if a page is requested, with that page, and a `Link` to the next one.
pub async fn answer(app: App, caller: Caller, run_id: String, query: &Query) -> Result<Response, ApiError> {
    let is_paged =
        ["page", "page_size", "cursor"].iter().any(|name| query.text(name).is_some_and(|text| !text.is_empty()));
    let list = if is_paged {
        Some(ListRequest::read(&app, &ListQuery::new(query), &format!("steps of {run_id}")).await?)
    } else {
        None
    };
    let (pool, organization, id) = (app.pool.clone(), caller.organization().clone(), run_id.clone());
    let read = move |page: PageRequest| {
        let (pool, organization, run_id) = (pool.clone(), organization.clone(), id.clone());
        async move { runs::steps(&mut *pool.acquire().await?, &organization, &run_id, &page).await }
    };
    let whole = PageRequest { start: PageStart::Offset(0), size: CHUNK };
    let first = read(list.as_ref().map_or(whole, |list| list.page.clone())).await?;
    if first.positions.is_empty() && !runs::exists(&app.pool, caller.organization(), &run_id).await? {
        return Err(ApiError::run_not_found());
    }
    let (_, next) = list.as_ref().map(|list| list.neighbours(&first)).unwrap_or_default();
    let entries = if is_paged {
        Entries::of_page(app, caller, first)
    } else {
        let behind = move |position| read(PageRequest { start: PageStart::After(position), size: CHUNK });
        Entries::of_list(app, caller, first, behind)
    };
    let mut array = Array::default();
    let mut head = Some(b'[');
    let mut response = entries.answer(JSON, move |rows: Vec<StepRow>, is_last| {
        let mut text: Vec<u8> = head.take().into_iter().collect();
        for row in rows {
            array.push(&mut text, &Step::from(row));
        }
        text.extend(is_last.then_some(b']'));
        text
    });
    let link = next.map(|cursor| format!("<?{}>; rel=\"next\"", query.with_cursor(&cursor)));
    if let Some(link) = link.and_then(|link| HeaderValue::from_str(&link).ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    Ok(response)
}
