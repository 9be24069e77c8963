//! Slowburn.
fn main() {}
