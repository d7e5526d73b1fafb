//! How entries get to disk.
