-- Indexes of the lists: the default order of each with the id that makes it total, and prefixes of names, which an
-- index in the column's collation does not serve. Runs get no more than that: each index is written by each start.
SET LOCAL lock_timeout = '2s';
SET LOCAL statement_timeout = 0;

CREATE INDEX workflow_runs_by_creation ON workflow_runs (created_at, run_id);
CREATE INDEX agents_by_creation ON agents (created_at, id);
CREATE INDEX agents_name_prefix ON agents (name text_pattern_ops);
CREATE INDEX workflow_definitions_by_creation ON workflow_definitions (created_at, id);
CREATE INDEX workflow_definitions_name_prefix ON workflow_definitions (name text_pattern_ops);
