SET LOCAL lock_timeout = '5s';
ALTER TABLE workflow_definitions DROP COLUMN input_schema;
