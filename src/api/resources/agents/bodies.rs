//! Bodies of requests, as `agent` reads them.

use std::borrow::Cow;

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{Ref, RefOr, Schema, schema::AnyOfBuilder},
};

use crate::api::{resources::definition::CostBody, vocabulary::sets};

/// Retries of calls to an agent.
#[derive(ToSchema)]
#[schema(as = RetryConfig)]
#[expect(dead_code, reason = "describes `agent::RetryConfig`, whose defaults a derived schema would repeat")]
pub struct RetryConfigBody {
    /// Maximum number of attempts; the default is `DEFAULT_AGENT_MAX_RETRIES` (3).
    #[schema(nullable = false, minimum = 0, maximum = 10)]
    max_retries: Option<u32>,
    /// Pause after the first attempt in milliseconds; the default is `DEFAULT_AGENT_INITIAL_DELAY_MS` (1000).
    #[schema(nullable = false, minimum = 100)]
    initial_delay_ms: Option<u64>,
    /// Maximum pause in milliseconds; the default is `DEFAULT_AGENT_MAX_DELAY_MS` (30 000).
    #[schema(nullable = false, minimum = 1000)]
    max_delay_ms: Option<u64>,
    /// Factor from one pause to the next; the default is `DEFAULT_AGENT_BACKOFF_MULTIPLIER` (2).
    #[schema(nullable = false, minimum = 1.0)]
    backoff_multiplier: Option<f64>,
}

/// Overrides of the settings of the circuit breakers.
#[derive(ToSchema)]
#[schema(as = CircuitBreakerConfig)]
#[expect(dead_code, reason = "describes what `breaker::Rules` reads")]
pub struct CircuitBreakerConfigBody {
    /// Whether the agent has a circuit breaker.
    enabled: Option<bool>,
    /// Consecutive failures that open it, and the minimum number of calls for a failure rate.
    #[schema(minimum = 1, maximum = 1000)]
    failure_threshold: Option<u32>,
    /// Failure rate that opens it, above 0.
    #[schema(exclusive_minimum = 0.0, maximum = 1.0)]
    failure_rate_threshold: Option<f64>,
    /// Seconds for which it stays open.
    #[schema(minimum = 1, maximum = 86400)]
    timeout_seconds: Option<u64>,
    /// Number of probes while it is half open, and of successes that close it.
    #[schema(minimum = 1, maximum = 1000)]
    half_open_max_calls: Option<u32>,
    /// Length of the window in seconds.
    #[schema(minimum = 1, maximum = 3600)]
    window_size_seconds: Option<u64>,
}

/// The `config` of an agent, by its kind.
pub struct AnyConfigBody;

impl PartialSchema for AnyConfigBody {
    fn schema() -> RefOr<Schema> {
        let of = |name: &str| Ref::from_schema_name(name);
        let any = ["AgentConfig", "A2aConfig", "HttpConfig", "ResponsesConfig", "McpConfig"].into_iter();
        let any = any.fold(AnyOfBuilder::new(), |any, name| any.item(of(name)));
        let any = any.description(Some("Configuration of an agent, by its kind.")).build();
        RefOr::T(Schema::AnyOf(any))
    }
}

impl ToSchema for AnyConfigBody {
    fn name() -> Cow<'static, str> {
        "AnyAgentConfig".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        AgentConfigBody::schemas(schemas);
        A2aConfigBody::schemas(schemas);
        HttpConfigBody::schemas(schemas);
        ResponsesConfigBody::schemas(schemas);
        McpConfigBody::schemas(schemas);
        schemas.push(("AgentConfig".to_owned(), AgentConfigBody::schema()));
        schemas.push(("A2aConfig".to_owned(), A2aConfigBody::schema()));
        schemas.push(("HttpConfig".to_owned(), HttpConfigBody::schema()));
        schemas.push(("ResponsesConfig".to_owned(), ResponsesConfigBody::schema()));
        schemas.push(("McpConfig".to_owned(), McpConfigBody::schema()));
    }
}

