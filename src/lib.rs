//! Workflow Management API: agents, versioned workflow definitions and runs.
//!
//! PostgreSQL is the source of truth. Executing or cancelling a run commits rows and an outbox entry; a relay publishes
//! to Kafka; an executor process claims runs under a lease and calls agents. `ARCHITECTURE.md` has the map and the
//! walkthroughs. Modules are listed in dependency order, from the pure ones at the bottom upwards.

// Pure: no axum, no SQL, no Kafka.
pub mod a2a;
pub mod access;
pub mod agent;
pub mod batch;
pub mod breaker;
pub mod cache;
pub mod clock;
pub mod console;
pub mod event;
pub mod event_stream;
pub mod expression;
pub mod health;
pub mod id;
pub mod inbound;
pub mod input;
pub mod mapping;
pub mod masking;
pub mod mcp;
pub mod permits;
pub mod rate;
pub mod retention;
pub mod run;
pub mod shared_reads;
pub mod timestamp;
pub mod trace;
pub mod trigger;
pub mod usage;
pub mod vault;
pub mod visible;
pub mod webhook;
pub mod workflow;

// Process infrastructure; `main` reads it once and passes parts down.
pub mod config;
pub mod lifecycle;
pub mod offload;
pub mod telemetry;

// External systems. These modules do not depend on each other.
pub mod archive;
pub mod db;
pub mod egress;
pub mod kafka;
pub mod kafka_triggers;
pub mod mcp_client;

// Write operations on the data.
pub mod actions;
pub mod run_writer;

// API and background loops: translation and scheduling.
pub mod api;
pub mod auditor;
pub mod client;
pub mod console_sessions;
pub mod dead_letters;
pub mod deadlines;
pub mod demo_agent;
#[cfg(feature = "embedded")]
pub mod dev;
pub mod events;
pub mod executor;
pub mod management;
pub mod outbox;
pub mod purge;
pub mod readiness;
pub mod run_counts;
pub mod run_poller;
pub mod run_reader;
pub mod scheduler;
pub mod server;
pub mod webhooks;
