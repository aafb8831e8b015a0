DROP INDEX monitoring_outbox_owned;
DROP INDEX monitoring_outbox_free;
