SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = 0;

DROP INDEX workflow_runs_by_creation, agents_by_creation, agents_name_prefix,
    workflow_definitions_by_creation, workflow_definitions_name_prefix;
