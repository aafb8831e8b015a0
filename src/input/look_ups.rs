//! Record of the members that readers look up, for the test that compares them with the OpenAPI document.

use std::{cell::RefCell, collections::BTreeMap};

use super::Object;

/// Condition on the presence of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It must be present, and not null.
    Required,
    /// It may be absent, but not null.
    Optional,
    /// It may be absent or null.
    Nullable,
}

/// Members by name.
pub type Members = BTreeMap<String, Presence>;

thread_local! {
    /// Members by the path of their object.
    static RECORD: RefCell<BTreeMap<String, Members>> = RefCell::default();
}

pub(super) fn record(object: &Object<'_>, name: &str, presence: Presence) {
    RECORD.with_borrow_mut(|record| {
        record.entry(object.path.to_string()).or_default().insert(name.to_owned(), presence);
    });
}

/// Members that the function looks up, by the path of their object.
pub fn of(read: impl FnOnce()) -> BTreeMap<String, Members> {
    RECORD.take();
    read();
    RECORD.take()
}
