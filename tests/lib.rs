//! Nothing here: the promises are in `main.rs`, one file each.
