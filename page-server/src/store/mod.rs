//! Image directories: staged, checked, made durable, sealed.

pub mod sink;
