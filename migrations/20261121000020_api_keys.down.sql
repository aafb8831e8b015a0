SET LOCAL lock_timeout = '2s';

DROP TABLE api_keys;
