//! Tests in process: the service's own router, relay and executor on a real PostgreSQL (a database per test) and a
//! real Kafka (topics per test). `DATABASE_URL` and `KAFKA_BROKERS` say where; `./deploy-api.sh test` sets them.

#![expect(
    clippy::disallowed_methods,
    reason = "tests hold transactions open on sqlx's own connections; tests/architecture.rs keeps clocks out of them"
)]

mod access;
mod agent_answers;
mod agent_changes;
mod agent_health;
mod agent_kinds;
mod agent_mcp;
mod agent_mcp_questions;
mod agent_protocols;
mod agent_pushes;
mod agent_questions;
mod agent_responses;
mod agent_stats;
mod agent_streams;
mod agent_tasks;
mod agent_versions;
mod agents;
mod attempts;
mod audit;
mod bad_input;
mod breakers;
mod broker;
mod budgets;
mod bulk;
mod by_name;
mod callbacks;
mod compression;
mod console;
mod console_sessions;
mod control;
mod cors;
mod cursors;
mod dead_letters;
mod definitions;
mod dispatch;
mod documentation;
mod egress;
#[path = "../shared/empty_database.rs"]
mod empty_database;
mod etags;
mod events;
#[path = "../shared/eventually.rs"]
mod eventually;
mod execute;
mod fallbacks;
mod filters;
mod first_attempts;
mod flow;
mod graph;
mod headers;
mod idempotency;
mod inbound_webhooks;
mod input_schema;
mod invariants;
mod json_corpus;
mod kafka_clients;
mod kafka_triggers;
mod limits;
mod list_plans;
mod log_reference;
mod memory;
mod messages;
mod migrations;
mod model;
mod monitoring;
mod outgoing_events;
mod path;
mod pool;
mod previous_release;
mod reference;
mod retention;
mod run_counts;
mod run_history;
mod run_reads;
mod runs;
mod saved_views;
mod schedules;
mod service;
mod snapshots;
mod spending;
mod statements;
mod steps;
mod sub_runs;
mod system;
mod tickets;
mod transfer;
mod validate;
mod vault;
mod versions;
mod waiting;
mod waits;
mod webhooks;
mod wire;
mod workflow_agents;
mod workflow_tests;
mod workflow_tools;
mod workflows;
