//! Configurations of push notifications: reading them, the methods about them, and how they are shown.

use serde::Serialize;
use serde_json::value::RawValue;
use url::Url;

use super::{
    AgentCall,
    errors::{A2aError, Failure, invalid_param, unrooted},
};
use crate::{
    a2a::Version,
    actions::task_pushes::{self, NewPush, SavePushError},
    agent::masked_url,
    api::vocabulary::error::ApiError,
    db::webhooks::pushes::{self as rows, PushRow},
    egress::Allow,
    input::{Node, Object, Read, to_raw},
    webhook::push::{MAX_PUSHES, TOKEN_HEADER},
};

/// Maximum lengths of the members of a configuration.
const ID_CHARS: usize = 255;
const URL_CHARS: usize = 2048;
const TOKEN_CHARS: usize = 1024;
const SCHEME_CHARS: usize = 64;
const CREDENTIALS_CHARS: usize = 4096;

/// A push configuration as clients see it: without its token and its credentials.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    task_id: Option<String>,
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    authentication: Option<Authentication>,
}

/// Authentication in the form of 1.0 or of 0.3.
#[derive(Serialize)]
#[serde(untagged)]
enum Authentication {
    One { scheme: String },
    Several { schemes: [String; 1] },
}

/// Reads a configuration of that version.
pub fn read_push(node: &Node<'_>, version: Version, allow: &Allow) -> Read<NewPush> {
    let (config, mut errors) = (node.object()?, Vec::new());
    // In JSON of a protocol buffer, an empty text is as good as none.
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let name = given(config.nullable("id", &mut errors, |node| node.string(0..=ID_CHARS)));
    let url = config.required("url", &mut errors, |node| read_url(node, allow));
    let token = given(config.nullable("token", &mut errors, |node| header_text(node, TOKEN_CHARS)));
    let authentication = config.nullable("authentication", &mut errors, |node| read_authentication(node, version));
    let Some(url) = url.filter(|_| errors.is_empty()) else { return Err(errors) };
    let (scheme, credentials) = authentication.unwrap_or_default();
    let authorization = scheme.as_ref().zip(credentials).map(|(scheme, secret)| format!("{scheme} {secret}"));
    let headers = [(TOKEN_HEADER, token), ("authorization", authorization)];
    let headers = headers.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    Ok(NewPush { name, url, scheme, headers, version })
}

/// Address to which something may be sent, as far as that is known without resolving its name.
fn read_url(node: &Node<'_>, allow: &Allow) -> Read<String> {
    node.not_blank(1..=URL_CHARS)?;
    node.parsed(|text| match Url::parse(text.trim()) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.fragment().is_none() => {
            allow.check_hook(&url).map_err(|why| format!("not allowed: {why}"))?;
            Ok(url.into())
        }
        _ => Err("must be an http or https address without a fragment".to_owned()),
    })
}

/// Text that can be in a header.
fn header_text(node: &Node<'_>, chars: usize) -> Read<String> {
    node.string(0..=chars)?;
    node.parsed(|text| {
        let is_printable = text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
        if is_printable && text.trim() == text {
            Ok(text.to_owned())
        } else {
            Err("must be printable ASCII, without spaces at its ends".to_owned())
        }
    })
}

fn read_scheme(node: &Node<'_>) -> Read<String> {
    node.not_blank(1..=SCHEME_CHARS)?;
    node.parsed(|text| {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if text.bytes().all(is_token) { Ok(text.to_owned()) } else { Err("must be the name of a scheme".to_owned()) }
    })
}

/// Scheme and credentials. Of several schemes the first one is used.
fn read_authentication(node: &Node<'_>, version: Version) -> Read<(Option<String>, Option<String>)> {
    let (object, mut errors) = (node.object()?, Vec::new());
    let scheme = match version {
        Version::V1 => object.required("scheme", &mut errors, read_scheme),
        Version::V03 => {
            object.required("schemes", &mut errors, |node| node.list()?.first().map(read_scheme).transpose()).flatten()
        }
    };
    let credentials = object.nullable("credentials", &mut errors, |node| header_text(node, CREDENTIALS_CHARS));
    let credentials = credentials.filter(|text| !text.is_empty());
    if errors.is_empty() { Ok((scheme, credentials)) } else { Err(errors) }
}

/// Task and configuration that a call names.
struct Named {
    task_id: String,
    push_id: Option<String>,
}

impl Named {
    fn read(params: &RawValue, version: Version) -> Read<Self> {
        let (task, push) = match version {
            Version::V1 => ("taskId", "id"),
            Version::V03 => ("id", "pushNotificationConfigId"),
        };
        let (params, mut errors) = (Node::new("params", params).object()?, Vec::new());
        let task_id = params.required(task, &mut errors, |node| node.not_blank(1..=ID_CHARS));
        let push_id = params.nullable(push, &mut errors, |node| node.string(0..=ID_CHARS));
        match task_id {
            Some(task_id) if errors.is_empty() => Ok(Self { task_id, push_id: push_id.filter(|id| !id.is_empty()) }),
            _ => Err(errors),
        }
    }

    /// The parameter with the id of the configuration.
    fn parameter(version: Version) -> &'static str {
        if version == Version::V1 { "id" } else { "pushNotificationConfigId" }
    }
}

