//! Snapshots as bytes; numbers are little-endian.
//!
//! ```text
//! 8   magic "OUTRSNAP"
//! 2   format
//! 8   nanoseconds since 1970   ┐ not in the payload: it is the same
//! 8   the process's clock      ┘ until something changes
//! 8   length of the payload
//! 4   CRC-32 of the times and the payload
//! …   payload: parts, each with its kind (1), its length (4) and its content
//! ```
//!
//! A part of an unknown kind is skipped, so a later version may add parts.

use crate::abuse::{Ban, Offence};
use crate::breaker::{
    MOST_SAVED_CLIENTS, MOST_SAVED_PLACES, Reason, SavedBreaker, SavedClient, SavedPosition, SavedSwitch,
};
use crate::retry::SavedBudget;
use crate::saved::{LONGEST_NAME, Saved, SavedBan, SavedKey, Unusable};

const MAGIC: &[u8; 8] = b"OUTRSNAP";
/// Increases when an older version could misread a snapshot.
pub(super) const FORMAT: u16 = 1;
pub(super) const HEAD_BYTES: usize = 38;
/// Where the times begin, which the checksum covers.
const TIMES: std::ops::Range<usize> = 10..26;

/// The size of a key.
pub(super) const KEY_BYTES: usize = 16;
/// The size of a ban, without its name.
pub(super) const BAN_BYTES: usize = 23;

mod part {
    pub(super) const MACHINE: u8 = 1;
    pub(super) const VERSION: u8 = 2;
    pub(super) const HASHES: u8 = 3;
    pub(super) const CONCURRENCY: u8 = 4;
    pub(super) const RETRIES: u8 = 5;
    pub(super) const BREAKERS: u8 = 6;
    pub(super) const BANS: u8 = 7;
    pub(super) const LIMITS: u8 = 8;
}

/// CRC-32 as in Ethernet, gzip and PNG.
const CRC: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// Returns the CRC-32 of both, one after the other.
pub(super) fn checksum(first: &[u8], second: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| CRC[usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
    !first.iter().chain(second).fold(!0, step)
}

pub(super) fn encode(saved: &Saved) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(1024 + saved.limits.len() * KEY_BYTES + saved.bans.len() * 64));
    out.part(part::MACHINE, |out| out.0.extend_from_slice(cut(&saved.machine)));
    out.part(part::VERSION, |out| out.0.extend_from_slice(cut(&saved.version)));
    out.part(part::HASHES, |out| {
        out.u64(saved.fingerprint);
        if let Some(seed) = &saved.seed {
            out.0.extend_from_slice(seed);
        }
    });
    if let Some(limit) = saved.concurrency {
        out.part(part::CONCURRENCY, |out| out.u64(limit.to_bits()));
    }
    if let Some(SavedBudget { tokens, second, retries }) = saved.retries {
        out.part(part::RETRIES, |out| {
            out.u64(tokens.to_bits());
            out.u64(second);
            out.u32(retries);
        });
    }
    out.part(part::BREAKERS, |out| {
        for (name, breaker) in &saved.breakers {
            out.name(name);
            out.breaker(breaker);
            out.u8(breaker.places.len().min(MOST_SAVED_PLACES) as u8);
            for (name, place) in breaker.places.iter().take(MOST_SAVED_PLACES) {
                out.u64(*name);
                out.breaker(place);
            }
        }
    });
    out.part(part::BANS, |out| {
        for SavedBan { who, ban } in &saved.bans {
            out.name(who);
            out.u8(ban.offence as u8);
            out.u32(ban.times);
            out.u64(ban.since);
            out.u64(ban.until);
        }
    });
    out.part(part::LIMITS, |out| {
        for SavedKey { tag, tat } in &saved.limits {
            out.u64(*tag);
            out.u64(*tat);
        }
    });
    seal(saved.unix_ns, saved.clock_ns, &out.0)
}

/// Returns a snapshot with this payload.
pub(super) fn seal(unix_ns: u64, clock_ns: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(HEAD_BYTES + payload.len()));
    out.0.extend_from_slice(MAGIC);
    out.0.extend_from_slice(&FORMAT.to_le_bytes());
    out.u64(unix_ns);
    out.u64(clock_ns);
    let crc = checksum(&out.0[TIMES], payload);
    out.u64(payload.len() as u64);
    out.u32(crc);
    out.0.extend_from_slice(payload);
    out.0
}

