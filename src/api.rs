//! HTTP API: the list of routes, and the layer around them.
//!
//! Three layers, each of which depends only on those before it: [`vocabulary`], the shared types; [`resources`], the
//! handlers; [`gate`], the middleware around every request.

pub mod gate;
pub mod resources;
pub mod vocabulary;

#[cfg(test)]
mod tests;

use axum::Router;
use tower::ServiceExt as _;
use utoipa::{PartialSchema, openapi::OpenApi};
use utoipa_axum::{
    router::{OpenApiRouter, UtoipaMethodRouter},
    routes,
};

use self::{
    gate::{Gate, console, docs, layer::GateLayer, request},
    resources::{
        a2a, agent_pushes, agent_stats, agents, api_keys, audit, backtests, by_name, callbacks, console_session,
        dead_letters, definitions, event_ticket, graph, hooks, limits, mcp, organizations, processes, run_log, runs,
        saved_views, storage, system, transfer, triggers, usage, webhook_events, webhooks, workflow_tests, workflows,
    },
    vocabulary::app::App,
};
use crate::config;

/// Makes the handlers of a path with their part of the OpenAPI document.
type MakeHandlers = fn() -> UtoipaMethodRouter<App>;

/// Routes under the prefix. Each is made on its own: in one expression, all of them would be on the stack at once, with
/// code for giving up at each point.
const BUSINESS: &[MakeHandlers] = &[
    || routes!(agents::list_agents, agents::create_agent),
    || routes!(agents::get_agent, agents::update_agent, agents::delete_agent),
    || routes!(agents::check_agent),
    || routes!(agent_stats::get_agent_stats),
    || routes!(workflows::read::list_workflows, workflows::save::create_workflow),
    || routes!(workflows::read::get_workflow, workflows::save::update_workflow, workflows::save::delete_workflow),
    || routes!(workflows::read::list_workflow_versions),
    || routes!(workflows::execute::execute_workflow),
    || routes!(definitions::validate_workflow),
    || routes!(definitions::get_workflow_version),
    || routes!(definitions::compare_workflow_versions),
    || routes!(definitions::roll_back_workflow),
    || routes!(usage::workflow_usage),
    || routes!(workflow_tests::test_definition),
    || routes!(workflow_tests::test_workflow),
    || routes!(backtests::backtest_workflow),
    || routes!(by_name::get_workflow_by_name, by_name::put_workflow_by_name),
    || routes!(by_name::execute_workflow_by_name),
    || routes!(transfer::export_definitions),
    || routes!(transfer::import_definitions),
    || routes!(graph::draw_definition),
    || routes!(graph::draw_workflow),
    || routes!(graph::draw_run),
    || routes!(runs::read::list_runs),
    || routes!(runs::counts::count_runs),
    || routes!(runs::bulk::change_runs),
    || routes!(runs::read::get_run),
    || routes!(runs::steps::list_steps),
    || routes!(run_log::get_logs),
    || routes!(run_log::stream_events),
    || routes!(event_ticket::create_event_ticket),
    || routes!(runs::retry::retry_run),
    || routes!(runs::cancel::cancel_run),
    || routes!(runs::pause::pause_run),
    || routes!(runs::pause::resume_run),
    || routes!(callbacks::list_callbacks),
    || routes!(callbacks::list_all_callbacks),
    || routes!(callbacks::answer_callback),
    || routes!(agent_pushes::receive_push),
    || routes!(triggers::list_triggers, triggers::create_trigger),
    || routes!(triggers::get_trigger, triggers::update_trigger, triggers::delete_trigger),
    || routes!(triggers::act::pause_trigger),
    || routes!(triggers::act::resume_trigger),
    || routes!(triggers::act::fire_trigger),
    || routes!(triggers::act::preview_trigger),
    || routes!(triggers::schedule::preview_schedule),
    || routes!(triggers::schedule::backfill_trigger, triggers::schedule::list_backfills),
    || routes!(triggers::schedule::backfill_trigger_once),
    || routes!(triggers::schedule::get_backfill),
    || routes!(triggers::schedule::stop_backfill),
    || routes!(triggers::token::rotate_token),
    || routes!(hooks::deliver_by_token),
    || routes!(hooks::deliver_by_name),
    || routes!(api_keys::list_api_keys, api_keys::create_api_key),
    || routes!(api_keys::get_api_key, api_keys::revoke_api_key),
    || routes!(api_keys::issue_token),
    || routes!(audit::list_audit_logs),
    || routes!(audit::export::export_audit_logs),
    || routes!(audit::verification::verify_audit_logs),
    || routes!(dead_letters::list_dead_letters),
    || routes!(dead_letters::get_dead_letter, dead_letters::discard_dead_letter),
    || routes!(dead_letters::redrive_dead_letter),
    || routes!(webhooks::list_webhooks, webhooks::create_webhook),
    || routes!(webhooks::get_webhook, webhooks::put_webhook, webhooks::patch_webhook, webhooks::delete_webhook),
    || routes!(webhooks::control::rotate_webhook_secret),
    || routes!(webhooks::control::test_webhook),
    || routes!(webhooks::control::enable_webhook),
    || routes!(webhooks::control::disable_webhook),
    || routes!(webhooks::control::recover_webhook),
    || routes!(webhooks::deliveries::list_webhook_deliveries),
    || routes!(webhooks::deliveries::get_webhook_delivery),
    || routes!(webhooks::deliveries::redeliver_webhook),
    || routes!(organizations::list_organizations, organizations::create_organization),
    || routes!(organizations::get_organization, organizations::update_organization),
    || routes!(storage::get_storage),
    || routes!(processes::list_processes),
    || routes!(limits::list_limits),
    || routes!(webhook_events::list_event_types),
    || routes!(saved_views::list_views, saved_views::create_view),
    || routes!(saved_views::get_view, saved_views::update_view, saved_views::delete_view),
];

