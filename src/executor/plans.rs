//! Cache of plans. Most runs have a plan that an earlier run had; it is parsed once.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::value::RawValue;

use crate::{
    access::OrganizationId,
    cache::Cache,
    input::{member, text},
    workflow::{Plan, PlanError},
};

/// Bytes of the plans that are kept; at most twice as many. A larger plan is not kept.
const KEPT_BYTES: usize = 1 << 20;

/// Cache of the plans of all runs.
pub(super) struct Plans(Mutex<Cache<u64, Arc<KnownPlan>>>);

/// Plan with what is derived from it.
pub(super) struct KnownPlan {
    pub(super) json: Box<RawValue>,
    pub(super) plan: Arc<Plan>,
    /// `workflow_id` of the plan, if it is a text.
    pub(super) workflow_id: String,
    /// Name of the workflow, if it is a text.
    pub(super) name: Arc<str>,
    last: Mutex<Option<RunOrigin>>,
}

/// Origin of a run: the columns that runs with the same plan usually have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunOrigin {
    pub(super) organization: OrganizationId,
    pub(super) workflow_id: String,
    pub(super) workflow_name: String,
}

impl Default for Plans {
    fn default() -> Self {
        Self(Mutex::new(Cache::new(KEPT_BYTES)))
    }
}

impl Plans {
    /// Reads a plan, and returns whether it was not in the cache.
    pub(super) fn read(&self, json: &RawValue) -> Result<(Arc<KnownPlan>, bool), PlanError> {
        let mut hasher = DefaultHasher::new();
        json.get().hash(&mut hasher);
        let hash = hasher.finish();
        let cache = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = cache().get(&hash);
        if let Some(known) = found.filter(|known| known.json.get() == json.get()) {
            return Ok((known, false));
        }
        let named = |name: &str| member(json, name).and_then(text).unwrap_or_default();
        let known = Arc::new(KnownPlan {
            plan: Arc::new(Plan::parse(json)?),
            workflow_id: named("workflow_id"),
            name: named("name").into(),
            json: json.to_owned(),
            last: Mutex::default(),
        });
        let bytes = json.get().len();
        if bytes <= KEPT_BYTES {
            cache().insert(hash, Arc::clone(&known), bytes);
        }
        Ok((known, true))
    }
}

impl KnownPlan {
    /// Origin of the run that was claimed last with this plan.
    pub(super) fn last_origin(&self) -> Option<RunOrigin> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the origin of the run that was claimed last.
    pub(super) fn set_last_origin(&self, origin: RunOrigin) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(origin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_equal_plan_is_parsed_once() {
        let plans = Plans::default();
        let read = |name: &str| {
            let json = format!(r#"{{"name":"{name}","start_step":"a","steps":{{"a":{{"agent_name":"x"}}}}}}"#);
            plans.read(&RawValue::from_string(json).expect("JSON")).expect("a plan")
        };
        let (first, is_new) = read("a");
        assert!(is_new && &*first.name == "a" && first.workflow_id.is_empty());
        let (again, is_new) = read("a");
        assert!(!is_new && Arc::ptr_eq(&first, &again));
        assert!(read("b").1);
        assert!(plans.read(RawValue::NULL).is_err());
    }
}
