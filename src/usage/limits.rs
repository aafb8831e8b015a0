//! Limits of a run, and whether a call fits into what is left of them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Cost;
use crate::input::{FieldError, Node, Object, Read};

/// Maximum of the tokens.
const MAX_TOKENS: i64 = 1_000_000_000_000;
/// Maximum of the cost.
const MAX_COST: u64 = 1_000_000_000;
/// Decimal places of the cost.
const COST_PLACES: u32 = 6;
/// Maximum of the calls and of the steps.
const MAX_COUNT: i64 = 100_000_000;
/// Maximum of the seconds: a year, as for `MAX_WORKFLOW_DURATION_MS`.
const MAX_SECONDS: i64 = 31_536_000;

/// Limits of a run. They hold for it together with its sub-runs. A member that is `None` is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Tokens of inputs and outputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<i64>,
    /// Cost, by the prices of the agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// Calls of agents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<i64>,
    /// Attempts of steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<i64>,
    /// Execution time in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<i64>,
}

/// What can be limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitKind {
    /// [`Limits::tokens`].
    Tokens,
    /// [`Limits::cost`].
    Cost,
    /// [`Limits::calls`].
    Calls,
    /// [`Limits::steps`].
    Steps,
    /// [`Limits::seconds`].
    Seconds,
}

impl LimitKind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Tokens, Self::Cost, Self::Calls, Self::Steps, Self::Seconds];

    /// Name of the member.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Cost => "cost",
            Self::Calls => "calls",
            Self::Steps => "steps",
            Self::Seconds => "seconds",
        }
    }

    /// Kind of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// What counts towards the limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Calls of agents.
    pub calls: i64,
    /// Tokens.
    pub tokens: i64,
    /// Cost.
    pub cost: Cost,
    /// Attempts of steps.
    pub steps: i64,
    /// Execution time in milliseconds.
    pub millis: i64,
}

/// Call that is about to be made, with what is reserved for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Whether it counts as a call; a repeat of an interrupted one does not.
    pub is_new: bool,
    /// Tokens that it may use.
    pub tokens: i64,
    /// Cost for each call.
    pub call_cost: Cost,
    /// Cost of the tokens.
    pub token_cost: Cost,
}

/// Answer to a [`Want`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// The call may be made, with these tokens and this cost reserved.
    Granted {
        /// Reserved tokens.
        tokens: i64,
        /// Reserved cost of tokens.
        cost: Cost,
    },
    /// Calls under way have reserved what is left: there may be room when they end.
    Busy,
    /// The limit is used up.
    Full(LimitKind),
}

