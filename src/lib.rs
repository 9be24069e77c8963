//! Slowburn.
