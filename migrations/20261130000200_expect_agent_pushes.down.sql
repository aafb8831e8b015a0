DROP TABLE agent_pushes;