impl Limits {
    /// Members that [`Limits::read`] reads.
    pub const MEMBERS: [&'static str; 5] = ["tokens", "cost", "calls", "steps", "seconds"];

    /// Reads the member `limits`; unknown members are errors.
    pub fn read(node: &Node<'_>) -> Read<Self> {
        let object = node.object()?;
        let mut errors: Vec<FieldError> = Vec::new();
        object.only(&Self::MEMBERS, &mut errors);
        let limits = Self::read_members(&object, &mut errors);
        if errors.is_empty() { Ok(limits) } else { Err(errors) }
    }

    fn read_members(object: &Object<'_>, errors: &mut Vec<FieldError>) -> Self {
        Self {
            tokens: object.nullable("tokens", errors, |node| node.int(1..=MAX_TOKENS)),
            cost: object.nullable("cost", errors, |node| {
                let cost = Cost::read(node, MAX_COST, COST_PLACES)?;
                let rule = || vec![FieldError::rule(node.path(), "must be greater than 0")];
                if cost == Cost::ZERO { Err(rule()) } else { Ok(cost) }
            }),
            calls: object.nullable("calls", errors, |node| node.int(1..=MAX_COUNT)),
            steps: object.nullable("steps", errors, |node| node.int(1..=MAX_COUNT)),
            seconds: object.nullable("seconds", errors, |node| node.int(1..=MAX_SECONDS)),
        }
    }

    /// The limits; `None` if there are none.
    #[must_use]
    pub fn unless_empty(self) -> Option<Self> {
        (self != Self::default()).then_some(self)
    }

    /// The smaller one of each limit.
    #[must_use]
    pub fn smaller(self, other: Self) -> Self {
        fn least<T: Ord>(one: Option<T>, other: Option<T>) -> Option<T> {
            one.into_iter().chain(other).min()
        }
        Self {
            tokens: least(self.tokens, other.tokens),
            cost: least(self.cost, other.cost),
            calls: least(self.calls, other.calls),
            steps: least(self.steps, other.steps),
            seconds: least(self.seconds, other.seconds),
        }
    }

    /// The limit that these totals exceed.
    #[must_use]
    pub fn exceeded_by(&self, totals: &Totals) -> Option<LimitKind> {
        let is_more = |kind: &LimitKind| match kind {
            LimitKind::Tokens => self.tokens.is_some_and(|most| totals.tokens > most),
            LimitKind::Cost => self.cost.is_some_and(|most| totals.cost > most),
            LimitKind::Calls => self.calls.is_some_and(|most| totals.calls > most),
            LimitKind::Steps => self.steps.is_some_and(|most| totals.steps > most),
            LimitKind::Seconds => self.seconds.is_some_and(|most| totals.millis >= most.saturating_mul(1000)),
        };
        LimitKind::ALL.into_iter().find(is_more)
    }

    /// Whether a call fits beside what was used, and what is reserved for calls under way. Of a call that could take more
    /// than there is, all the rest is reserved: its answer shows what it takes.
    #[must_use]
    pub fn admit(&self, used: &Totals, reserved: &Totals, want: &Want) -> Admission {
        let counted = Totals { calls: used.calls + i64::from(want.is_new), ..*used };
        if let Some(kind) = self.exceeded_by(&counted) {
            return Admission::Full(kind);
        }
        let (mut tokens, mut cost) = (want.tokens, want.token_cost);
        let mut is_busy = false;
        if let Some(most) = self.tokens.filter(|_| want.tokens > 0) {
            let rest = most - used.tokens;
            if rest <= 0 {
                return Admission::Full(LimitKind::Tokens);
            }
            tokens = tokens.min(rest);
            is_busy |= tokens > rest - reserved.tokens;
        }
        if let Some(most) = self.cost.filter(|_| want.token_cost + want.call_cost > Cost::ZERO) {
            let rest = most - used.cost;
            let of_call = if want.is_new { want.call_cost } else { Cost::ZERO };
            if rest == Cost::ZERO || of_call > rest {
                return Admission::Full(LimitKind::Cost);
            }
            cost = cost.min(rest - of_call);
            is_busy |= cost + of_call > rest - reserved.cost;
        }
        if is_busy { Admission::Busy } else { Admission::Granted { tokens, cost } }
    }

    /// Reason of a run that has exceeded this limit.
    #[must_use]
    pub fn reason(&self, kind: LimitKind) -> String {
        let most = match kind {
            LimitKind::Tokens => self.tokens.unwrap_or_default().to_string(),
            LimitKind::Cost => self.cost.unwrap_or_default().to_string(),
            LimitKind::Calls => self.calls.unwrap_or_default().to_string(),
            LimitKind::Steps => self.steps.unwrap_or_default().to_string(),
            LimitKind::Seconds => self.seconds.unwrap_or_default().to_string(),
        };
        format!("budget_exceeded: the limit of {} is {most} (limits.{})", Words(kind), kind.as_str())
    }
}

/// A limit in words.
struct Words(LimitKind);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            LimitKind::Tokens => "tokens",
            LimitKind::Cost => "the cost",
            LimitKind::Calls => "calls of agents",
            LimitKind::Steps => "attempts of steps",
            LimitKind::Seconds => "seconds of execution",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::check_json;

    fn limits(json: &str) -> Read<Limits> {
        Limits::read(&Node::new("body.limits", check_json(json.as_bytes()).expect(json)))
    }

