//! A response's HTTP/1.1 head as a header block.

use bytes::BytesMut;

use super::hpack;

/// A head that was written as a header block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The length of the HTTP/1.1 head.
    pub len: usize,
    /// Its status.
    pub status: u16,
    /// Its `Content-Length`.
    pub length: Option<u64>,
}

/// Writes the complete HTTP/1.1 head at the start of `text` as a header block, without the headers of the connection. `None`:
/// there is no complete head.
pub fn write(text: &[u8], out: &mut BytesMut) -> Option<Written> {
    let end = memchr::memmem::find(text, b"\r\n\r\n")?;
    let mut lines = Lines(&text[..end + 2]);
    let status = lines.next()?.get(9..12)?;
    let code = std::str::from_utf8(status).ok()?.parse().ok()?;
    hpack::put_status(out, status);
    let mut length = None;
    for line in lines {
        let colon = memchr::memchr(b':', line)?;
        let (name, value) = (&line[..colon], line.get(colon + 2..).unwrap_or_default());
        match name.len() {
            7 | 10 | 16 | 17 if belongs_to_connection(name) => continue,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            }
            _ => {}
        }
        hpack::put_field(out, name, value);
    }
    Some(Written { len: end + 4, status: code, length })
}

/// Whether a header is one of a connection of HTTP/1 (RFC 9113 section 8.2.2), or announces trailers, which do not pass.
fn belongs_to_connection(name: &[u8]) -> bool {
    let of_connection: [&[u8]; 6] =
        [b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"trailer"];
    of_connection.iter().any(|other| name.eq_ignore_ascii_case(other))
}

/// Lines that end in CR LF.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let end = memchr::memchr(b'\n', self.0)?;
        let (line, rest) = self.0.split_at(end + 1);
        self.0 = rest;
        line.strip_suffix(b"\r\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_becomes_a_header_block_without_the_connections_headers() {
        let head = "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\nConnection: close\r\nTrailer: x\r\nX-Empty: \r\n\
                    Keep-Alive: 1\r\nTransfer-Encoding: chunked\r\nSet-Cookie: a=b\r\n\r\nabc";
        let mut block = BytesMut::new();
        let written = write(head.as_bytes(), &mut block).unwrap();
        assert_eq!(written, Written { len: head.len() - 3, status: 404, length: Some(3) });
        let mut fields = String::new();
        let mut decoder = hpack::Decoder::default();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        decoder.decode(&block, |name, value| fields += &format!("{}={} ", text(name), text(value))).unwrap();
        assert_eq!(fields, ":status=404 content-length=3 x-empty= set-cookie=a=b ");
    }

    #[test]
    fn an_incomplete_head_is_not_written() {
        for head in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nA: b\r\n", "\r\n\r\n"] {
            assert_eq!(write(head.as_bytes(), &mut BytesMut::new()), None, "{head:?}");
        }
    }
}
