//! A slab of nodes with stable numbers, and linked lists of nodes: constant-time insertion and removal, no allocation per
//! node.

/// The number of no node.
pub const NONE: u32 = u32::MAX;

/// Nodes by number. The number of a removed node is reused.
#[derive(Debug)]
pub struct Slab<N> {
    nodes: Vec<Option<N>>,
    free: Vec<u32>,
}

impl<N> Default for Slab<N> {
    fn default() -> Self {
        Self { nodes: Vec::new(), free: Vec::new() }
    }
}

impl<N> Slab<N> {
    pub fn insert(&mut self, node: N) -> u32 {
        if let Some(number) = self.free.pop() {
            self.nodes[number as usize] = Some(node);
            return number;
        }
        self.nodes.push(Some(node));
        // The bounds of the queue keep the length far below `u32::MAX`.
        (self.nodes.len() - 1) as u32
    }

    pub fn remove(&mut self, number: u32) -> Option<N> {
        let node = self.nodes.get_mut(number as usize)?.take();
        if node.is_some() {
            self.free.push(number);
        }
        node
    }

    pub fn get(&self, number: u32) -> Option<&N> {
        self.nodes.get(number as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, number: u32) -> Option<&mut N> {
        self.nodes.get_mut(number as usize)?.as_mut()
    }

    /// Returns a range that contains all numbers in use, and possibly unused ones.
    pub fn numbers(&self) -> std::ops::Range<u32> {
        0..self.nodes.len() as u32
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }
}

/// The neighbours of a node in one list.
#[derive(Clone, Copy, Debug)]
pub struct Links {
    before: u32,
    after: u32,
}

impl Links {
    /// The number of the next node.
    pub const fn after(self) -> u32 {
        self.after
    }
}

impl Default for Links {
    fn default() -> Self {
        Self { before: NONE, after: NONE }
    }
}

/// A doubly linked list of nodes of one slab.
#[derive(Clone, Copy, Debug)]
pub struct List {
    pub first: u32,
    pub last: u32,
    pub len: u32,
}

impl Default for List {
    fn default() -> Self {
        Self { first: NONE, last: NONE, len: 0 }
    }
}

impl List {
    /// Appends a node that is not yet in a list through these `links`.
    pub fn push<N>(&mut self, slab: &mut Slab<N>, number: u32, links: impl Fn(&mut N) -> &mut Links) {
        if let Some(node) = slab.get_mut(number) {
            *links(node) = Links { before: self.last, after: NONE };
        }
        match slab.get_mut(self.last) {
            Some(last) => links(last).after = number,
            None => self.first = number,
        }
        self.last = number;
        self.len += 1;
    }

    /// Puts a node that is not yet in a list into the position of one that is, which is removed.
    pub fn replace<N>(&mut self, slab: &mut Slab<N>, old: u32, new: u32, links: impl Fn(&mut N) -> &mut Links) {
        let Some(node) = slab.get_mut(old) else { return };
        let taken = std::mem::take(links(node));
        if let Some(node) = slab.get_mut(new) {
            *links(node) = taken;
        }
        match slab.get_mut(taken.before) {
            Some(before) => links(before).after = new,
            None => self.first = new,
        }
        match slab.get_mut(taken.after) {
            Some(after) => links(after).before = new,
            None => self.last = new,
        }
    }

    /// Removes a node that is in this list.
    pub fn remove<N>(&mut self, slab: &mut Slab<N>, number: u32, links: impl Fn(&mut N) -> &mut Links) {
        let Some(node) = slab.get_mut(number) else { return };
        let Links { before, after } = std::mem::take(links(node));
        match slab.get_mut(before) {
            Some(before) => links(before).after = after,
            None => self.first = after,
        }
        match slab.get_mut(after) {
            Some(after) => links(after).before = before,
            None => self.last = before,
        }
        self.len = self.len.saturating_sub(1);
    }
}
