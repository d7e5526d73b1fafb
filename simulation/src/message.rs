//! A strict reader of HTTP/1.1 messages, for clients and apps of the simulation.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// The most bytes of a head.
const MOST_HEAD: usize = 64 << 10;

/// The head of a message.
#[derive(Clone, Debug, Default)]
pub struct Head {
    /// The first line.
    pub line: String,
    fields: Vec<(String, String)>,
}

impl Head {
    /// The value of a header, whose name is in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A header that is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// The status, if it is a response.
    pub fn status(&self) -> Option<u16> {
        self.line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
    }

    fn is_chunked(&self) -> bool {
        self.get("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
    }
}

/// Why a message is not complete.
#[derive(Debug)]
pub enum Cut {
    /// The connection ended before its first byte.
    BeforeIt,
    /// The connection ended within it.
    Within,
    /// It is not HTTP.
    Malformed(String),
}

/// The parts of a connection that reads messages.
#[derive(Debug, Default)]
pub struct Reader {
    read: Vec<u8>,
}

impl Reader {
    /// Bytes that have arrived and belong to no message yet.
    pub fn unread(&self) -> &[u8] {
        &self.read
    }

    async fn more(&mut self, from: &mut (impl AsyncRead + Unpin)) -> io::Result<usize> {
        self.read.reserve(16 << 10);
        from.read_buf(&mut self.read).await
    }

    /// Waits until bytes arrive or the connection ends: then false.
    pub async fn wait(&mut self, from: &mut (impl AsyncRead + Unpin)) -> bool {
        !self.read.is_empty() || self.more(from).await.is_ok_and(|read| read > 0)
    }

    /// Reads a head.
    ///
    /// # Errors
    /// It is not complete.
    pub async fn head(&mut self, from: &mut (impl AsyncRead + Unpin)) -> Result<Head, Cut> {
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|end| end == b"\r\n\r\n") {
                break end;
            }
            if self.read.len() > MOST_HEAD {
                return Err(Cut::Malformed("a head without an end".to_owned()));
            }
            let was_empty = self.read.is_empty();
            match self.more(from).await {
                Ok(0) | Err(_) if was_empty => return Err(Cut::BeforeIt),
                Ok(0) | Err(_) => return Err(Cut::Within),
                Ok(_) => {}
            }
        };
        let head: Vec<u8> = self.read.drain(..end + 4).collect();
        let text = String::from_utf8(head).map_err(|_| Cut::Malformed("a head that is no text".to_owned()))?;
        let mut lines = text.trim_end().split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let fields = lines.map(|line| {
            let (name, value) = line.split_once(':').ok_or_else(|| Cut::Malformed(format!("the header {line:?}")))?;
            Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
        });
        Ok(Head { line, fields: fields.collect::<Result<_, Cut>>()? })
    }

    /// Reads a body, piece by piece. `has_none`: the message has none, whatever its head says. `to_end`: without a length it ends with
    /// the connection, as a response does.
    ///
    /// # Errors
    /// It is not complete.
    pub async fn body(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        head: &Head,
        has_none: bool,
        to_end: bool,
    ) -> Result<Vec<u8>, Cut> {
        if has_none {
            return Ok(Vec::new());
        }
        if head.is_chunked() {
            return self.chunks(from).await;
        }
        match head.number("content-length") {
            Some(length) => self.exactly(from, length as usize).await,
            None if to_end => {
                while self.more(from).await.map_err(|_| Cut::Within)? > 0 {}
                Ok(std::mem::take(&mut self.read))
            }
            None => Ok(Vec::new()),
        }
    }

    async fn exactly(&mut self, from: &mut (impl AsyncRead + Unpin), length: usize) -> Result<Vec<u8>, Cut> {
        while self.read.len() < length {
            if self.more(from).await.map_err(|_| Cut::Within)? == 0 {
                return Err(Cut::Within);
            }
        }
        Ok(self.read.drain(..length).collect())
    }

    async fn chunks(&mut self, from: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, Cut> {
        let mut body = Vec::new();
        loop {
            let line = self.line(from).await?;
            let size = line.split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size.trim(), 16)
                .map_err(|_| Cut::Malformed(format!("the size of a chunk: {line:?}")))?;
            if size == 0 {
                while !self.line(from).await?.is_empty() {}
                return Ok(body);
            }
            body.extend(self.exactly(from, size).await?);
            if !self.line(from).await?.is_empty() {
                return Err(Cut::Malformed("a chunk that is longer than its size".to_owned()));
            }
        }
    }

    async fn line(&mut self, from: &mut (impl AsyncRead + Unpin)) -> Result<String, Cut> {
        loop {
            if let Some(end) = self.read.windows(2).position(|end| end == b"\r\n") {
                let line: Vec<u8> = self.read.drain(..end + 2).collect();
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if self.more(from).await.map_err(|_| Cut::Within)? == 0 {
                return Err(Cut::Within);
            }
        }
    }
}

/// The body of this length that belongs to a request, in one direction.
pub fn content(id: u64, direction: char, length: usize) -> Vec<u8> {
    let piece = format!("{direction}{id};");
    let mut bytes = piece.repeat(length / piece.len() + 1).into_bytes();
    bytes.truncate(length);
    bytes
}
