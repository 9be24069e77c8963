//! j
pub mod burn;
pub mod evidence;
