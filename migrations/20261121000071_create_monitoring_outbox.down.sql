DROP TABLE monitoring_outbox;
