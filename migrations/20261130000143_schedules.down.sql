DROP TABLE trigger_backfills;
DROP TABLE trigger_schedules;
