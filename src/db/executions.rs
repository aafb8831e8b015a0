//! What the executor does to runs and steps. (being written)
