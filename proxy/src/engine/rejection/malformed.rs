//! Requests that are not HTTP: another part of the table.

use http::StatusCode;
use outrigger_wire::malformed::Malformed;

use super::Problem;

/// The row of each.
pub(super) const fn malformed_problem(malformed: Malformed) -> Problem {
    let (status, label) = match malformed {
        Malformed::RequestLine => (StatusCode::BAD_REQUEST, "malformed_request_line"),
        Malformed::Target => (StatusCode::BAD_REQUEST, "malformed_target"),
        Malformed::Version => (StatusCode::HTTP_VERSION_NOT_SUPPORTED, "malformed_version"),
        Malformed::Connect => (StatusCode::METHOD_NOT_ALLOWED, "malformed_connect"),
        Malformed::Field => (StatusCode::BAD_REQUEST, "malformed_field"),
        Malformed::BareLineFeed => (StatusCode::BAD_REQUEST, "malformed_line_end"),
        Malformed::FoldedField => (StatusCode::BAD_REQUEST, "malformed_folded_field"),
        Malformed::Host => (StatusCode::BAD_REQUEST, "malformed_host"),
        Malformed::HostMismatch => (StatusCode::BAD_REQUEST, "malformed_host_mismatch"),
        Malformed::Length => (StatusCode::BAD_REQUEST, "malformed_length"),
        Malformed::Encoding => (StatusCode::BAD_REQUEST, "malformed_encoding"),
        Malformed::LengthAndEncoding => (StatusCode::BAD_REQUEST, "malformed_length_and_encoding"),
        Malformed::Chunk => (StatusCode::BAD_REQUEST, "malformed_chunk"),
        // Without a response: see docs/operations.md, "HTTP/2".
        Malformed::Stream => (StatusCode::BAD_REQUEST, "malformed_stream"),
        Malformed::Frame => (StatusCode::BAD_REQUEST, "malformed_frame"),
    };
    Problem { status, label, title: "The request is malformed", detail: malformed.advice(), retry_after: None }
}
