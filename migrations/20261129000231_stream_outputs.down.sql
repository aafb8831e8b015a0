DROP TABLE step_deltas;
