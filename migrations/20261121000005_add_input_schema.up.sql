-- A JSON Schema for the input of runs. It belongs to the content: a new one makes a new version.
SET LOCAL lock_timeout = '5s';
ALTER TABLE workflow_definitions ADD COLUMN input_schema jsonb;
COMMENT ON COLUMN workflow_definitions.input_schema IS
    'JSON Schema that the input_data of an execute request has to satisfy; null takes any object.';
