//! JSON-RPC 2.0 request.

use serde::Serialize;

use crate::input::to_raw;

/// Body of a request.
#[derive(Serialize)]
pub(super) struct Rpc<'a, P> {
    jsonrpc: &'static str,
    id: &'a str,
    method: &'static str,
    params: P,
}

impl<'a, P: Serialize> Rpc<'a, P> {
    pub(super) fn body(id: &'a str, method: &'static str, params: P) -> String {
        to_raw(&Self { jsonrpc: "2.0", id, method, params }).get().to_owned()
    }
}
