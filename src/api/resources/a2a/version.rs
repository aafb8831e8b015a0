//! Versions of A2A, and the methods of each.

use http::HeaderMap;

use super::errors::A2aError;
use crate::{a2a::Version, api::vocabulary::json_rpc::RpcError, input::shorten};

/// Header that names the version.
const HEADER: &str = "a2a-version";

/// Method of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Send,
    Stream,
    Get,
    List,
    Cancel,
    Subscribe,
    CreatePush,
    GetPush,
    ListPushes,
    DeletePush,
    ExtendedCard,
}

/// Names of the methods.
const METHODS: [(Version, &str, Method); 21] = [
    (Version::V1, "SendMessage", Method::Send),
    (Version::V1, "SendStreamingMessage", Method::Stream),
    (Version::V1, "GetTask", Method::Get),
    (Version::V1, "ListTasks", Method::List),
    (Version::V1, "CancelTask", Method::Cancel),
    (Version::V1, "SubscribeToTask", Method::Subscribe),
    (Version::V1, "CreateTaskPushNotificationConfig", Method::CreatePush),
    (Version::V1, "GetTaskPushNotificationConfig", Method::GetPush),
    (Version::V1, "ListTaskPushNotificationConfigs", Method::ListPushes),
    (Version::V1, "DeleteTaskPushNotificationConfig", Method::DeletePush),
    (Version::V1, "GetExtendedAgentCard", Method::ExtendedCard),
    (Version::V03, "message/send", Method::Send),
    (Version::V03, "message/stream", Method::Stream),
    (Version::V03, "tasks/get", Method::Get),
    (Version::V03, "tasks/cancel", Method::Cancel),
    (Version::V03, "tasks/resubscribe", Method::Subscribe),
    (Version::V03, "tasks/pushNotificationConfig/set", Method::CreatePush),
    (Version::V03, "tasks/pushNotificationConfig/get", Method::GetPush),
    (Version::V03, "tasks/pushNotificationConfig/list", Method::ListPushes),
    (Version::V03, "tasks/pushNotificationConfig/delete", Method::DeletePush),
    (Version::V03, "agent/getAuthenticatedExtendedCard", Method::ExtendedCard),
];

impl Version {
    /// Member by which a client says whether it waits for the end of a task, and its value if it does.
    #[must_use]
    pub fn waiting_member(self) -> (&'static str, bool) {
        match self {
            Self::V03 => ("blocking", true),
            Self::V1 => ("returnImmediately", false),
        }
    }

    /// Member with which a client asks for push notifications.
    #[must_use]
    pub fn push_member(self) -> &'static str {
        match self {
            Self::V03 => "pushNotificationConfig",
            Self::V1 => "taskPushNotificationConfig",
        }
    }
}

/// Version that a request names, by its header or by the parameter of the same name; `None`: it names none.
fn named(headers: &HeaderMap, query: Option<&str>) -> Result<Option<Version>, RpcError> {
    let mut parameters = url::form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    let parameter =
        || parameters.find(|(name, _)| name.eq_ignore_ascii_case(HEADER)).map(|(_, value)| value.into_owned());
    let given = headers.get(HEADER).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let given = given.or_else(parameter).unwrap_or_default();
    let given = given.trim();
    // The patch version does not matter.
    let mut numbers = given.split('.');
    match (given, numbers.next(), numbers.next().unwrap_or("0")) {
        ("", ..) => Ok(None),
        (_, Some("1"), "0") => Ok(Some(Version::V1)),
        (_, Some("0"), "3") => Ok(Some(Version::V03)),
        _ => {
            let given = shorten(given);
            let text = format!("The version {given:?} is not supported; 1.0 and 0.3 are");
            Err(A2aError::VersionNotSupported.with(text, &[("supportedVersions", "1.0, 0.3")]))
        }
    }
}

/// Version and method of a call; `None`: the version has no such method. Without a named version, the name of the method
/// tells it.
pub fn method(headers: &HeaderMap, query: Option<&str>, name: &str) -> Result<Option<(Version, Method)>, RpcError> {
    let version = named(headers, query)?;
    let found = METHODS.iter().find(|(of, method, _)| *method == name && version.is_none_or(|version| version == *of));
    Ok(found.map(|(version, _, method)| (*version, *method)))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_header_or_the_name_of_the_method_tells_the_version() {
        for (header, query, name, expected) in [
            ("", None, "message/send", Ok(Some((Version::V03, Method::Send)))),
            ("", None, "SendMessage", Ok(Some((Version::V1, Method::Send)))),
            ("1.0", None, "ListTasks", Ok(Some((Version::V1, Method::List)))),
            ("1.0.1", None, "GetTask", Ok(Some((Version::V1, Method::Get)))),
            ("0.3", None, "tasks/resubscribe", Ok(Some((Version::V03, Method::Subscribe)))),
            ("0.3.0", None, "SendMessage", Ok(None)),
            ("1.0", None, "message/send", Ok(None)),
            ("", Some("A2A-Version=1.0"), "message/send", Ok(None)),
            ("", None, "tasks/list", Ok(None)),
            ("0.2.5", None, "message/send", Err(-32009)),
            ("1.1", None, "SendMessage", Err(-32009)),
            ("99.0", None, "SendMessage", Err(-32009)),
            ("x", None, "SendMessage", Err(-32009)),
        ] {
            let headers = [(HEADER.parse().expect("a name"), HeaderValue::from_static(header))].into_iter();
            let headers: HeaderMap = headers.filter(|(_, value)| !value.is_empty()).collect();
            let found = method(&headers, query, name).map_err(|error| error.code);
            assert_eq!(found, expected, "{header} {name}");
        }
    }
}
