DROP TRIGGER IF EXISTS step_waits_organization ON step_waits;
DROP FUNCTION IF EXISTS set_organization_of_wait();
ALTER TABLE step_waits DROP COLUMN IF EXISTS organization_id;