    #[test]
    fn limits_are_positive_and_bounded() {
        let read = limits(r#"{"tokens":1000,"cost":0.5,"calls":null,"steps":"3","seconds":60.0}"#).expect("valid");
        let stored = serde_json::to_string(&read).expect("JSON");
        assert_eq!(stored, r#"{"tokens":1000,"cost":"0.5","steps":3,"seconds":60}"#);
        assert_eq!(serde_json::from_str::<Limits>(&stored).expect("limits"), read);
        for (json, field) in [
            (r#"{"tokens":0}"#, "tokens"),
            (r#"{"tokens":-1}"#, "tokens"),
            (r#"{"tokens":1.5}"#, "tokens"),
            (r#"{"tokens":1000000000001}"#, "tokens"),
            (r#"{"cost":0}"#, "cost"),
            (r#"{"cost":-0.1}"#, "cost"),
            (r#"{"cost":0.0000001}"#, "cost"),
            (r#"{"cost":1e10}"#, "cost"),
            (r#"{"calls":100000001}"#, "calls"),
            (r#"{"steps":true}"#, "steps"),
            (r#"{"seconds":31536001}"#, "seconds"),
            (r#"{"dollars":1}"#, "dollars"),
        ] {
            let errors = limits(json).expect_err(json);
            assert_eq!(
                (errors.len(), errors[0].field.as_str()),
                (1, format!("body.limits.{field}").as_str()),
                "{json}"
            );
        }
        assert!(limits("7").is_err() && limits("{}").expect("valid").unless_empty().is_none());
    }

    #[test]
    fn the_smaller_of_two_limits_holds() {
        let (one, other) = (limits(r#"{"tokens":5,"calls":9}"#), limits(r#"{"tokens":7,"calls":3,"cost":1}"#));
        let both = one.expect("valid").smaller(other.expect("valid"));
        assert_eq!(both, limits(r#"{"tokens":5,"calls":3,"cost":1}"#).expect("valid"));
    }

    #[test]
    fn calls_side_by_side_reserve_no_more_than_there_is() {
        let limits = limits(r#"{"tokens":100,"cost":10,"calls":3}"#).expect("valid");
        let cost = Cost::whole;
        let want = Want { is_new: true, tokens: 60, call_cost: cost(1), token_cost: cost(4) };
        let (used, none) = (Totals::default(), Totals::default());
        assert_eq!(limits.admit(&used, &none, &want), Admission::Granted { tokens: 60, cost: cost(4) });
        let reserved = Totals { tokens: 60, cost: cost(4), ..none };
        let used = Totals { calls: 1, cost: cost(1), ..used };
        assert_eq!(limits.admit(&used, &reserved, &want), Admission::Busy);
        // The first has used less than was reserved.
        let used = Totals { tokens: 10, cost: cost(2), ..used };
        assert_eq!(limits.admit(&used, &none, &want), Admission::Granted { tokens: 60, cost: cost(4) });
        // A call that could take more than there is gets the rest.
        let used = Totals { tokens: 99, ..used };
        assert_eq!(limits.admit(&used, &none, &want), Admission::Granted { tokens: 1, cost: cost(4) });
        let full = Totals { tokens: 100, ..used };
        assert_eq!(limits.admit(&full, &none, &want), Admission::Full(LimitKind::Tokens));
        let free = Want { tokens: 0, call_cost: Cost::ZERO, token_cost: Cost::ZERO, ..want };
        assert!(matches!(limits.admit(&full, &none, &free), Admission::Granted { .. }), "it takes no tokens");
        let full = Totals { calls: 3, ..none };
        assert_eq!(limits.admit(&full, &none, &free), Admission::Full(LimitKind::Calls));
        let again = Want { is_new: false, ..free };
        assert!(matches!(limits.admit(&full, &none, &again), Admission::Granted { .. }), "it was counted before");
        let full = Totals { cost: cost(10), ..none };
        assert_eq!(limits.admit(&full, &none, &want), Admission::Full(LimitKind::Cost));
    }

    #[test]
    fn a_limit_is_exceeded_by_more_than_it() {
        let limits = limits(r#"{"tokens":10,"steps":2,"seconds":1}"#).expect("valid");
        let totals = Totals { tokens: 10, steps: 2, millis: 999, ..Totals::default() };
        assert_eq!(limits.exceeded_by(&totals), None);
        assert_eq!(limits.exceeded_by(&Totals { tokens: 11, ..totals }), Some(LimitKind::Tokens));
        assert_eq!(limits.exceeded_by(&Totals { steps: 3, ..totals }), Some(LimitKind::Steps));
        assert_eq!(limits.exceeded_by(&Totals { millis: 1000, ..totals }), Some(LimitKind::Seconds));
        assert!(limits.reason(LimitKind::Steps).starts_with("budget_exceeded: the limit of attempts of steps is 2"));
    }
}
