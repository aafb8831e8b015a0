-- Counts the runs that are there already: a transaction of its own, in which no lock keeps anybody from writing.
SET LOCAL statement_timeout = 0;
SELECT recount_runs();
