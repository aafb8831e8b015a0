//! Completion of the OpenAPI document with what many operations share.

use std::collections::HashSet;

use http::{Method, StatusCode};
use serde_json::Value;
use utoipa::openapi::{
    Content, Header, Object, OpenApi, Ref, RefOr, ResponseBuilder, Schema, Type,
    extensions::Extensions,
    path::{Operation, Parameter},
    schema::SchemaType,
};

use crate::{
    access::Permission,
    api::gate::{access, rules},
};

/// Adds what many operations share, so that no operation can lack it: the answers of `request`, which every route
/// under the prefix can give, the form of headers, and a description for each answer without one, as the
/// specification demands.
pub fn complete(document: &mut OpenApi, prefix: &str) {
    require_members(document);
    for (path, item) in &mut document.paths.paths {
        let operations = [
            (Method::GET, &mut item.get),
            (Method::PUT, &mut item.put),
            (Method::POST, &mut item.post),
            (Method::DELETE, &mut item.delete),
            (Method::PATCH, &mut item.patch),
        ];
        for (method, operation) in operations {
            let Some(operation) = operation else { continue };
            let needs = rules::needs(&method, path, prefix);
            add_common_answers(operation, needs.is_some());
            if let Some(needs) = needs {
                add_required_permissions(operation, needs);
            }
            for parameter in operation.parameters.iter_mut().flatten() {
                if let RefOr::T(parameter) = parameter {
                    shape_parameter(parameter);
                }
            }
            for (status, response) in &mut operation.responses.responses {
                let RefOr::T(response) = response else { continue };
                if response.description.is_empty() {
                    let status = StatusCode::from_bytes(status.as_bytes()).ok();
                    response.description =
                        status.and_then(|status| status.canonical_reason()).unwrap_or("Answer").into();
                }
                // A schema describes one JSON value, which a stream of events is not.
                if let Some(RefOr::T(stream)) = response.content.get_mut("text/event-stream") {
                    stream.schema = None;
                }
            }
        }
    }
}

/// Members of answers are always present, and null if they have no value. (A derived schema treats a nullable member
/// as optional; a member that some answers omit is not null there.) Members of requests may be absent.
fn require_members(document: &mut OpenApi) {
    let json = serde_json::to_value(&*document).unwrap_or_default();
    let operations = json["paths"].as_object().into_iter().flat_map(|paths| paths.values());
    let operations = operations.filter_map(Value::as_object).flat_map(|path| path.values());
    let mut sent = HashSet::new();
    for operation in operations {
        name_schemas(&operation["requestBody"], &json["components"]["schemas"], &mut sent);
    }
    let schemas = document.components.iter_mut().flat_map(|components| &mut components.schemas);
    for (_, schema) in schemas.filter(|(name, _)| !sent.contains(name.as_str())) {
        let parts = match schema {
            RefOr::T(Schema::AllOf(all)) => all.items.iter_mut().collect(),
            other => vec![other],
        };
        for part in parts {
            let RefOr::T(Schema::Object(object)) = part else { continue };
            let nullable = object.properties.iter().filter(|(_, member)| is_nullable(member));
            let absent = nullable.map(|(name, _)| name).filter(|name| !object.required.contains(name));
            let absent: Vec<String> = absent.cloned().collect();
            object.required.extend(absent);
        }
    }
}

/// Adds the names of the schemas that a part of the document refers to, directly or indirectly.
fn name_schemas<'a>(part: &'a Value, schemas: &'a Value, names: &mut HashSet<&'a str>) {
    match part {
        Value::Object(members) => {
            let name = members.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next());
            if let Some(name) = name
                && names.insert(name)
            {
                name_schemas(&schemas[name], schemas, names);
            }
            members.values().for_each(|member| name_schemas(member, schemas, names));
        }
        Value::Array(parts) => parts.iter().for_each(|part| name_schemas(part, schemas, names)),
        _ => {}
    }
}

fn is_nullable(member: &RefOr<Schema>) -> bool {
    let RefOr::T(schema) = member else { return false };
    let schema_type = match schema {
        Schema::Object(schema) => &schema.schema_type,
        Schema::Array(schema) => &schema.schema_type,
        Schema::OneOf(choice) => return choice.items.iter().any(is_nullable),
        _ => return false,
    };
    match schema_type {
        SchemaType::Type(only) => *only == Type::Null,
        SchemaType::Array(types) => types.contains(&Type::Null),
        SchemaType::AnyValue => false,
    }
}

/// An optional parameter is not nullable: no header and no query can express null.
fn shape_parameter(parameter: &mut Parameter) {
    let schema_type = match &mut parameter.schema {
        Some(RefOr::T(Schema::Object(schema))) => &mut schema.schema_type,
        Some(RefOr::T(Schema::Array(schema))) => &mut schema.schema_type,
        _ => return,
    };
    if let SchemaType::Array(types) = schema_type
        && let Some(named) = types.iter().find(|named| **named != Type::Null)
    {
        *schema_type = SchemaType::Type(named.clone());
    }
}

/// Adds the required permissions, for people and for programs.
fn add_required_permissions(operation: &mut Operation, needs: &[Permission]) {
    let permissions: Vec<&str> = needs.iter().map(|permission| permission.as_str()).collect();
    let roles = access::roles(needs);
    if !permissions.is_empty() {
        let text = format!("Needs `{}`; roles: {}.", permissions.join("`, `"), roles.join(", "));
        let description = operation.description.take().filter(|description| !description.is_empty());
        operation.description =
            Some(description.map_or(text.clone(), |description| format!("{description}\n\n{text}")));
    }
    let named = Extensions::builder().add("x-required-permissions", permissions).add("x-required-roles", roles);
    operation.extensions.get_or_insert_default().merge(named.build());
}

fn add_common_answers(operation: &mut Operation, is_business: bool) {
    let has_body = is_business && operation.request_body.is_some();
    let answers = [
        (StatusCode::BAD_REQUEST, "The body ended early, or the route accepts none", is_business),
        (StatusCode::UNAUTHORIZED, "Authentication is on, and the request has no valid token or API key", is_business),
        (StatusCode::FORBIDDEN, "The caller may not do this", is_business),
        (StatusCode::REQUEST_TIMEOUT, "The body did not arrive in time", has_body),
        (StatusCode::PAYLOAD_TOO_LARGE, "The body is larger than 1 MiB", has_body),
        (StatusCode::UNSUPPORTED_MEDIA_TYPE, "The body has a Content-Encoding", has_body),
        (StatusCode::URI_TOO_LONG, "Path and query are longer than 8 KiB", true),
        (StatusCode::TOO_MANY_REQUESTS, "A limit of the settings is exceeded", is_business),
        (
            StatusCode::INTERNAL_SERVER_ERROR,
            "An error of the service; the log has details under the `request_id`",
            is_business,
        ),
        (StatusCode::SERVICE_UNAVAILABLE, "The database is unavailable, or the service is overloaded", is_business),
    ];
    for (status, description, _) in answers.into_iter().filter(|(.., is_possible)| *is_possible) {
        operation.responses.responses.entry(status.as_str().to_owned()).or_insert_with(|| {
            let content = Content::new(Some(Ref::from_schema_name("ErrorBody")));
            let answer = ResponseBuilder::new().description(description).content("application/json", content);
            let text = || Header::new(Object::with_type(Type::String));
            let answer = match status {
                StatusCode::UNAUTHORIZED => answer.header("WWW-Authenticate", text()),
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                    answer.header("Retry-After", Header::new(Object::with_type(Type::Integer)))
                }
                _ => answer,
            };
            answer.build().into()
        });
    }
}