/// Names are cut where they are too long; those of Machines, routes and bans never are.
fn cut(name: &str) -> &[u8] {
    &name.as_bytes()[..name.floor_char_boundary(LONGEST_NAME)]
}

struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn name(&mut self, name: &str) {
        let name = cut(name);
        self.0.extend_from_slice(&(name.len() as u16).to_le_bytes());
        self.0.extend_from_slice(name);
    }

    fn part(&mut self, kind: u8, content: impl FnOnce(&mut Self)) {
        self.u8(kind);
        let at = self.0.len();
        self.u32(0);
        content(self);
        // A part of 4 GiB is longer than any snapshot may be.
        let length = u32::try_from(self.0.len() - at - 4).unwrap_or(u32::MAX);
        self.0[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }

    fn switch(&mut self, switch: &SavedSwitch) {
        let (kind, a, b) = match switch.position {
            SavedPosition::Closed => (0, 0, 0),
            SavedPosition::Open { until, length, is_brief: false } => (1, until, length),
            SavedPosition::Open { until, length, is_brief: true } => (2, until, length),
            SavedPosition::Ramp { since } => (3, since, 0),
        };
        self.u8(kind);
        self.u64(a);
        self.u64(b);
        self.u32(switch.trips);
        self.u64(switch.closed_at);
    }

    fn breaker(&mut self, breaker: &SavedBreaker) {
        self.switch(&breaker.switch);
        self.u8(breaker.reason.map_or(0, |reason| reason as u8 + 1));
        self.u8(breaker.clients.len().min(MOST_SAVED_CLIENTS) as u8);
        for client in breaker.clients.iter().take(MOST_SAVED_CLIENTS) {
            self.u64(client.key);
            self.u32(client.failures);
            self.u8(u8::from(client.is_for_probe));
            self.switch(&client.switch);
        }
    }
}

pub(super) fn decode(bytes: &[u8]) -> Result<Saved, Unusable> {
    let is = bytes.len() as u64;
    if bytes.get(..8) != Some(MAGIC) {
        let is_cut = MAGIC.starts_with(bytes) && !bytes.is_empty();
        return Err(if is_cut { Unusable::Torn(is, HEAD_BYTES as u64) } else { Unusable::NotASnapshot });
    }
    let torn = || Unusable::Torn(is, HEAD_BYTES as u64);
    let mut head = Reader { bytes: &bytes[8..], part: "head" };
    let format = head.u16().map_err(|_| torn())?;
    if format != FORMAT {
        return Err(Unusable::OtherFormat(format));
    }
    let mut number = || head.u64().map_err(|_| torn());
    let (unix_ns, clock_ns, length) = (number()?, number()?, number()?);
    let crc = head.u32().map_err(|_| torn())?;
    let payload = head.bytes;
    if payload.len() as u64 != length {
        return Err(Unusable::Torn(is, length.saturating_add(HEAD_BYTES as u64)));
    }
    if checksum(&bytes[TIMES], payload) != crc {
        return Err(Unusable::Checksum);
    }
    let mut saved = Saved { unix_ns, clock_ns, ..Saved::default() };
    let mut parts = Reader { bytes: payload, part: "list of parts" };
    while !parts.bytes.is_empty() {
        let kind = parts.u8()?;
        let length = parts.u32()?;
        read_part(&mut saved, kind, parts.take(length as usize)?)?;
    }
    Ok(saved)
}