/// Task and configuration that a call sets.
fn read_set(params: &Object<'_>, version: Version, allow: &Allow) -> Read<(String, NewPush)> {
    let mut errors = Vec::new();
    let task_id = params.required("taskId", &mut errors, |node| node.not_blank(1..=ID_CHARS));
    let push = params.required("pushNotificationConfig", &mut errors, |node| read_push(node, version, allow));
    match (task_id, push) {
        (Some(task_id), Some(push)) if errors.is_empty() => Ok((task_id, push)),
        _ => Err(errors),
    }
}

impl AgentCall {
    /// Sets a configuration of a task of this agent.
    pub(super) async fn set_push(&self, task_id: &str, push: NewPush) -> Result<PushRow, Failure> {
        let context = self.caller.context(&self.app);
        let row = task_pushes::set(&self.app.pool, context, task_id, push).await.map_err(not_saved)?;
        self.app.webhooks.wake();
        tracing::info!(target: "api.routes.runs", run_id = task_id, "Push notifications set");
        Ok(row)
    }

    pub(super) async fn create_push(&self) -> Result<Box<RawValue>, Failure> {
        let (params, allow) = (Node::new("params", &self.call.params), &self.app.config.egress);
        let (task_id, push) = match self.version {
            Version::V03 => params.object().and_then(|params| read_set(&params, self.version, allow)),
            // The configuration has the id of the task among its members.
            Version::V1 => {
                let task_id = params.object().and_then(|params| {
                    let mut errors = Vec::new();
                    params.required("taskId", &mut errors, |node| node.not_blank(1..=ID_CHARS)).ok_or(errors)
                });
                task_id.and_then(|task_id| Ok((task_id, read_push(&params, self.version, allow)?)))
            }
        }
        .map_err(unrooted)?;
        let row = self.task(&task_id).await?;
        let push = self.set_push(&row.run_id, push).await?;
        Ok(shown(self.version, &row.run_id, push))
    }

    pub(super) async fn get_push(&self) -> Result<Box<RawValue>, Failure> {
        let Named { task_id, push_id } = Named::read(&self.call.params, self.version).map_err(unrooted)?;
        let mut pushes = self.pushes(&task_id).await?;
        // In 0.3 the id may be left out: then it is the one that was made without an id, or the only one.
        let wanted = push_id.as_deref().unwrap_or(&task_id);
        let found = pushes.iter().position(|push| push.name == wanted);
        let found = found.or_else(|| (push_id.is_none() && pushes.len() == 1).then_some(0)).ok_or_else(|| {
            let about = [("taskId", task_id.as_str()), ("id", wanted)];
            A2aError::TaskNotFound.with("There is no such configuration of push notifications", &about)
        })?;
        Ok(shown(self.version, &task_id, pushes.swap_remove(found)))
    }

    pub(super) async fn list_pushes(&self) -> Result<Box<RawValue>, Failure> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Listed {
            configs: Vec<Box<RawValue>>,
            next_page_token: &'static str,
        }
        let Named { task_id, .. } = Named::read(&self.call.params, self.version).map_err(unrooted)?;
        let pushes = self.pushes(&task_id).await?;
        let configs = pushes.into_iter().map(|push| shown(self.version, &task_id, push)).collect();
        Ok(match self.version {
            Version::V03 => to_raw(&configs),
            // There are few, so they are one page.
            Version::V1 => to_raw(&Listed { configs, next_page_token: "" }),
        })
    }

    pub(super) async fn delete_push(&self) -> Result<Box<RawValue>, Failure> {
        let Named { task_id, push_id } = Named::read(&self.call.params, self.version).map_err(unrooted)?;
        let push_id = push_id.ok_or_else(|| invalid_param(Named::parameter(self.version), "is required"))?;
        let row = self.task(&task_id).await?;
        let context = self.caller.context(&self.app);
        task_pushes::delete(&self.app.pool, context, &row.run_id, &push_id).await.map_err(not_saved)?;
        tracing::info!(target: "api.routes.runs", run_id = row.run_id, "Push notifications deleted");
        Ok(match self.version {
            Version::V03 => RawValue::NULL.to_owned(),
            Version::V1 => crate::input::object_of([]),
        })
    }

    /// Configurations of a task of this agent.
    async fn pushes(&self, task_id: &str) -> Result<Vec<PushRow>, Failure> {
        let row = self.task(task_id).await?;
        Ok(rows::list(&self.app.pool, self.caller.organization(), &row.run_id).await?)
    }
}

fn not_saved(error: SavePushError) -> Failure {
    match error {
        SavePushError::Other(_) => {
            let text = format!("a task may have {MAX_PUSHES}; delete one, or give the id of the one to replace");
            invalid_param("pushNotificationConfig", &text).into()
        }
        other => ApiError::not_saved(other, ApiError::run_not_found, |_| ApiError::internal()).into(),
    }
}

/// A configuration in the form of the version.
fn shown(version: Version, task_id: &str, push: PushRow) -> Box<RawValue> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Nested<'a> {
        task_id: &'a str,
        push_notification_config: Config,
    }
    let authentication = push.scheme.map(|scheme| match version {
        Version::V1 => Authentication::One { scheme },
        Version::V03 => Authentication::Several { schemes: [scheme] },
    });
    let flat_id = (version == Version::V1).then(|| task_id.to_owned());
    let config = Config { id: push.name, task_id: flat_id, url: masked_url(&push.url), authentication };
    match version {
        Version::V1 => to_raw(&config),
        Version::V03 => to_raw(&Nested { task_id, push_notification_config: config }),
    }
}
