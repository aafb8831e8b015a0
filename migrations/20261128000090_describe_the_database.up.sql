-- What each table and column means, for whoever opens the database; and views for analysts.
SET LOCAL lock_timeout = '2s';

DO $describe$
DECLARE
    description record;
BEGIN
    FOR description IN SELECT * FROM (VALUES
        ('agents', NULL, 'Services that do the work of steps. Shared with the reference deployment.'),
        ('agents', 'id', 'Id of the agent.'),
        ('agents', 'name', 'Name by which steps refer to the agent; unique in its organisation.'),
        ('agents', 'url', 'Address that is called.'),
        ('agents', 'description', 'Free text.'),
        ('agents', 'auth_type', 'How calls authenticate: none, bearer, apikey, basic or another type of the API; null: not at all.'),
        ('agents', 'auth_config', 'Credentials for auth_type, encrypted with ENCRYPTION_KEY where it is set.'),
        ('agents', 'timeout_ms', 'Time limit of one call, in milliseconds.'),
        ('agents', 'retry_config', 'How failed calls are repeated: max_retries, initial_delay_ms, max_delay_ms, backoff_multiplier.'),
        ('agents', 'status', 'active, inactive or deleted.'),
        ('agents', 'created_by', 'Subject of the caller that created the agent.'),
        ('agents', 'updated_by', 'Subject of the caller that changed the agent last.'),
        ('agents', 'created_at', 'When the agent was created (UTC).'),
        ('agents', 'updated_at', 'When the agent was changed last (UTC).'),
        ('agents', 'circuit_breaker_config', 'Rules of the circuit breaker that differ from CIRCUIT_BREAKER_*; null: none.'),
        ('agents', 'organization_id', 'Organisation that owns the agent (organizations.id).'),
        ('agents', 'kind', 'Protocol of the agent: a2a, http or openai.'),
        ('agents', 'config', 'Settings of the kind, such as the model of an openai agent; null where none are needed.'),

        ('workflow_definitions', NULL, 'Workflows: one row a version. Shared with the reference deployment.'),
        ('workflow_definitions', 'id', 'Id of the version; that of the newest one is the id of the workflow.'),
        ('workflow_definitions', 'name', 'Name of the workflow; unique in its organisation, together with version.'),
        ('workflow_definitions', 'description', 'Free text.'),
        ('workflow_definitions', 'version', 'Number of the version, from 1.'),
        ('workflow_definitions', 'workflow_data', 'The plan: start step and steps, as execution requests carry it.'),
        ('workflow_definitions', 'status', 'active, inactive, archived (an older version) or deleted.'),
        ('workflow_definitions', 'created_by', 'Subject of the caller that created the version.'),
        ('workflow_definitions', 'updated_by', 'Subject of the caller that changed the row last.'),
        ('workflow_definitions', 'created_at', 'When the version was created (UTC).'),
        ('workflow_definitions', 'updated_at', 'When the row was changed last (UTC).'),
        ('workflow_definitions', 'organization_id', 'Organisation that owns the workflow (organizations.id).'),

        ('workflow_steps', 'id', 'Not used.'),
        ('workflow_steps', 'workflow_id', 'Not used.'),
        ('workflow_steps', 'step_id', 'Not used.'),
        ('workflow_steps', 'agent_id', 'Not used.'),
        ('workflow_steps', 'next_step_id', 'Not used.'),
        ('workflow_steps', 'input_mapping', 'Not used.'),
        ('workflow_steps', 'step_order', 'Not used.'),
        ('workflow_steps', 'created_at', 'Not used.'),
        ('workflow_steps', 'updated_at', 'Not used.'),

        ('workflow_runs', NULL, 'Runs: executions of workflows, one row each. Shared with the reference deployment. View: run_overview.'),
        ('workflow_runs', 'run_id', 'Id of the run: run- and a UUID that grows with the time of creation.'),
        ('workflow_runs', 'workflow_id', 'Id of the workflow (workflow_definitions.id as text).'),
        ('workflow_runs', 'workflow_name', 'Name of the workflow.'),
        ('workflow_runs', 'workflow_definition_id', 'The same as workflow_id, for programs that expect it.'),
        ('workflow_runs', 'status', 'PENDING, RUNNING, COMPLETED, FAILED or CANCELLED; the last three are final, except for a retry.'),
        ('workflow_runs', 'input_data', 'Input of the run.'),
        ('workflow_runs', 'triggered_by', 'Subject of the caller that started the run.'),
        ('workflow_runs', 'created_at', 'When the run was accepted (UTC).'),
        ('workflow_runs', 'updated_at', 'When the row was changed last (UTC).'),
        ('workflow_runs', 'completed_at', 'When the run ended (UTC); null while it has not.'),
        ('workflow_runs', 'cancelled_at', 'When the run was cancelled (UTC).'),
        ('workflow_runs', 'cancelled_by', 'Subject of the caller that cancelled the run.'),
        ('workflow_runs', 'error_message', 'Why the run failed or was cancelled.'),
        ('workflow_runs', 'organization_id', 'Organisation that owns the run (organizations.id).'),
        ('workflow_runs', 'parent_step_id', 'The step of parent_run_id that this run is.'),

        ('step_executions', NULL, 'Attempts of steps, one row each. Shared with the reference deployment. View: step_durations.'),
        ('step_executions', 'id', 'Id of the attempt.'),
        ('step_executions', 'run_id', 'The run (workflow_runs.run_id).'),
        ('step_executions', 'step_id', 'Id of the step in the plan.'),
        ('step_executions', 'step_name', 'Name of the step; the reference executor writes the agent''s.'),
        ('step_executions', 'agent_name', 'Name of the agent that is called; empty for steps of other types.'),
        ('step_executions', 'status', 'PENDING (it waits), RUNNING, COMPLETED, FAILED, SKIPPED or CANCELLED.'),
        ('step_executions', 'input_data', 'What the step was given.'),
        ('step_executions', 'output_data', 'What the step answered.'),
        ('step_executions', 'started_at', 'When the attempt began (UTC).'),
        ('step_executions', 'completed_at', 'When the attempt ended (UTC); null while it has not.'),
        ('step_executions', 'error_message', 'Why the attempt failed.'),
        ('step_executions', 'parent_step_id', 'The block that the step is in; null: the main chain.'),
        ('step_executions', 'branch_name', 'The branch of that block.'),
        ('step_executions', 'join_policy', 'Of a step in a fork_join block: ALL, ANY, MAJORITY or N_OF_M.'),

        ('audit_logs', NULL, 'Audit trail: one entry for each change and each denied attempt. Partitioned by month; rows are never changed.'),
        ('audit_logs', 'id', 'Id of the entry.'),
        ('audit_logs', 'entity_type', 'Kind of the object: agent, workflow, run, api_key, organization and others.'),
        ('audit_logs', 'entity_id', 'Id of the object; of a run the UUID in its id, or a UUIDv5 of it.'),
        ('audit_logs', 'action', 'What was done: create, update, delete, execute, retry, cancel and others.'),
        ('audit_logs', 'user_id', 'Subject of the caller.'),
        ('audit_logs', 'changes', 'The members that were changed, with their new values.'),
        ('audit_logs', 'created_at', 'When it was done (UTC).'),
        ('audit_logs', 'updated_at', 'The same as created_at, for programs that expect it.'),
        ('audit_logs', 'organization_id', 'Organisation of the object (organizations.id).'),
        ('audit_logs', 'entity_name', 'Name of the object; of a run its id.'),
        ('audit_logs', 'outcome', 'success or denied.'),
        ('audit_logs', 'previous', 'The members of changes with their values before.'),
        ('audit_logs', 'key_id', 'API key of the caller (api_keys.id), if it was one.'),
        ('audit_logs', 'address', 'Network address of the client.'),
        ('audit_logs', 'correlation_id', 'Correlation id of the request.'),

        ('audit_unsealed', NULL, 'Queue: entries of the audit trail that have no seal yet.'),
        ('audit_unsealed', 'organization_id', 'Organisation of the entry.'),
        ('audit_unsealed', 'entry_id', 'The entry (audit_logs.id).'),
        ('audit_unsealed', 'entry_at', 'audit_logs.created_at of the entry.'),

        ('audit_seals', NULL, 'Hash chain over the audit trail, one chain an organisation; each seal covers some entries and the seal before it.'),
        ('audit_seals', 'organization_id', 'Organisation of the chain.'),
        ('audit_seals', 'number', 'Place in the chain, from 1.'),
        ('audit_seals', 'sealed_at', 'When the seal was made.'),
        ('audit_seals', 'entry_ids', 'The entries it covers (audit_logs.id), in order.'),
        ('audit_seals', 'entry_ats', 'audit_logs.created_at of the entries, in the same order.'),
        ('audit_seals', 'entry_hashes', 'SHA-256 of each entry, one after the other, in the same order.'),
        ('audit_seals', 'previous', 'Hash of the seal before.'),
        ('audit_seals', 'hash', 'SHA-256 over the seal.'),

        ('audit_retention', NULL, 'One row: how far the audit trail was dropped.'),
        ('audit_retention', 'dropped_before', 'Entries before this moment (UTC) were dropped with their month.'),

        ('ai_chat_sessions', NULL, 'Chat sessions of the reference deployment. This service neither reads nor writes them.'),
        ('ai_chat_sessions', 'id', 'Not used by this service.'),
        ('ai_chat_sessions', 'user_id', 'Not used by this service.'),
        ('ai_chat_sessions', 'status', 'Not used by this service.'),
        ('ai_chat_sessions', 'created_at', 'Not used by this service.'),
        ('ai_chat_sessions', 'updated_at', 'Not used by this service.'),
        ('ai_chat_sessions', 'expires_at', 'Not used by this service.'),
        ('ai_chat_sessions', 'current_workflow', 'Not used by this service.'),
        ('ai_chat_sessions', 'workflow_history', 'Not used by this service.'),
        ('ai_chat_sessions', 'messages', 'Not used by this service.'),

        ('organizations', NULL, 'Tenants. Everything else names its organisation; quotas that are null are the settings QUOTA_*.'),
        ('organizations', 'id', 'Short name, such as default.'),
        ('organizations', 'name', 'Name for people.'),
        ('organizations', 'status', 'active or suspended: then its callers are refused.'),
        ('organizations', 'max_agents', 'Quota of agents.'),
        ('organizations', 'max_workflows', 'Quota of workflows.'),
        ('organizations', 'max_api_keys', 'Quota of API keys.'),
        ('organizations', 'max_queued_runs', 'Quota of runs that wait for an executor.'),
        ('organizations', 'created_by', 'Subject of the caller that created the organisation.'),
        ('organizations', 'updated_by', 'Subject of the caller that changed it last.'),
        ('organizations', 'created_at', 'When it was created.'),
        ('organizations', 'updated_at', 'When it was changed last.'),

        ('api_keys', NULL, 'API keys. A revoked key keeps its row.'),
        ('api_keys', 'id', 'Id of the key.'),
        ('api_keys', 'name', 'Name of the key; unique among those in use.'),
        ('api_keys', 'prefix', 'Beginning of the key: wf_ and the environment.'),
        ('api_keys', 'last_four', 'Last four characters of the key.'),
        ('api_keys', 'hash', 'SHA-256 of the key. The key itself is not stored.'),
        ('api_keys', 'role', 'viewer, operator, editor, admin or executor.'),
        ('api_keys', 'scopes', 'Permissions of the role that the key has; null: all of them.'),
        ('api_keys', 'workflows', 'Names of the workflows that the key is bound to; null: all.'),
        ('api_keys', 'created_at', 'When the key was created.'),
        ('api_keys', 'created_by', 'Subject of the caller that created the key.'),
        ('api_keys', 'expires_at', 'When the key expires; null: never.'),
        ('api_keys', 'revoked_at', 'When the key was revoked; null: it is in use.'),
        ('api_keys', 'revoked_by', 'Subject of the caller that revoked the key.'),
        ('api_keys', 'last_used_at', 'When the key was used last, up to two minutes late.'),
        ('api_keys', 'organization_id', 'Organisation of the key (organizations.id).'),

        ('circuit_breakers', NULL, 'Circuit breakers of agents that fail or failed lately. An agent without a row has a closed one.'),
        ('circuit_breakers', 'agent_id', 'The agent (agents.id).'),
        ('circuit_breakers', 'state', 'closed, open (the agent is not called) or half_open (it is tried).'),
        ('circuit_breakers', 'opened_at', 'When the breaker opened; null while it is closed.'),
        ('circuit_breakers', 'calls', 'Counts of successes and failures in the window, by the second.'),
        ('circuit_breakers', 'probes', 'Trial calls under way, with the ends of their leases.'),
        ('circuit_breakers', 'probes_succeeded', 'Trial calls that succeeded since it is half open.'),
        ('circuit_breakers', 'updated_at', 'When the row was changed last.'),

        ('dead_letters', NULL, 'Records of the execution and cancellation topics that no executor can use.'),
        ('dead_letters', 'id', 'Id of the dead letter.'),
        ('dead_letters', 'organization_id', 'Organisation of the run, or default.'),
        ('dead_letters', 'run_id', 'The run that the record names; null: none.'),
        ('dead_letters', 'topic', 'Topic of the record.'),
        ('dead_letters', 'partition', 'Partition of the record.'),
        ('dead_letters', 'record_offset', 'Offset of the record.'),
        ('dead_letters', 'sent_at', 'Timestamp of the record.'),
        ('dead_letters', 'key', 'Key of the record.'),
        ('dead_letters', 'value', 'Value of the record; null: none, or the dead letter was discarded.'),
        ('dead_letters', 'headers', 'Headers of the record: name, and value in base64 or null.'),
        ('dead_letters', 'digest', 'SHA-256 of key and value.'),
        ('dead_letters', 'bytes', 'Size of the value in bytes.'),
        ('dead_letters', 'reason', 'Why it cannot be used, as a code.'),
        ('dead_letters', 'detail', 'Why it cannot be used, in words.'),
        ('dead_letters', 'status', 'open, redriving, redriven or discarded.'),
        ('dead_letters', 'corrected', 'Value that is sent instead of the record''s.'),
        ('dead_letters', 'resolved_by', 'Subject of the caller that asked for the redrive or the discard.'),
        ('dead_letters', 'resolved_at', 'When that was.'),
        ('dead_letters', 'created_at', 'When the record was found.'),
        ('dead_letters', 'copy_at', 'When the copy to the dead-letter topic is tried next; null: it was sent.'),
        ('dead_letters', 'redrive_at', 'When sending the record again is tried next; null: nothing to send.'),

        ('idempotency_keys', NULL, 'Idempotency keys: the first answer, for repeats of a request.'),
        ('idempotency_keys', 'scope', 'The caller and the route with its object.'),
        ('idempotency_keys', 'key', 'Value of the header Idempotency-Key.'),
        ('idempotency_keys', 'fingerprint', 'SHA-256 of the request body.'),
        ('idempotency_keys', 'created_at', 'When the first request came; keys expire after IDEMPOTENCY_KEY_TTL_HOURS.'),

        ('outbox', NULL, 'Transactional outbox: messages that Kafka has not acknowledged yet.'),
        ('outbox', 'run_id', 'The run, and the key of the message.'),
        ('outbox', 'event_id', 'Id of the message, the same in each repeat.'),
        ('outbox', 'kind', 'execution or cancellation.'),
        ('outbox', 'owner', 'Process that sends it (processes.id); null: any process may.'),
        ('outbox', 'cancelled_by', 'Of a cancellation: subject of the caller.'),
        ('outbox', 'reason', 'Of a cancellation: the reason that was given.'),
        ('outbox', 'created_at', 'When the message was written.'),

        ('monitoring_outbox', NULL, 'Transactional outbox of the monitoring topic: updates that Kafka has not acknowledged yet.'),
        ('monitoring_outbox', 'id', 'Id of the row.'),
        ('monitoring_outbox', 'owner', 'Executor that sends it (processes.id); null: any executor may.'),
        ('monitoring_outbox', 'updates', 'The record values, in order.'),
        ('monitoring_outbox', 'created_at', 'When the row was written.'),

        ('processes', NULL, 'Processes of the service that are alive, by heartbeat.'),
        ('processes', 'id', 'Id of the process; a new one at each registration.'),
        ('processes', 'role', 'serve or executor.'),
        ('processes', 'started_at', 'When the process registered.'),
        ('processes', 'heartbeat_at', 'Last heartbeat; after 8 s without one the process counts as dead.'),

        ('run_events', NULL, 'Event log of runs, filled by triggers and by the executor.'),
        ('run_events', 'id', 'Order in which rows were written.'),
        ('run_events', 'run_id', 'The run (workflow_runs.run_id).'),
        ('run_events', 'seq', 'Place in the log of the run, from 1; null until the log is read.'),
        ('run_events', 'at', 'When it happened.'),
        ('run_events', 'kind', 'What happened, such as attempt.failed.'),
        ('run_events', 'step_id', 'The step, if it is about one.'),
        ('run_events', 'attempt_id', 'The attempt (step_executions.id), if it is about one.'),
        ('run_events', 'agent_name', 'The agent, if one was called.'),
        ('run_events', 'http_status', 'HTTP status of the agent''s answer.'),
        ('run_events', 'duration_ms', 'Duration of the call in milliseconds.'),
        ('run_events', 'detail', 'Error message, or a status without a kind of its own.'),

        ('run_wakes', NULL, 'Queue: parked runs that something has come for.'),
        ('run_wakes', 'id', 'Order of arrival.'),
        ('run_wakes', 'run_id', 'The run (workflow_runs.run_id).'),
        ('run_wakes', 'created_at', 'When it came.'),

        ('step_waits', NULL, 'What steps wait for: a time, a callback or approval, a sub-run. One row a waiting attempt.'),
        ('step_waits', 'id', 'Id of the wait.'),
        ('step_waits', 'run_id', 'The run (workflow_runs.run_id).'),
        ('step_waits', 'place', 'Place of the step, as step_executions.place; in the main chain the step''s id.'),
        ('step_waits', 'step_id', 'Id of the step in the plan.'),
        ('step_waits', 'attempt_id', 'The attempt (step_executions.id); null: the step has not begun.'),
        ('step_waits', 'created_at', 'When the waiting began.'),
        ('step_waits', 'due_at', 'When the waiting is over, or is given up.'),
        ('step_waits', 'token', 'Of a callback: the secret part of its address.'),
        ('step_waits', 'token_hash', 'SHA-256 of the token.'),
        ('step_waits', 'approval', 'Of an approval: the role that may decide.'),
        ('step_waits', 'answered_at', 'When the answer came.'),
        ('step_waits', 'answered_by', 'Subject of the caller that answered.'),
        ('step_waits', 'answer', 'The answer.'),
        ('step_waits', 'child_run_id', 'Of a sub-workflow step: its run.'),

        ('service_keys', NULL, 'Random keys that all processes share. They sign cursors of lists and tickets for event streams.'),
        ('service_keys', 'name', 'What the key is for.'),
        ('service_keys', 'key', '32 random bytes.'),
        ('service_keys', 'created_at', 'When the key was made.'),

        ('sub_run_counts', NULL, 'How many runs a run has started by its steps, at all depths.'),
        ('sub_run_counts', 'root_run_id', 'The outermost run (workflow_runs.run_id).'),
        ('sub_run_counts', 'begun', 'Number of runs started inside it.')
    ) AS described (table_name, column_name, text)
    LOOP
        IF description.column_name IS NULL THEN
            EXECUTE format('COMMENT ON TABLE %I IS %L', description.table_name, description.text);
        ELSE
            EXECUTE format('COMMENT ON COLUMN %I.%I IS %L', description.table_name, description.column_name, description.text);
        END IF;
    END LOOP;
