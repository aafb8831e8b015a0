//! `/audit-logs/export`: the entries of a query as one file.

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderValue, header};
use serde_json::value::RawValue;

use super::{AuditEntry, Wanted, filter};
use crate::{
    api::vocabulary::{
        app::App,
        caller::Caller,
        error::{ApiError, ErrorBody},
        extract::Query,
        parameters, sets,
    },
    db::{
        self,
        audit::{self, AuditRow, Filter},
        list::{Cut, Listed, Order, Start},
    },
    input::{FieldError, to_raw},
};

/// Entries that are read at a time.
const CHUNK: i64 = 500;

/// How an export is written.
#[derive(Clone, Copy)]
enum Format {
    Csv,
    NdJson,
}

impl Format {
    fn asked(query: &Query) -> Result<Self, ApiError> {
        match query.text("format").unwrap_or("ndjson") {
            "csv" => Ok(Self::Csv),
            "ndjson" => Ok(Self::NdJson),
            _ => Err(FieldError::rule("query.format", "`csv` or `ndjson` is expected").into()),
        }
    }

    fn content_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Csv => "text/csv; charset=utf-8; header=present",
            Self::NdJson => "application/x-ndjson",
        })
    }

    fn file_name(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Csv => "attachment; filename=\"audit-logs.csv\"",
            Self::NdJson => "attachment; filename=\"audit-logs.ndjson\"",
        })
    }

    fn head(self) -> Bytes {
        match self {
            Self::Csv => Bytes::from(csv_line(CSV_HEAD.map(str::to_owned))),
            Self::NdJson => Bytes::new(),
        }
    }

    fn write(self, rows: Vec<AuditRow>) -> Bytes {
        let mut text = Vec::new();
        for entry in rows.into_iter().map(AuditEntry::from) {
            match self {
                Self::Csv => text.extend(csv_line(csv_fields(entry))),
                Self::NdJson => {
                    text.extend_from_slice(to_raw(&entry).get().as_bytes());
                    text.push(b'\n');
                }
            }
        }
        text.into()
    }
}

const CSV_HEAD: [&str; 14] = [
    "created_at",
    "user_id",
    "key_id",
    "address",
    "correlation_id",
    "action",
    "entity_type",
    "entity_id",
    "entity_name",
    "outcome",
    "before",
    "after",
    "id",
    "organization_id",
];

fn csv_fields(entry: AuditEntry) -> [String; 14] {
    let json = |json: Option<Box<RawValue>>| json.map(|json| json.get().to_owned()).unwrap_or_default();
    [
        entry.created_at.to_string(),
        entry.user_id.unwrap_or_default(),
        entry.key_id.map(|id| id.to_string()).unwrap_or_default(),
        entry.address.unwrap_or_default(),
        entry.correlation_id.unwrap_or_default(),
        entry.action,
        entry.entity_type,
        entry.entity_id.to_string(),
        entry.entity_name.unwrap_or_default(),
        entry.outcome,
        json(entry.before),
        json(entry.after),
        entry.id.to_string(),
        entry.organization_id,
    ]
}

/// A line by RFC 4180. What a spreadsheet would take for a formula gets an apostrophe before it.
fn csv_line(fields: [String; 14]) -> Vec<u8> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    let harmless = fields.map(|field| match field.chars().next() {
        Some('=' | '+' | '-' | '@' | '\t' | '\r') => format!("'{field}"),
        _ => field,
    });
    // Writing to memory does not fail, nor does a record of the length of all others.
    writer
        .write_record(harmless)
        .and_then(|()| Ok(writer.flush()?))
        .map_or_else(|_| Vec::new(), |()| writer.into_inner().unwrap_or_default())
}

/// Export audit entries
///
/// All entries of a query as one file, the oldest first. It is read while it is sent, and ends early if the
/// database goes away meanwhile, which shows by the broken transfer.
#[utoipa::path(
    get, path = "/audit-logs/export", tag = "access",
    params(
        ("format" = Option<sets::AuditExportFormat>, Query, description = "A JSON object a line, which is the default, or CSV"),
        Wanted,
        parameters::Created,
    ),
    responses(
        (status = 200, content((String = "application/x-ndjson"), (String = "text/csv"))),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn export_audit_logs(State(app): State<App>, caller: Caller, query: Query) -> Result<Response, ApiError> {
    let format = Format::asked(&query)?;
    let export = Export { app, filter: filter(&caller, &query)?, order: audit::order(true), format };
    // The first entries before the answer begins, so that a failure can still be one.
    let first = export.read(Start::Offset(0)).await?;
    let head = stream::iter([Ok(format.head())]);
    let chunks = stream::unfold(Some(Ok(first)), move |rows| {
        let export = export.clone();
        async move {
            let rows = match rows? {
                Ok(rows) => rows,
                Err(error) => return Some((Err(error), None)),
            };
            let next = match rows.last() {
                Some(last) => Some(export.read(Start::After(last.position(export.order.column))).await),
                None => None,
            };
            Some((Ok(export.format.write(rows)), next))
        }
    });
    let headers = [(header::CONTENT_TYPE, format.content_type()), (header::CONTENT_DISPOSITION, format.file_name())];
    Ok((headers, Body::from_stream(head.chain(chunks).fuse())).into_response())
}

/// A file that is being written.
#[derive(Clone)]
struct Export {
    app: App,
    filter: Filter,
    order: Order,
    format: Format,
}

impl Export {
    /// In a task of its own: who hangs up shall not tear a statement apart.
    async fn read(&self, start: Start) -> Result<Vec<AuditRow>, db::Error> {
        let (pool, filter, order) = (self.app.pool.clone(), self.filter.clone(), self.order);
        db::bounded(async move {
            let mut connection = pool.acquire().await?;
            audit::rows(&mut connection, &filter, order, &Cut { start, size: CHUNK }).await
        })
        .await
    }
}