/// Routes at the root.
const ROOT: &[MakeHandlers] = &[
    || routes!(system::get_root),
    || routes!(system::get_health),
    || routes!(system::get_liveness),
    || routes!(system::get_readiness),
    || routes!(system::get_detailed_health),
    || routes!(system::get_metrics),
    || routes!(a2a::card::get_agent_card),
    || routes!(a2a::card::get_agent_card_0_2),
    || routes!(a2a::call_agent),
    || routes!(mcp::call_mcp),
];

/// Routes of the console at the root, if it is served.
const CONSOLE: &[MakeHandlers] =
    &[|| routes!(console_session::get_session, console_session::create_session, console_session::delete_session)];

/// All routes with their document, which begins with `document`. The handlers are added as `shape` leaves them.
fn routes(
    api: &config::Api,
    document: OpenApi,
    shape: fn(UtoipaMethodRouter<App>) -> UtoipaMethodRouter<App>,
) -> OpenApiRouter<App> {
    let add = |routes: OpenApiRouter<App>, list: &[MakeHandlers]| {
        list.iter().fold(routes, |routes, handlers| routes.routes(shape(handlers())))
    };
    let (business, mut root) = (add(OpenApiRouter::new(), BUSINESS), add(OpenApiRouter::with_openapi(document), ROOT));
    if api.console {
        root = add(root, CONSOLE);
    }
    let prefix = &api.prefix;
    if prefix.is_empty() { root.merge(business) } else { root.nest(prefix, business) }
}

/// OpenAPI document of all routes. `key_header` is the header that carries an API key.
#[must_use]
pub fn document(api: &config::Api, key_header: &str) -> OpenApi {
    let routes = routes(api, docs::document(api, key_header), |handlers| handlers);
    let mut document = routes.into_openapi();
    if let Some(components) = &mut document.components {
        // It is the data of events, which no answer's schema leads to.
        components.schemas.insert("RunOutputDelta".to_owned(), <run_log::OutputDelta as PartialSchema>::schema());
    }
    docs::complete(&mut document, &api.prefix);
    document
}

/// The whole OpenAPI document, with the requests that endpoints of webhooks receive.
#[must_use]
pub fn whole_document(api: &config::Api, key_header: &str) -> docs::Document {
    docs::Document { openapi: document(api, key_header), webhooks: webhook_events::webhooks() }
}

/// The complete service: the routes with the gate around each.
pub fn router(gate: &Gate) -> Router {
    let app = &gate.app;
    let (routes, outline) = routes(&app.config.api, OpenApi::default(), docs::outline).split_for_parts();
    let documentation = if app.config.api.docs { docs::router(whole_document) } else { Router::new() };
    let pages = if app.config.api.console { console::router() } else { Router::new() };
    let service = routes
        .merge(documentation)
        .merge(pages)
        .fallback(request::no_such_route)
        .method_not_allowed_fallback(request::no_such_method)
        .layer(GateLayer::new(gate, &outline))
        .with_state(app.clone());
    // A router matches the route before it calls its layers. The layer that changes the path therefore stands
    // outside.
    Router::new().fallback_service(service.map_request(by_name::at_its_path(&app.config.api.prefix)))
}
