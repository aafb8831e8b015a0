//! `/audit-logs/export`: the entries of a query as one file.

use axum::{extract::State, response::Response};
use http::{HeaderValue, header};
use serde_json::value::RawValue;

use super::{AuditEntry, AuditQuery, filter};
use crate::{
    api::vocabulary::{
        app::App,
        caller::Caller,
        cursor::ListQuery,
        error::{ApiError, ErrorBody},
        extract::Query,
        parameters, sets,
        streamed::{CHUNK, Entries},
    },
    db::{
        audit::{self, AuditRow},
        list::{PageRequest, PageStart},
    },
    input::{FieldError, to_raw},
};

/// Format of an export.
#[derive(Clone, Copy)]
enum Format {
    Csv,
    NdJson,
}

impl Format {
    fn read_format(query: &Query) -> Result<Self, ApiError> {
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

    fn head(self) -> Vec<u8> {
        match self {
            Self::Csv => csv_line(CSV_HEAD.map(str::to_owned)),
            Self::NdJson => Vec::new(),
        }
    }

    fn write(self, text: &mut Vec<u8>, rows: Vec<AuditRow>) {
        for entry in rows.into_iter().map(AuditEntry::from) {
            match self {
                Self::Csv => text.extend(csv_line(csv_fields(entry))),
                Self::NdJson => {
                    text.extend_from_slice(to_raw(&entry).get().as_bytes());
                    text.push(b'\n');
                }
            }
        }
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

/// CSV record by RFC 4180. A field that a spreadsheet would treat as a formula gets a leading apostrophe.
fn csv_line(fields: [String; 14]) -> Vec<u8> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
    let harmless = fields.map(|field| match field.chars().next() {
        Some('=' | '+' | '-' | '@' | '\t' | '\r') => format!("'{field}"),
        _ => field,
    });
    // Writing to memory does not fail, and all records have the same number of fields.
    writer
        .write_record(harmless)
        .and_then(|()| Ok(writer.flush()?))
        .map_or_else(|_| Vec::new(), |()| writer.into_inner().unwrap_or_default())
}

/// Export audit entries
///
/// All entries of a query as one file, the oldest first. It is read while it is sent. If the database becomes
/// unavailable or the caller's credentials end meanwhile, the file ends early, with an incomplete transfer.
#[utoipa::path(
    get, path = "/audit-logs/export", tag = "access",
    params(
        ("format" = Option<sets::AuditExportFormat>, Query, description = "One JSON object per line (the default), or CSV"),
        AuditQuery,
        parameters::Created,
    ),
    responses(
        (status = 200, content((String = "application/x-ndjson"), (String = "text/csv"))),
        (status = 422, body = ErrorBody),
    ),
)]
pub async fn export_audit_logs(State(app): State<App>, caller: Caller, query: Query) -> Result<Response, ApiError> {
    let format = Format::read_format(&query)?;
    let filter = filter(&caller, &mut ListQuery::new(&query))?;
    let reads = app.reads.clone();
    let read = move |start| {
        let (reads, filter) = (reads.clone(), filter.clone());
        let page = PageRequest { start, size: CHUNK };
        async move {
            let (filter, page) = (&filter, &page);
            reads.read(|mut conn| async move { audit::page(&mut conn, filter, audit::order(true), page).await }).await
        }
    };
    // The first entries are read before the answer begins, so that a failure still gives an error answer.
    let first = read(PageStart::Offset(0)).await?;
    let entries = Entries::of_list(app, caller, first, move |position| read(PageStart::After(position)));
    let mut head = format.head();
    let mut response = entries.answer(format.content_type(), move |rows: Vec<AuditRow>, _| {
        let mut text = std::mem::take(&mut head);
        format.write(&mut text, rows);
        text
    });
    response.headers_mut().insert(header::CONTENT_DISPOSITION, format.file_name());
    Ok(response)
}
