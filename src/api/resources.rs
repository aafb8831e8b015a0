//! Resources of the API: handlers with their wire types.

pub mod a2a;
pub mod agent_health;
pub mod agents;
pub mod api_keys;
pub mod audit;
pub mod backtests;
pub mod by_name;
pub mod callbacks;
pub mod dead_letters;
pub mod definition;
pub mod definitions;
pub mod event_ticket;
pub mod exposed_run;
pub mod graph;
pub mod mcp;
pub mod organizations;
pub mod run_log;
pub mod runs;
pub mod step_stream;
pub mod storage;
pub mod system;
pub mod tool_lists;
pub mod tool_warnings;
pub mod transfer;
pub mod workflow_tests;
pub mod workflows;