/// The `config` of an agent of kind `a2a`.
#[derive(ToSchema)]
#[schema(as = A2aConfig, example = json!({"protocol": "1.0", "streaming": true}))]
#[expect(dead_code, reason = "describes what `agent::A2aConfig` reads")]
pub struct A2aConfigBody {
    /// Version of the protocol. The default `auto` takes the version that the agent's card names, or that it answers in.
    #[schema(value_type = Option<sets::A2aProtocol>)]
    protocol: Option<()>,
    /// Whether tasks are streamed; by default where the agent's card offers it.
    streaming: Option<bool>,
    /// Whether the agent is asked for push notifications of tasks that are not streamed; by default where its card offers
    /// them. Without `PUBLIC_URL` it is not.
    push: Option<bool>,
    /// Origins besides that of the agent's URL that its card may lead to, with inputs and credentials.
    #[schema(max_items = 16, example = json!(["https://agents.example:8443"]))]
    origins: Option<Vec<String>>,
    /// JSON Web Key Set. With it, a card is used only if one of the keys has signed it.
    #[schema(value_type = Option<HashMap<String, Value>>, example = json!({"keys": [{"kty": "OKP", "crv": "Ed25519",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}))]
    card_keys: Option<()>,
    /// Price of its calls.
    price: Option<PriceBody>,
}

/// The `config` of an agent of kind `responses`.
#[derive(ToSchema)]
#[schema(as = ResponsesConfig, example = json!({"model": "gpt-5-mini", "background": true,
    "parameters": {"tools": [{"type": "web_search"}]}}))]
#[expect(dead_code, reason = "describes what `agent::ResponsesConfig` reads")]
pub struct ResponsesConfigBody {
    /// Name of the model.
    #[schema(min_length = 1, max_length = 255, pattern = "\\S")]
    model: String,
    /// Instructions, sent beside the input of the step.
    #[schema(max_length = 100_000)]
    instructions: Option<String>,
    /// Further members of the request, such as `tools`, `reasoning` and `max_output_tokens`; not `model`, `input`,
    /// `instructions`, `stream` and `background`, and not `text` beside `response_format`.
    #[schema(value_type = Option<HashMap<String, Value>>, example = json!({"max_output_tokens": 500}))]
    parameters: Option<()>,
    /// `text`, `json`, or an object in the form of the endpoint's `text.format`.
    #[schema(value_type = Option<Value>)]
    response_format: Option<()>,
    /// Whether the answer is streamed; the default is false.
    streaming: Option<bool>,
    /// Whether the response is created in the background, queried until it is done, and cancelled if it is not needed any
    /// more; the default is false. Only OpenAI's API has that.
    background: Option<bool>,
    /// Price of its calls.
    price: Option<PriceBody>,
}

/// The `config` of an agent of kind `mcp`.
#[derive(ToSchema)]
#[schema(as = McpConfig, example = json!({"tool": "get_weather"}))]
#[expect(dead_code, reason = "describes what `agent::McpConfig` reads")]
pub struct McpConfigBody {
    /// Name of the tool.
    #[schema(min_length = 1, max_length = 128, pattern = "\\S")]
    tool: String,
    /// Revision of the protocol. The default `auto` takes the newest one that the server knows.
    #[schema(value_type = Option<sets::McpProtocol>)]
    protocol: Option<()>,
    /// Price of its calls.
    price: Option<PriceBody>,
}

/// The `config` of an agent of kind `openai`.
#[derive(ToSchema)]
#[schema(as = AgentConfig, example = json!({"model": "gpt-4o-mini", "parameters": {"temperature": 0, "max_tokens": 500}}))]
#[expect(dead_code, reason = "describes what `agent::ChatConfig` reads")]
pub struct AgentConfigBody {
    /// Name of the model.
    #[schema(min_length = 1, max_length = 255, pattern = "\\S")]
    model: String,
    /// System prompt, sent before the messages of the step.
    #[schema(max_length = 100_000)]
    system_prompt: Option<String>,
    /// Further members of the request, such as `temperature` and `max_tokens`; not `model`, `messages`, `stream` and
    /// `response_format`.
    #[schema(value_type = Option<HashMap<String, Value>>, example = json!({"temperature": 0}))]
    parameters: Option<()>,
    /// `text`, `json`, or an object in the form of the endpoint.
    #[schema(value_type = Value, required = false, example = json!({"type": "json_object"}))]
    response_format: (),
    /// Whether the answer is streamed, so that pieces of it are seen in the event stream of the run.
    streaming: Option<bool>,
    /// Price of its calls.
    price: Option<PriceBody>,
}

/// The `config` of an agent of kind `http`.
#[derive(ToSchema)]
#[schema(as = HttpConfig, example = json!({"price": {"call": "0.01"}}))]
#[expect(dead_code, reason = "describes what `agent::NewAgent::parse` reads")]
pub struct HttpConfigBody {
    /// Price of its calls.
    price: PriceBody,
}

