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
use utoipa_axum::{router::OpenApiRouter, routes};

use self::{
    gate::{Gate, docs, layer::GateLayer, request},
    resources::{
        agents, api_keys, audit, by_name, callbacks, dead_letters, definitions, event_ticket, graph, organizations,
        run_log, runs, storage, system, transfer, workflows,
    },
    vocabulary::app::App,
};
use crate::config;

/// All routes of the API with their OpenAPI document: the ones under the prefix, and the ones at the root.
/// `key_header` is the header that carries an API key.
#[must_use]
pub fn routes(api: &config::Api, key_header: &str) -> OpenApiRouter<App> {
    let business = OpenApiRouter::new()
        .routes(routes!(agents::list_agents, agents::create_agent))
        .routes(routes!(agents::get_agent, agents::update_agent, agents::delete_agent))
        .routes(routes!(agents::check_agent))
        .routes(routes!(workflows::read::list_workflows, workflows::save::create_workflow))
        .routes(routes!(
            workflows::read::get_workflow,
            workflows::save::update_workflow,
            workflows::save::delete_workflow
        ))
        .routes(routes!(workflows::read::list_workflow_versions))
        .routes(routes!(workflows::execute::execute_workflow))
        .routes(routes!(definitions::validate_workflow))
        .routes(routes!(definitions::get_workflow_version))
        .routes(routes!(definitions::compare_workflow_versions))
        .routes(routes!(definitions::roll_back_workflow))
        .routes(routes!(by_name::get_workflow_by_name, by_name::put_workflow_by_name))
        .routes(routes!(by_name::execute_workflow_by_name))
        .routes(routes!(transfer::export_definitions))
        .routes(routes!(transfer::import_definitions))
        .routes(routes!(graph::draw_workflow))
        .routes(routes!(graph::draw_run))
        .routes(routes!(runs::read::list_runs))
        .routes(routes!(runs::read::get_run))
        .routes(routes!(runs::steps::list_steps))
        .routes(routes!(run_log::get_logs))
        .routes(routes!(run_log::stream_events))
        .routes(routes!(event_ticket::create_event_ticket))
        .routes(routes!(runs::retry::retry_run))
        .routes(routes!(runs::cancel::cancel_run))
        .routes(routes!(runs::pause::pause_run))
        .routes(routes!(runs::pause::resume_run))
        .routes(routes!(callbacks::list_callbacks))
        .routes(routes!(callbacks::answer_callback))
        .routes(routes!(api_keys::list_api_keys, api_keys::create_api_key))
        .routes(routes!(api_keys::get_api_key, api_keys::revoke_api_key))
        .routes(routes!(api_keys::issue_token))
        .routes(routes!(audit::list_audit_logs))
        .routes(routes!(audit::export::export_audit_logs))
        .routes(routes!(audit::verification::verify_audit_logs))
        .routes(routes!(dead_letters::list_dead_letters))
        .routes(routes!(dead_letters::get_dead_letter, dead_letters::discard_dead_letter))
        .routes(routes!(dead_letters::redrive_dead_letter))
        .routes(routes!(organizations::list_organizations, organizations::create_organization))
        .routes(routes!(organizations::get_organization, organizations::update_organization))
        .routes(routes!(storage::get_storage));
    let root = OpenApiRouter::with_openapi(docs::document(api, key_header))
        .routes(routes!(system::get_root))
        .routes(routes!(system::get_health))
        .routes(routes!(system::get_readiness))
        .routes(routes!(system::get_metrics));
    let mut all = if api.prefix.is_empty() { root.merge(business) } else { root.nest(&api.prefix, business) };
    docs::complete(all.get_openapi_mut(), &api.prefix);
    all
}

/// The complete service: the routes with the gate around each.
pub fn router(gate: &Gate) -> Router {
    let app = &gate.app;
    let (routes, document) = routes(&app.config.api, &app.config.auth.api_key_header_text).split_for_parts();
    let documentation = if app.config.api.docs { docs::router(&document) } else { Router::new() };
    let service = routes
        .merge(documentation)
        .fallback(request::no_such_route)
        .method_not_allowed_fallback(request::no_such_method)
        .layer(GateLayer::new(gate, &document))
        .with_state(app.clone());
    // A router matches the route before it calls its layers. The layer that changes the path therefore stands
    // outside.
    Router::new().fallback_service(service.map_request(by_name::at_its_path(&app.config.api.prefix)))
}
