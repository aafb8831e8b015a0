//! The official Rust SDK of A2A against the service: `a2a_rust client URL` talks to a workflow that asks twice (see
//! `exposed.py`); `a2a_rust agent PORT` is an agent that shouts, and asks back for a text that begins with `ask`.

use std::sync::Arc;

use a2a::{
    A2AError, AgentCapabilities, AgentCard, AgentInterface, AgentSkill, Artifact, CancelTaskRequest, GetTaskRequest,
    Message, Part, Role, SendMessageRequest, SendMessageResponse, StreamResponse, Task, TaskArtifactUpdateEvent,
    TaskState, TaskStatus, TaskStatusUpdateEvent,
};
use a2a_client::{A2AClient, A2AClientFactory, Transport, agent_card::AgentCardResolver};
use a2a_server::{
    AgentExecutor, ExecutorContext, InMemoryTaskStore, StaticAgentCard, agent_card::agent_card_router,
    handler::DefaultRequestHandler, jsonrpc::jsonrpc_router,
};
use futures::{StreamExt as _, stream, stream::BoxStream};

type Failure = Box<dyn std::error::Error>;

/// A message of the user, perhaps in a task.
fn message(text: &str, task: Option<&Task>) -> SendMessageRequest {
    let mut message = Message::new(Role::User, vec![Part::text(text)]);
    message.task_id = task.map(|task| task.id.clone());
    message.context_id = task.map(|task| task.context_id.clone());
    SendMessageRequest { message, configuration: None, metadata: None, tenant: None }
}

async fn send(client: &A2AClient<Box<dyn Transport>>, text: &str, task: Option<&Task>) -> Result<Task, Failure> {
    match client.send_message(&message(text, task)).await? {
        SendMessageResponse::Task(task) => Ok(task),
        SendMessageResponse::Message(message) => Err(format!("a message instead of a task: {message:?}").into()),
    }
}

fn text(status: &TaskStatus) -> &str {
    status.message.as_ref().and_then(Message::text).unwrap_or_default()
}

async fn client(url: &str) -> Result<(), Failure> {
    let card = AgentCardResolver::new(None).resolve(url).await?;
    assert_eq!(card.capabilities.streaming, Some(true), "{card:?}");
    let client = A2AClientFactory::builder().build().create_from_card(&card).await?;

    let task = send(&client, "hello", None).await?;
    assert_eq!(task.status.state, TaskState::InputRequired, "{task:?}");
    assert_eq!(text(&task.status), "What about approval, after hello?");
    let next = send(&client, "yes", Some(&task)).await?;
    assert_eq!((&next.id, next.status.state), (&task.id, TaskState::InputRequired));
    let ended = send(&client, "my words", Some(&task)).await?;
    assert_eq!(ended.status.state, TaskState::Completed, "{ended:?}");
    let found = client.get_task(&GetTaskRequest { id: task.id, history_length: Some(1), tenant: None }).await?;
    let artifacts = found.artifacts.as_deref().unwrap_or_default();
    assert_eq!(artifacts[0].parts[0].as_text(), Some("my words"), "{found:?}");
    assert_eq!(found.history.as_deref().map(|history| history[0].text()), Some(Some("hello")), "{found:?}");

    let mut events = client.send_streaming_message(&message("hello", None)).await?;
    let (mut task, mut last) = (None, None);
    while let Some(event) = events.next().await {
        match event? {
            StreamResponse::Task(started) => task = Some(started),
            StreamResponse::StatusUpdate(update) => last = Some(update.status),
            other => return Err(format!("an event that was not expected: {other:?}").into()),
        }
    }
    let (task, last) = (task.ok_or("no task")?, last.ok_or("no status")?);
    assert_eq!((&last.state, text(&last)), (&TaskState::InputRequired, "What about approval, after hello?"));
    let cancelled = client.cancel_task(&CancelTaskRequest { id: task.id, metadata: None, tenant: None }).await?;
    assert_eq!(cancelled.status.state, TaskState::Canceled, "{cancelled:?}");
    let unknown = client.get_task(&GetTaskRequest { id: "run-x".into(), history_length: None, tenant: None }).await;
    assert_eq!(unknown.map_err(|error| error.code), Err(-32001));
    println!("a2a-client-lf: the workflow is an agent");
    Ok(())
}

