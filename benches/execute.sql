-- The three inserts of an execute request as one would write them by hand: the control of execute.sh.
\set n random(1, 1000000000)
BEGIN;
INSERT INTO workflow_runs (run_id, workflow_id, workflow_name, workflow_definition_id, status, input_data,
    triggered_by, created_at, updated_at)
VALUES ('run-' || gen_random_uuid(), '7a1d4c1e-6a0b-4f6a-8a37-51d1f3c1b9aa', 'bench',
    '7a1d4c1e-6a0b-4f6a-8a37-51d1f3c1b9aa', 'PENDING', '{"text":"hello"}', 'system', now(), now());
INSERT INTO outbox (run_id, event_id, kind) VALUES ('run-' || gen_random_uuid(), gen_random_uuid(), 'execution');
INSERT INTO audit_logs (entity_type, entity_id, action, user_id, changes)
VALUES ('run', gen_random_uuid(), 'execute', 'system', '{"workflow_id":"7a1d4c1e-6a0b-4f6a-8a37-51d1f3c1b9aa"}');
COMMIT;
