//! Trace of a run: the span of its present execution, and what calls of its agents carry.

use std::sync::Arc;

use super::assignment::{Assignment, Origin};
use crate::{
    telemetry::spans::{self, Kind, Span},
    trace::{self, SpanContext},
};

/// Trace that a run belongs to. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct RunTrace {
    /// `traceparent` that the run was started with.
    given: Option<Arc<str>>,
    /// Span of this execution, if it is recorded.
    context: Option<SpanContext>,
}

impl RunTrace {
    /// Begins the span of an execution.
    pub(super) fn begin(assignment: &Assignment) -> (Span, Self) {
        let Assignment { run_id, traceparent, origin, workflow_name, workflow_id, .. } = assignment;
        let given = traceparent.as_deref().and_then(trace::valid).map(Arc::from);
        // The request of a run was sent in the run's own span. A sub-run begins without a request.
        let request = given.as_deref().filter(|_| spans::is_on()).and_then(SpanContext::parse);
        let parent = request.map(|parent| match origin {
            Origin::SubRun => parent,
            Origin::Message | Origin::Sweep => SpanContext { span_id: trace::span_of_run(run_id), ..parent },
        });
        let kind = if *origin == Origin::Message { Kind::Consumer } else { Kind::Internal };
        let mut span = spans::child(parent, kind, || format!("run {workflow_name}"));
        if *origin == Origin::Message {
            span.set("messaging.system", "kafka");
            span.set("messaging.operation.type", "process");
        }
        span.set("workflow_api.run.id", run_id);
        span.set("workflow_api.workflow.id", workflow_id);
        span.set("workflow_api.organization.id", assignment.organization.as_str());
        let context = span.context();
        (span, Self { given, context })
    }

    /// Ids of trace and span for the log.
    pub(super) fn ids(&self) -> (Option<String>, Option<String>) {
        let trace_id = self.given.as_deref().and_then(SpanContext::trace_id_of).map(str::to_owned);
        let span_id = self.context.and_then(|context| SpanContext::span_id_of(&context.to_string()).map(str::to_owned));
        (trace_id, span_id)
    }

    /// Span of this execution, if it is recorded.
    pub(super) fn context(&self) -> Option<SpanContext> {
        self.context
    }

    /// Begins the span of a step.
    pub(super) fn step(&self, name: impl FnOnce() -> String) -> Span {
        spans::child(self.context, Kind::Internal, name)
    }

    /// `traceparent` of a request that is sent in this span: that of the caller, if the span is not recorded.
    pub(super) fn outgoing(&self, span: &Span) -> Option<String> {
        span.context().map(|context| context.to_string()).or_else(|| self.given.as_deref().map(str::to_owned))
    }
}