/// The agent.
struct Shout;

impl AgentExecutor for Shout {
    fn execute(&self, context: ExecutorContext) -> BoxStream<'static, Result<StreamResponse, A2AError>> {
        let (id, context_id) = context.task_info();
        let said = context.message.as_ref().and_then(Message::text).unwrap_or_default().to_owned();
        let status = |state, words: Option<&str>| {
            let message = words.map(|words| Message::new(Role::Agent, vec![Part::text(words)]));
            TaskStatus { state, message, timestamp: None }
        };
        let update = |status| {
            let (task_id, context_id) = (id.clone(), context_id.clone());
            Ok(StreamResponse::StatusUpdate(TaskStatusUpdateEvent { task_id, context_id, status, metadata: None }))
        };
        let mut events = Vec::new();
        if context.stored_task.is_none() {
            let status = status(TaskState::Submitted, None);
            let task = Task {
                id: id.clone(),
                context_id: context_id.clone(),
                status,
                artifacts: None,
                history: None,
                metadata: None,
            };
            events.push(Ok(StreamResponse::Task(task)));
        }
        if said.starts_with("ask") {
            events.push(update(status(TaskState::InputRequired, Some("What shall I shout?"))));
        } else {
            events.push(update(status(TaskState::Working, None)));
            let artifact = Artifact {
                artifact_id: "answer".into(),
                name: None,
                description: None,
                metadata: None,
                extensions: None,
                parts: vec![Part::text(said.to_uppercase())],
            };
            events.push(Ok(StreamResponse::ArtifactUpdate(TaskArtifactUpdateEvent {
                task_id: id.clone(),
                context_id: context_id.clone(),
                artifact,
                append: None,
                last_chunk: Some(true),
                metadata: None,
            })));
            events.push(update(status(TaskState::Completed, Some("done"))));
        }
        stream::iter(events).boxed()
    }

    fn cancel(&self, context: ExecutorContext) -> BoxStream<'static, Result<StreamResponse, A2AError>> {
        let (task_id, context_id) = context.task_info();
        let status = TaskStatus { state: TaskState::Canceled, message: None, timestamp: None };
        let update = TaskStatusUpdateEvent { task_id, context_id, status, metadata: None };
        stream::iter([Ok(StreamResponse::StatusUpdate(update))]).boxed()
    }
}

async fn agent(port: u16) -> Result<(), Failure> {
    let card = AgentCard {
        name: "shout".into(),
        description: "Shouts".into(),
        version: "1".into(),
        supported_interfaces: vec![AgentInterface::new(format!("http://127.0.0.1:{port}/"), "JSONRPC")],
        capabilities: AgentCapabilities {
            streaming: Some(true),
            push_notifications: None,
            extensions: None,
            extended_agent_card: None,
        },
        default_input_modes: vec!["text/plain".into()],
        default_output_modes: vec!["text/plain".into()],
        skills: vec![AgentSkill {
            id: "shout".into(),
            name: "shout".into(),
            description: "Shouts".into(),
            tags: vec!["text".into()],
            examples: None,
            input_modes: None,
            output_modes: None,
            security_requirements: None,
        }],
        provider: None,
        documentation_url: None,
        icon_url: None,
        security_schemes: None,
        security_requirements: None,
        signatures: None,
    };
    let handler =
        DefaultRequestHandler::new(Shout, InMemoryTaskStore::new()).with_capabilities(card.capabilities.clone());
    let app = jsonrpc_router(Arc::new(handler)).merge(agent_card_router(Arc::new(StaticAgentCard::new(card))));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    Ok(axum::serve(listener, app).await?)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["client", url] => client(url).await,
        ["agent", port] => agent(port.parse()?).await,
        _ => Err("usage: a2a_rust client URL | agent PORT".into()),
    }
}
