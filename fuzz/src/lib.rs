//! The fuzz targets, shared by their programs and by a test of the mechanism crate, which includes this file.

pub mod targets;
