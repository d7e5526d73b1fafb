//! Bounds of upstream responses.

use std::time::Duration;

/// The largest header section of a response.
pub const ANSWER_HEAD_BYTES: usize = outrigger_wire::rewrite::MOST_BYTES;
/// The most interim responses (1xx) before the final one.
pub const MOST_INTERIM: usize = 64;
/// How long a response of unknown length may last before its permit is given back.
pub const LONG_BODY: Duration = Duration::from_secs(1);
