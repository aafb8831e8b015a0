DROP TABLE agent_health;
