//! The fuzz targets, shared by their programs.

pub mod targets;
