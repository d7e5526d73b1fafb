//! Frames of WebSocket (RFC 6455), as far as an echo needs them: whole messages, no extensions.

/// `Sec-WebSocket-Key` and `Sec-WebSocket-Accept` of the RFC's example: the key is the same on each connection.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;

/// A frame that is a whole message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    kind: u8,
    pub payload: Vec<u8>,
}

impl Message {
    pub fn binary(payload: impl Into<Vec<u8>>) -> Self {
        Self { kind: BINARY, payload: payload.into() }
    }

    /// A close frame with the status 1000.
    pub fn close() -> Self {
        Self { kind: CLOSE, payload: 1000_u16.to_be_bytes().to_vec() }
    }

    pub fn is_close(&self) -> bool {
        self.kind == CLOSE
    }

    /// Its bytes. Clients mask, servers do not.
    pub fn written(&self, mask: Option<[u8; 4]>) -> Vec<u8> {
        let bit = if mask.is_some() { MASKED } else { 0 };
        let mut bytes = vec![FINAL | self.kind];
        match self.payload.len() {
            length @ 0..126 => bytes.push(bit | length as u8),
            length @ 126..0x1_0000 => {
                bytes.push(bit | 126);
                bytes.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                bytes.push(bit | 127);
                bytes.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        let mask = mask.inspect(|mask| bytes.extend_from_slice(mask)).unwrap_or_default();
        bytes.extend(self.payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }
}

/// Removes the first message from these bytes, if it is complete.
pub fn take(bytes: &mut Vec<u8>) -> Option<Message> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    let (length, mut at) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?)), 4),
        127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
        length => (u64::from(length), 2),
    };
    let mut mask = [0; 4];
    if second & MASKED != 0 {
        mask = bytes.get(at..at + 4)?.try_into().ok()?;
        at += 4;
    }
    let end = at.checked_add(usize::try_from(length).ok()?)?;
    let payload = bytes.get(at..end)?.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    bytes.drain(..end);
    Some(Message { kind: first & 0x0f, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_every_length_are_read_as_they_were_written() {
        for length in [0, 1, 125, 126, 0xffff, 0x1_0000] {
            for mask in [None, Some([1, 2, 3, 4])] {
                let message = Message::binary(vec![7; length]);
                let mut bytes = message.written(mask);
                let whole = bytes.len();
                bytes.extend(Message::close().written(mask));
                let mut part = bytes[..whole - 1].to_vec();
                assert_eq!(take(&mut part), None);
                assert_eq!(part.len(), whole - 1);
                assert_eq!(take(&mut bytes), Some(message));
                assert!(take(&mut bytes).unwrap().is_close());
                assert!(bytes.is_empty() && take(&mut bytes).is_none());
            }
        }
    }

    #[test]
    fn the_frame_of_the_specification_is_read() {
        // RFC 6455, section 5.7: a masked "Hello".
        let mut bytes = vec![0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(take(&mut bytes).unwrap().payload, b"Hello");
    }
}