END
$describe$;

CREATE VIEW run_overview AS
SELECT r.run_id, r.organization_id,
    CASE WHEN r.workflow_id ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' THEN r.workflow_id::uuid END AS workflow_id,
    r.workflow_name::text AS workflow_name, r.workflow_version, r.status::text AS status, r.priority,
    r.triggered_by::text AS triggered_by, r.correlation_id::text AS correlation_id,
    r.created_at AT TIME ZONE 'UTC' AS created_at,
    r.execution_started_at AT TIME ZONE 'UTC' AS started_at,
    coalesce(r.completed_at, r.cancelled_at) AT TIME ZONE 'UTC' AS ended_at,
    extract(epoch FROM r.execution_started_at - r.created_at)::float8 AS queued_seconds,
    extract(epoch FROM coalesce(r.completed_at, r.cancelled_at) - r.created_at)::float8 AS total_seconds,
    r.wake_at IS NOT NULL AS is_parked, r.paused_at IS NOT NULL AS is_paused,
    r.parent_run_id::text AS parent_run_id, r.parent_step_id::text AS parent_step_id, r.error_message
FROM workflow_runs r;
COMMENT ON VIEW run_overview IS
    'Runs without their payloads; times in UTC with zone, durations in seconds. queued_seconds: from acceptance to the first claim.';

