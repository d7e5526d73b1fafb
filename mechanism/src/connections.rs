//! Connection limits: counts the connections of each address, and closes idle ones to make room for new ones.
//!
//! Each address has at most a share of all connections. At a limit, an idle connection makes room for the new one: one
//! of the same address if that has its share, else one of the address with the most. A connection with a request in
//! flight is never closed; one with an unfinished head is, if there is no idle one. The memory of unfinished heads is
//! bounded in the same way. When the process is short of descriptors, connections that have been unused for a moment
//! make room.
//!
//! HTTP/2 connections carry many requests, so those of an address are counted, too: it may have as many as connections. An
//! HTTP/2 connection with an unfinished header block and requests in flight, whose memory others need, accepts no more header
//! blocks and closes after its requests.
//!
//! The table's lock is taken when a connection opens and closes, and while a head of more than [`FREE_HEAD_BYTES`] is
//! incomplete. A request only counts itself in its connection's own [`ConnectionState`].

pub mod metrics;

use std::collections::{BTreeSet, HashMap};
use std::future::poll_fn;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use outrigger_identity::clock;

use futures_util::task::AtomicWaker;

/// When the process closes idle connections, or is short of descriptors: how long one must have been idle. A client that is
/// about to send on a connection it just used gets its response, with `Connection: close`.
pub const RESTED: Duration = Duration::from_millis(500);

/// An unfinished head up to this size is part of what a connection costs.
pub const FREE_HEAD_BYTES: usize = 4 << 10;
/// One address may hold the memory for heads, divided by this.
const HEAD_SHARE: usize = 4;
/// The maximum number of an address's connections searched for an idle one; each search starts where the last one
/// ended.
const LOOKED_AT: usize = 64;
/// The maximum number of addresses searched, those with the most connections first.
const ADDRESSES_LOOKED_AT: usize = 64;

/// The states of a [`ConnectionState`]: idle, with an unfinished head, told to close, or with requests in flight, each
/// of which adds `BUSY`. An HTTP/2 connection with requests in flight can have an unfinished head as well, and be told to end
/// only that.
const RESTS: u32 = 0;
const HEAD: u32 = 1;
const GONE: u32 = 2;
const HEADLESS: u32 = 4;
const BUSY: u32 = 8;

/// Limits on the number of connections.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// In total.
    pub all: usize,
    /// Per address.
    pub address: usize,
}

/// The connections of one listener.
#[derive(Debug, Default)]
pub struct Connections {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    total: usize,
    addresses: HashMap<u64, Address>,
    /// Connections to which no limit per address applies.
    exempt: Address,
    /// Addresses by their number of connections.
    by_number: BTreeSet<(usize, u64)>,
    /// The memory of unfinished heads, in bytes: in total and by address.
    heads: usize,
    head_holders: HashMap<u64, usize>,
}

#[derive(Debug, Default)]
struct Address {
    open: Vec<Arc<ConnectionState>>,
    /// Where the next search for an idle connection starts.
    next: usize,
    /// Requests over HTTP/2.
    streams: Arc<AtomicUsize>,
}

/// Why a request over HTTP/2 does not begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoStream {
    /// Its address has as many as it may.
    TooMany,
    /// The connection is to close.
    Closing,
}

/// The part of a connection that others need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Close.
    Close,
    /// End its unfinished header block, accept no other, and close after its requests in flight.
    EndBlocks,
}

/// The state of one connection.
#[derive(Debug)]
pub struct ConnectionState {
    /// `None` if no limit per address applies.
    address: Option<u64>,
    /// The index among the connections of its address. Changes under the table's lock only.
    index: AtomicUsize,
    state: AtomicU32,
    /// When it opened, or its last request ended: see [`milliseconds`].
    unused_since: AtomicU64,
    head_bytes: AtomicUsize,
    /// The requests over HTTP/2 of all connections of its address.
    streams: Arc<AtomicUsize>,
    waker: AtomicWaker,
}