/// Price of an agent's calls, for the cost of runs and their limits. It has no currency. Each part has at most six decimal
/// places; an absent one is 0.
#[derive(ToSchema)]
#[schema(as = AgentPrice, example = json!({"input": "0.15", "output": "0.6"}))]
#[expect(dead_code, reason = "describes `usage::Price`")]
pub struct PriceBody {
    /// For a million input tokens.
    #[schema(value_type = Option<CostBody>)]
    input: Option<()>,
    /// For a million output tokens.
    #[schema(value_type = Option<CostBody>)]
    output: Option<()>,
    /// For each call.
    #[schema(value_type = Option<CostBody>)]
    call: Option<()>,
}

/// Body of a create request.
#[derive(ToSchema)]
#[schema(as = CreateAgentRequest, example = json!({
    "name": "summariser", "url": "http://summariser:8080", "description": "Sums texts up.", "kind": "http",
}))]
#[expect(dead_code, reason = "describes what `agent::NewAgent::parse` reads")]
pub struct NewAgentBody {
    /// Name, unique forever.
    #[schema(min_length = 1, max_length = 255, example = "summariser")]
    name: String,
    /// HTTP or HTTPS address.
    #[schema(max_length = 512, pattern = "^[hH][tT][tT][pP][sS]?://", example = "http://summariser:8080")]
    url: String,
    /// Description for people.
    description: Option<String>,
    /// Kind of credentials that it requires; the default is `none`. Letter case is ignored.
    #[schema(required = false)]
    auth_type: sets::AuthType,
    /// `bearer`: `{"token": …}`; `apikey`: `{"key": …, "header_name": …}`, or `query_name` instead; `basic`:
    /// `{"username": …, "password": …}`; `oauth2`: `{"token_url": …, "client_id": …, "client_secret": …}`, and optionally
    /// `scope` and `audience`; `none`: null.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    auth_config: Option<()>,
    /// Time-out of one call in milliseconds; the default is `DEFAULT_AGENT_TIMEOUT_MS` (30 000).
    #[schema(nullable = false, minimum = 1000, maximum = 300_000)]
    timeout_ms: Option<i32>,
    /// Retries of calls.
    #[schema(value_type = RetryConfigBody, required = false)]
    retry_config: Option<RetryConfigBody>,
    /// Overrides of the settings `CIRCUIT_BREAKER_*`; other members are kept.
    #[schema(value_type = Option<CircuitBreakerConfigBody>)]
    circuit_breaker_config: Option<()>,
    /// Protocol of the agent; the default is `a2a`. Letter case is ignored.
    #[schema(required = false)]
    kind: sets::AgentKind,
    /// Configuration: required for `openai`, `responses` and `mcp`, optional for `a2a`, null for `http`.
    #[schema(value_type = Option<AnyConfigBody>)]
    config: Option<()>,
    /// Names of other agents that are called, in this order, when this one does not work. Theirs are not followed.
    #[schema(nullable = false, max_items = 4, example = json!(["summariser-small"]))]
    fallbacks: Option<Vec<String>>,
}

/// Body of an update request; absent members stay unchanged.
#[derive(ToSchema)]
#[schema(as = UpdateAgentRequest, example = json!({"description": "Sums texts up in a sentence.", "timeout_ms": 60000}))]
#[expect(dead_code, reason = "describes what `agent::AgentPatch::parse` reads")]
pub struct AgentPatchBody {
    /// HTTP or HTTPS address.
    #[schema(nullable = false, max_length = 512, pattern = "^[hH][tT][tT][pP][sS]?://")]
    url: Option<String>,
    /// Description for people; null clears it.
    description: Option<String>,
    /// Kind of credentials that it requires.
    #[schema(required = false)]
    auth_type: sets::AuthType,
    /// Credentials, which must match `auth_type`.
    #[schema(value_type = Option<HashMap<String, Value>>)]
    auth_config: Option<()>,
    /// Time-out of one call in milliseconds.
    #[schema(nullable = false, minimum = 1000, maximum = 300_000)]
    timeout_ms: Option<i32>,
    /// Retries of calls, replaced as a whole.
    #[schema(value_type = RetryConfigBody, required = false)]
    retry_config: Option<RetryConfigBody>,
    /// Whether it may be used.
    #[schema(required = false)]
    status: sets::SettableStatus,
    /// Overrides of the circuit breaker; null clears them.
    #[schema(value_type = Option<CircuitBreakerConfigBody>)]
    circuit_breaker_config: Option<()>,
    /// Protocol of the agent; a change removes the previous `config`.
    #[schema(required = false)]
    kind: sets::AgentKind,
    /// Configuration, which must match `kind`.
    #[schema(value_type = Option<AnyConfigBody>)]
    config: Option<()>,
    /// Names of other agents that are called when this one does not work, replaced as a whole.
    #[schema(nullable = false, max_items = 4)]
    fallbacks: Option<Vec<String>>,
}
