//! A minimal HTTP client for checks of local programs: one request per connection, no TLS.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::{Error, Result, error::While};

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub body: String,
}

/// `GET http://ADDRESS/PATH`.
pub fn get(address: SocketAddr, path: &str, limit: Duration) -> Result<Answer> {
    send("GET", address, path, &[], "", limit)
}

/// Sends one request. `limit` applies to the connect and to each read, so a hanging server costs a few times `limit`
/// at most.
pub fn send(
    method: &str,
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
    limit: Duration,
) -> Result<Answer> {
    let doing = || format!("{method} http://{address}{path}");
    let mut stream = TcpStream::connect_timeout(&address, limit).while_(doing())?;
    stream.set_read_timeout(Some(limit)).while_(doing())?;
    stream.set_write_timeout(Some(limit)).while_(doing())?;
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str(&format!("content-length: {}\r\n\r\n{body}", body.len()));
    stream.write_all(request.as_bytes()).while_(doing())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).while_(doing())?;
    parse(&answer).ok_or_else(|| Error::new(format_args!("{}: the response is not HTTP", doing())))
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(answer);
    let (head, rest) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let chunked = head.lines().any(|line| line.to_ascii_lowercase().replace(' ', "") == "transfer-encoding:chunked");
    let body = if chunked { unchunk(rest)? } else { rest.to_owned() };
    Some(Answer { status, body })
}

fn unchunk(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_plain_and_chunked_bodies() {
        let plain = parse(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").unwrap();
        assert_eq!(plain, Answer { status: 200, body: "hi".into() });
        let chunked = b"HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n1;x=y\r\n!\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap(), Answer { status: 503, body: "hi!".into() });
    }

    #[test]
    fn rejects_incomplete_responses() {
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhi"), None);
        assert_eq!(parse(b"SSH-2.0-x\r\n\r\n"), None);
    }
}
