//! Fair queue of execution requests that wait for a slot. Organisations take turns. Within an organisation the highest
//! priority comes first, and within a priority workflows take turns. So no organisation and no workflow with thousands
//! of runs delays the others.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, VecDeque},
    hash::Hash,
    sync::Arc,
};

use super::request::PendingRequest;
use crate::access::OrganizationId;

/// Fair queue.
#[derive(Default)]
pub(super) struct Queue {
    organizations: RoundRobin<OrganizationId, Classes>,
    count: usize,
    bytes: usize,
}

/// The requests of one organisation, by priority and workflow.
type Classes = BTreeMap<Reverse<u8>, RoundRobin<Arc<str>, VecDeque<PendingRequest>>>;

/// Round robin over keys with their entries.
struct RoundRobin<K, T> {
    /// Entries by key; none is empty.
    all: HashMap<K, T>,
    /// Keys in the order of their turns, each once.
    next: VecDeque<K>,
}

impl<K, T> Default for RoundRobin<K, T> {
    fn default() -> Self {
        Self { all: HashMap::new(), next: VecDeque::new() }
    }
}

impl<K: Clone + Eq + Hash, T: Default> RoundRobin<K, T> {
    /// Entry of a key, to be added to.
    fn of(&mut self, name: &K) -> &mut T {
        if !self.all.contains_key(name) {
            self.next.push_back(name.clone());
        }
        self.all.entry(name.clone()).or_default()
    }

    /// Takes an element of the next key for which `may_have` holds.
    fn take<R>(
        &mut self,
        may_have: impl FnMut(&K) -> bool,
        take: impl FnOnce(&mut T) -> Option<R>,
        is_empty: impl FnOnce(&T) -> bool,
    ) -> Option<R> {
        let turn = self.next.iter().position(may_have)?;
        let name = self.next.remove(turn)?;
        let one = self.all.get_mut(&name)?;
        let taken = take(one);
        if is_empty(one) {
            self.all.remove(&name);
        } else {
            self.next.push_back(name);
        }
        taken
    }
}

impl Queue {
    /// Number of requests.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Approximate memory of the requests, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a request behind the others of its workflow and priority.
    pub(super) fn push(&mut self, request: PendingRequest) {
        // All versions of a workflow share one turn.
        let workflow = Arc::clone(&request.plan.name);
        self.count += 1;
        self.bytes += request.bytes;
        let classes = self.organizations.of(&request.organization);
        classes.entry(Reverse(request.priority)).or_default().of(&workflow).push_back(request);
    }

    /// Takes the next request, of the organisations that may have a slot.
    pub(super) fn pop(&mut self, may_have: impl FnMut(&OrganizationId) -> bool) -> Option<PendingRequest> {
        let of_organization = |classes: &mut Classes| {
            let mut first = classes.first_entry()?;
            let request = first.get_mut().take(|_| true, VecDeque::pop_front, VecDeque::is_empty);
            if first.get().all.is_empty() {
                first.remove();
            }
            request
        };
        let request = self.organizations.take(may_have, of_organization, BTreeMap::is_empty)?;
        self.count -= 1;
        self.bytes -= request.bytes;
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::{executor::plans::Plans, kafka::consumer::Position};

    fn request(workflow: &str, number: usize, priority: u8) -> PendingRequest {
        let plan = format!(r#"{{"name":"{workflow}","start_step":"a","steps":{{"a":{{"agent_name":"x"}}}}}}"#);
        let plan = RawValue::from_string(plan).expect("JSON");
        PendingRequest {
            position: Position::default(),
            sent_at: None,
            bytes: 1,
            lease_token: uuid::Uuid::new_v4(),
            run_id: format!("{workflow}{number}"),
            plan: Plans::default().read(&plan).expect("a plan").0,
            input: None,
            correlation_id: None,
            traceparent: None,
            event_id: None,
            priority,
            organization: OrganizationId::default(),
        }
    }

    fn all(queue: &mut Queue) -> Vec<String> {
        std::iter::from_fn(|| queue.pop(|_| true)).map(|request| request.run_id).collect()
    }

    #[test]
    fn workflows_take_turns_and_each_keeps_its_order() {
        let mut queue = Queue::default();
        for number in 0..4 {
            queue.push(request("a", number, 5));
        }
        for number in 0..2 {
            queue.push(request("b", number, 5));
        }
        queue.push(request("c", 0, 5));
        assert_eq!(all(&mut queue), ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]);
        assert_eq!((queue.len(), queue.bytes()), (0, 0));
    }

    #[test]
    fn organisations_take_turns_however_many_workflows_they_have() {
        let mut queue = Queue::default();
        for workflow in ["a", "b", "c"] {
            for number in 0..2 {
                queue.push(request(workflow, number, 5));
            }
        }
        for number in 0..3 {
            let organization = OrganizationId::parse("acme").expect("an id");
            queue.push(PendingRequest { organization, ..request("d", number, 5) });
        }
        assert_eq!(all(&mut queue), ["a0", "d0", "b0", "d1", "c0", "d2", "a1", "b1", "c1"]);
    }

    #[test]
    fn a_priority_counts_within_its_organisation_and_without_a_slot_the_turn_is_kept() {
        let acme = OrganizationId::parse("acme").expect("an id");
        let mut queue = Queue::default();
        for number in 0..3 {
            queue.push(request("urgent", number, 9));
        }
        for (number, priority) in [(0, 0), (1, 5)] {
            queue.push(PendingRequest { organization: acme.clone(), ..request("plain", number, priority) });
        }
        let of_acme = queue.pop(|organization| *organization == acme).expect("one");
        assert_eq!(of_acme.run_id, "plain1");
        assert_eq!(all(&mut queue), ["urgent0", "plain0", "urgent1", "urgent2"]);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn a_higher_priority_comes_first_whatever_waits() {
        let mut queue = Queue::default();
        for (workflow, number, priority) in [("a", 0, 5), ("a", 1, 0), ("b", 0, 9), ("a", 2, 9), ("b", 1, 9)] {
            queue.push(request(workflow, number, priority));
        }
        assert_eq!(all(&mut queue), ["b0", "a2", "b1", "a0", "a1"]);
    }

    #[test]
    fn a_single_run_waits_for_one_other_behind_a_burst() {
        let mut queue = Queue::default();
        for number in 0..1000 {
            queue.push(request("burst", number, 5));
        }
        assert_eq!(queue.bytes(), 1000);
        queue.push(request("single", 0, 5));
        assert_eq!(all(&mut queue)[..2], ["burst0", "single0"]);
    }
}
