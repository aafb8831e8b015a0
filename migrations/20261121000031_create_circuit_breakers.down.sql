DROP TABLE circuit_breakers;
