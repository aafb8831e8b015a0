//! The newcomer's first minute. (being written)
