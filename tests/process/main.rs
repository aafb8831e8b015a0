//! Tests of the program as its users run it: real processes, signals, kill -9, dependencies that come and go.
//! `DATABASE_URL` and `KAFKA_BROKERS` say where PostgreSQL and Kafka are; `./deploy-api.sh test` sets them.
//! Chromium, `pgbouncer`, `openssl` and the programs of a PostgreSQL server have to be installed, and `TEST_OPENBAO` names
//! `OpenBao`.

mod agent_work;
mod browser;
mod chains;
mod chromium;
mod client;
mod cluster;
mod commands;
mod crash;
mod cutter;
mod dependencies;
#[path = "../shared/empty_database.rs"]
mod empty_database;
mod events;
#[path = "../shared/eventually.rs"]
mod eventually;
mod failover;
mod flow;
mod guides;
mod inbound_webhooks;
mod kafka_triggers;
mod logs;
mod parked;
mod program;
mod questions;
mod recovery;
mod refused_messages;
mod replica;
mod restore;
mod revert;
mod roles;
mod rolling;
mod rotation;
mod schedules;
mod secrets;
mod secure_kafka;
mod statements;
mod stop;
mod tls;
mod traces;
mod trigger_metrics;
mod vault;
mod webhooks;