CREATE VIEW step_durations AS
SELECT s.id::text AS attempt_id, s.run_id::text AS run_id, r.organization_id, r.workflow_name::text AS workflow_name,
    s.step_id::text AS step_id, coalesce(s.place, s.step_id) AS place, nullif(s.agent_name, '')::text AS agent_name, s.status::text AS status,
    row_number() OVER (PARTITION BY s.run_id, coalesce(s.place, s.step_id) ORDER BY s.started_at, s.id) AS attempt,
    s.started_at AT TIME ZONE 'UTC' AS started_at,
    s.completed_at AT TIME ZONE 'UTC' AS ended_at,
    extract(epoch FROM s.completed_at - s.started_at)::float8 AS seconds,
    s.error_message
FROM step_executions s JOIN workflow_runs r ON r.run_id = s.run_id;
COMMENT ON VIEW step_durations IS
    'Attempts of steps without their payloads; times in UTC with zone. Join with run_overview by run_id.';

CREATE VIEW agent_stats AS
SELECT a.id AS agent_id, a.organization_id, a.name::text AS agent_name, a.kind::text AS kind, a.status::text AS status,
    count(d.attempt_id) AS attempts,
    count(*) FILTER (WHERE d.status = 'COMPLETED') AS completed,
    count(*) FILTER (WHERE d.status = 'FAILED') AS failed,
    avg(d.seconds) FILTER (WHERE d.status = 'COMPLETED') AS mean_seconds,
    percentile_cont(0.95) WITHIN GROUP (ORDER BY d.seconds) FILTER (WHERE d.status = 'COMPLETED') AS p95_seconds,
    max(d.started_at) AS last_called_at
FROM agents a
LEFT JOIN (
    SELECT s.id AS attempt_id, r.organization_id, s.agent_name, s.status, s.started_at AT TIME ZONE 'UTC' AS started_at,
        extract(epoch FROM s.completed_at - s.started_at)::float8 AS seconds
    FROM step_executions s JOIN workflow_runs r ON r.run_id = s.run_id
) d ON d.organization_id = a.organization_id AND d.agent_name = a.name
GROUP BY a.id;
COMMENT ON VIEW agent_stats IS
    'Agents with the number, outcome and duration of their calls, over all runs that are kept. Reads all attempts.';
