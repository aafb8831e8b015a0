//! Tests in process: the service's own router, relay and executor on a real PostgreSQL (a database per test) and a
//! real Kafka (topics per test). `DATABASE_URL` and `KAFKA_BROKERS` say where; `./deploy-api.sh test` sets them.

mod access;
mod agent_health;
mod agents;
mod audit;
mod bad_input;
mod by_name;
mod control;
mod cors;
mod cursors;
mod definitions;
mod dispatch;
mod documentation;
mod etags;
mod events;
mod execute;
mod filters;
mod graph;
mod idempotency;
mod input_schema;
mod json_corpus;
mod migrations;
mod model;
mod path;
mod runs;
mod service;
mod steps;
mod system;
mod transfer;
mod validate;
mod versions;
mod waiting;
mod waits;
mod workflows;
