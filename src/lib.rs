//! Workflow Management API: agents, versioned workflow definitions and runs.
//!
//! PostgreSQL holds the truth. Executing or cancelling a run commits rows and an outbox entry; a relay publishes
//! to Kafka; an executor process claims runs under a lease and calls agents. `ARCHITECTURE.md` has the map and
//! the walkthroughs. Modules are listed from the pure ones at the bottom of the dependency order upwards.

// Pure: no axum, no SQL, no Kafka.
pub mod access;
pub mod agent;
pub mod batch;
pub mod breaker;
pub mod cache;
pub mod clock;
pub mod expression;
pub mod id;
pub mod input;
pub mod mapping;
pub mod permits;
pub mod rate;
pub mod run;
pub mod timestamp;
pub mod trace;
pub mod vault;
pub mod visible;
pub mod workflow;

// What the process is made of; `main` reads it once and passes parts down.
pub mod config;
pub mod lifecycle;
pub mod offload;
pub mod telemetry;

// The systems around us. None knows the others.
pub mod db;
pub mod egress;
pub mod kafka;

// What the service does to its data.
pub mod actions;
pub mod run_writer;

// Edges and loops: translate, schedule.
pub mod api;
pub mod auditor;
pub mod dead_letters;
pub mod demo_agent;
#[cfg(feature = "embedded")]
pub mod dev;
pub mod executor;
pub mod management;
pub mod outbox;
pub mod readiness;
pub mod run_poller;
pub mod server;
