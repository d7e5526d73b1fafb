//! Empty: the tests are in `main.rs`, one file for each guarantee.
