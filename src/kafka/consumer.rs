//! Reading the topics. (being written)