fn read_part(saved: &mut Saved, kind: u8, bytes: &[u8]) -> Result<(), Unusable> {
    let mut part = Reader { bytes, part: "unknown part" };
    match kind {
        part::MACHINE => saved.machine = part.of("Machine").text()?,
        part::VERSION => saved.version = part.of("version").text()?,
        part::HASHES => {
            part.part = "seed";
            saved.fingerprint = part.u64()?;
            if !part.bytes.is_empty() {
                saved.seed = Some(part.array()?);
            }
        }
        part::CONCURRENCY => saved.concurrency = Some(f64::from_bits(part.of("concurrency limit").u64()?)),
        part::RETRIES => {
            part.part = "retry budget";
            let tokens = f64::from_bits(part.u64()?);
            saved.retries = Some(SavedBudget { tokens, second: part.u64()?, retries: part.u32()? });
        }
        part::BREAKERS => {
            part.part = "list of breakers";
            while !part.bytes.is_empty() {
                let (name, mut breaker) = (part.name()?, part.breaker()?);
                for _ in 0..part.count(MOST_SAVED_PLACES)? {
                    breaker.places.push((part.u64()?, part.breaker()?));
                }
                saved.breakers.push((name, breaker));
            }
        }
        part::BANS => {
            part.part = "list of bans";
            while !part.bytes.is_empty() {
                let who = part.name()?;
                let offence = part.u8()?;
                let offence = Offence::ALL.get(usize::from(offence)).copied().ok_or(Unusable::Malformed(part.part))?;
                let (times, since, until) = (part.u32()?, part.u64()?, part.u64()?);
                saved.bans.push(SavedBan { who, ban: Ban { offence, times, since, until } });
            }
        }
        part::LIMITS => {
            part.part = "list of rate limits";
            saved.limits.reserve_exact(bytes.len() / KEY_BYTES);
            while !part.bytes.is_empty() {
                saved.limits.push(SavedKey { tag: part.u64()?, tat: part.u64()? });
            }
        }
        // Of a later version.
        _ => return Ok(()),
    }
    if part.bytes.is_empty() { Ok(()) } else { Err(Unusable::Malformed(part.part)) }
}

struct Reader<'b> {
    bytes: &'b [u8],
    /// The part that it reads, for errors.
    part: &'static str,
}

impl<'b> Reader<'b> {
    fn of(&mut self, part: &'static str) -> &mut Self {
        self.part = part;
        self
    }

    fn take(&mut self, length: usize) -> Result<&'b [u8], Unusable> {
        let (taken, rest) = self.bytes.split_at_checked(length).ok_or(Unusable::Malformed(self.part))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Unusable> {
        let (taken, rest) = self.bytes.split_first_chunk::<N>().ok_or(Unusable::Malformed(self.part))?;
        self.bytes = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Unusable> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, Unusable> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Unusable> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Unusable> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self, most: usize) -> Result<usize, Unusable> {
        let count = usize::from(self.u8()?);
        if count <= most { Ok(count) } else { Err(Unusable::Malformed(self.part)) }
    }

    fn name(&mut self) -> Result<String, Unusable> {
        let length = self.u16()?;
        let name = self.take(length.into())?;
        Reader { bytes: name, part: self.part }.text()
    }

    /// The rest as text.
    fn text(&mut self) -> Result<String, Unusable> {
        let bytes = std::mem::take(&mut self.bytes);
        let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= LONGEST_NAME);
        text.map(str::to_owned).ok_or(Unusable::Malformed(self.part))
    }

    fn switch(&mut self) -> Result<SavedSwitch, Unusable> {
        let (kind, a, b) = (self.u8()?, self.u64()?, self.u64()?);
        let position = match kind {
            0 => SavedPosition::Closed,
            1 | 2 => SavedPosition::Open { until: a, length: b, is_brief: kind == 2 },
            3 => SavedPosition::Ramp { since: a },
            _ => return Err(Unusable::Malformed(self.part)),
        };
        Ok(SavedSwitch { position, trips: self.u32()?, closed_at: self.u64()? })
    }

    /// Without its places.
    fn breaker(&mut self) -> Result<SavedBreaker, Unusable> {
        let switch = self.switch()?;
        let reason = match self.u8()? {
            0 => None,
            n => Some(*Reason::ALL.get(usize::from(n) - 1).ok_or(Unusable::Malformed(self.part))?),
        };
        let mut breaker = SavedBreaker { switch, reason, ..SavedBreaker::default() };
        for _ in 0..self.count(MOST_SAVED_CLIENTS)? {
            let (key, failures, is_for_probe) = (self.u64()?, self.u32()?, self.u8()? != 0);
            breaker.clients.push(SavedClient { key, failures, is_for_probe, switch: self.switch()? });
        }
        Ok(breaker)
    }
}
