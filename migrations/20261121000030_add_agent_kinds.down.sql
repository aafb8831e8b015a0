-- Agents of another kind than A2A cannot be called by the release before.
ALTER TABLE agents DROP COLUMN kind, DROP COLUMN config;
