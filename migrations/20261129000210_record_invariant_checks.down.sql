SET LOCAL lock_timeout = '2s';

DROP TABLE invariant_checks;