/// Returns the milliseconds since the first connection.
fn milliseconds() -> u64 {
    static FIRST: LazyLock<Instant> = LazyLock::new(clock::now);
    u64::try_from(FIRST.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl ConnectionState {
    fn new(address: Option<u64>, streams: Arc<AtomicUsize>) -> Self {
        Self {
            address,
            index: AtomicUsize::new(0),
            state: AtomicU32::new(RESTS),
            unused_since: AtomicU64::new(milliseconds()),
            head_bytes: AtomicUsize::new(0),
            streams,
            waker: AtomicWaker::new(),
        }
    }

    /// Begins a request. Returns false if the connection is to close.
    pub fn begin(&self) -> bool {
        let begin = |state: u32| (state & GONE == 0).then_some((state & !HEAD) + BUSY);
        self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, begin).is_ok()
    }

    /// Ends a request that has begun.
    pub fn end(&self) {
        self.unused_since.store(milliseconds(), Ordering::Relaxed);
        self.state.fetch_sub(BUSY, Ordering::AcqRel);
    }

    /// Whether a limit per address applies.
    pub fn has_address(&self) -> bool {
        self.address.is_some()
    }

    /// Begins a request over HTTP/2, of which the address has at most `most` at a time, if a limit per address applies.
    ///
    /// # Errors
    /// It has as many, or the connection is to close.
    pub fn begin_stream(&self, most: usize) -> Result<(), NoStream> {
        if self.address.is_some() && self.streams.fetch_add(1, Ordering::Relaxed) >= most {
            self.leave_stream();
            return Err(NoStream::TooMany);
        }
        if !self.begin() {
            self.leave_stream();
            return Err(NoStream::Closing);
        }
        Ok(())
    }

    /// Ends a request of [`Self::begin_stream`].
    pub fn end_stream(&self) {
        self.leave_stream();
        self.end();
    }

    fn leave_stream(&self) {
        if self.address.is_some() {
            self.streams.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Records a part of a head. Returns false if the connection is to close.
    pub fn begin_head(&self) -> bool {
        matches!(self.state.compare_exchange(RESTS, HEAD, Ordering::AcqRel, Ordering::Acquire), Ok(_) | Err(HEAD))
    }

    /// Records a part of a header block of HTTP/2. Returns false if the connection is to close.
    pub fn begin_block(&self) -> bool {
        self.state.fetch_or(HEAD, Ordering::AcqRel) & GONE == 0
    }

    /// Records the end of a header block, with which no request begins.
    pub fn end_block(&self) {
        self.state.fetch_and(!HEAD, Ordering::AcqRel);
    }

    /// Ready when the connection is to close, or to end its header blocks.
    pub fn poll_told(&self, cx: &Context<'_>) -> Poll<Told> {
        self.waker.register(cx.waker());
        match self.state.load(Ordering::Acquire) {
            state if state & GONE != 0 => Poll::Ready(Told::Close),
            state if state & HEADLESS != 0 => Poll::Ready(Told::EndBlocks),
            _ => Poll::Pending,
        }
    }

    /// Waits until the connection is to close.
    pub async fn told(&self) {
        poll_fn(|cx| self.poll_told(cx)).await;
    }

    /// Returns whether the connection has been unused for this long.
    fn has_been_unused(&self, rest: Duration) -> bool {
        let unused = milliseconds().saturating_sub(self.unused_since.load(Ordering::Relaxed));
        u128::from(unused) >= rest.as_millis()
    }

    /// Tells an HTTP/2 connection with requests in flight to end its unfinished header block.
    fn tell_busy(&self) -> bool {
        let end = |state: u32| (state >= BUSY && state & HEAD != 0).then_some(state & !HEAD | HEADLESS);
        let is_told = self.state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, end).is_ok();
        if is_told {
            self.waker.wake();
        }
        is_told
    }

    /// Tells the connection to close if it is in this state.
    fn tell(&self, state: u32) -> bool {
        let is_told = self.state.compare_exchange(state, GONE, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if is_told {
            self.waker.wake();
        }
        is_told
    }
}

impl Connections {
    fn lock(&self) -> MutexGuard<'_, Table> {
        // A panic with the lock held leaves numbers that are off by one at worst.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a connection of this address; `None` at a limit if no other connection can make room. Also returns whether
    /// one has made room.
    pub fn open(&self, address: Option<u64>, bounds: Bounds) -> Option<(Arc<ConnectionState>, bool)> {
        let mut table = self.lock();
        let mut made_room = false;
        if let Some(key) = address
            && table.number_of(key) >= bounds.address
        {
            if !table.make_room_at(Some(key), Duration::ZERO) {
                return None;
            }
            made_room = true;
        }
        if table.total >= bounds.all {
            if !table.make_room(Duration::ZERO) {
                return None;
            }
            made_room = true;
        }
        Some((table.add(address), made_room))
    }

    /// Closes a connection that has been unused for this long, to free its descriptor: one of the addresses with the
    /// most, else one without a limit per address. Returns whether there was one.
    pub fn make_room(&self, rest: Duration) -> bool {
        let mut table = self.lock();
        table.make_room(rest) || table.make_room_at(None, rest)
    }

    /// Removes a connection. Returns true if it was the last one.
    pub fn close(&self, entry: &ConnectionState) -> bool {
        let mut table = self.lock();
        if entry.state.load(Ordering::Acquire) & GONE == 0 {
            table.remove(entry);
        }
        table.total == 0
    }

    /// Returns the number of connections.
    pub fn number(&self) -> usize {
        self.lock().total
    }

    /// Records that an unfinished head holds this many bytes. Returns false if all heads would hold more than `most`,
    /// or those of its address more than their share.
    pub fn hold_head(&self, entry: &ConnectionState, bytes: usize, most: usize) -> bool {
        let Some(key) = entry.address else { return true };
        let mut table = self.lock();
        if entry.state.load(Ordering::Acquire) & GONE != 0 {
            return false;
        }
        table.release_head(entry);
        let own = table.head_holders.get(&key).copied().unwrap_or_default();
        if own + bytes > most / HEAD_SHARE {
            return false;
        }
        while table.heads + bytes > most {
            let largest = table.head_holders.iter().max_by_key(|(_, bytes)| **bytes);
            let Some((largest, _)) = largest.map(|(key, bytes)| (*key, *bytes)).filter(|(_, held)| *held > own) else {
                return false;
            };
            if !table.end_heads_of(largest) {
                return false;
            }
        }
        entry.head_bytes.store(bytes, Ordering::Relaxed);
        table.heads += bytes;
        *table.head_holders.entry(key).or_default() += bytes;
        true
    }

    /// Releases the memory of a head that is complete.
    pub fn release_head(&self, entry: &ConnectionState) {
        self.lock().release_head(entry);
    }
}

impl Table {
    fn number_of(&self, key: u64) -> usize {
        self.addresses.get(&key).map_or(0, |address| address.open.len())
    }

    /// Returns the connections of an address, or those without a limit per address.
    fn at(&mut self, key: Option<u64>) -> Option<&mut Address> {
        match key {
            Some(key) => self.addresses.get_mut(&key),
            None => Some(&mut self.exempt),
        }
    }

    fn add(&mut self, key: Option<u64>) -> Arc<ConnectionState> {
        self.total += 1;
        let address = match key {
            Some(key) => self.addresses.entry(key).or_default(),
            None => &mut self.exempt,
        };
        let entry = Arc::new(ConnectionState::new(key, Arc::clone(&address.streams)));
        let number = address.open.len();
        entry.index.store(number, Ordering::Relaxed);
        address.open.push(Arc::clone(&entry));
        if let Some(key) = key {
            self.by_number.remove(&(number, key));
            self.by_number.insert((number + 1, key));
        }
        entry
    }

    fn remove(&mut self, entry: &ConnectionState) {
        self.release_head(entry);
        self.total = self.total.saturating_sub(1);
        let Some(address) = self.at(entry.address) else { return };
        let (number, index) = (address.open.len(), entry.index.load(Ordering::Relaxed));
        if index < number {
            address.open.swap_remove(index);
            if let Some(moved) = address.open.get(index) {
                moved.index.store(index, Ordering::Relaxed);
            }
        }
        let left = address.open.len();
        let Some(key) = entry.address else { return };
        self.by_number.remove(&(number, key));
        match left {
            0 => _ = self.addresses.remove(&key),
            left => _ = self.by_number.insert((left, key)),
        }
    }

    fn release_head(&mut self, entry: &ConnectionState) {
        let bytes = entry.head_bytes.swap(0, Ordering::Relaxed);
        let Some(key) = entry.address.filter(|_| bytes > 0) else { return };
        self.heads = self.heads.saturating_sub(bytes);
        if let Some(held) = self.head_holders.get_mut(&key) {
            *held = held.saturating_sub(bytes);
            if *held == 0 {
                self.head_holders.remove(&key);
            }
        }
    }

    /// Closes a connection of the addresses with the most that has been unused for this long. Returns whether there was
    /// one.
    fn make_room(&mut self, rest: Duration) -> bool {
        let largest: Vec<u64> = self.by_number.iter().rev().take(ADDRESSES_LOOKED_AT).map(|(_, key)| *key).collect();
        largest.into_iter().any(|key| self.make_room_at(Some(key), rest))
    }

    /// Closes a connection of this address that has been unused for this long. Returns whether there was one.
    fn make_room_at(&mut self, key: Option<u64>, rest: Duration) -> bool {
        let Some(address) = self.at(key).filter(|address| !address.open.is_empty()) else { return false };
        let number = address.open.len();
        let looked_at = number.min(LOOKED_AT);
        let at = |n: usize| (address.next + n) % number;
        let tell = |index: usize, state| {
            let entry = &address.open[index];
            (rest.is_zero() || entry.has_been_unused(rest)) && entry.tell(state)
        };
        let found = [RESTS, HEAD]
            .into_iter()
            .find_map(|state| (0..looked_at).map(at).find(|index| tell(*index, state)).map(|index| (index, state)));
        address.next = found.map_or(address.next + looked_at, |(index, _)| index) % number;
        let told = found.map(|(index, _)| Arc::clone(&address.open[index]));
        if let Some(entry) = &told {
            self.remove(entry);
        }
        told.is_some()
    }

    /// Closes the connections of this address that hold unfinished heads, or ends those of connections with requests in flight.
    /// Returns whether there were any.
    fn end_heads_of(&mut self, key: u64) -> bool {
        let Some(address) = self.addresses.get(&key) else { return false };
        let holds = |entry: &&Arc<ConnectionState>| entry.head_bytes.load(Ordering::Relaxed) > 0;
        let holders: Vec<Arc<ConnectionState>> = address.open.iter().filter(holds).cloned().collect();
        let mut are_some = false;
        for entry in holders {
            if entry.tell(HEAD) {
                self.remove(&entry);
                are_some = true;
            } else if entry.tell_busy() {
                self.release_head(&entry);
                are_some = true;
            }
        }
        are_some
    }
}

#[cfg(test)]
mod tests;
