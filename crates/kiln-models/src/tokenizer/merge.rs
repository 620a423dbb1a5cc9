//! Merging neighbouring symbols, best pair first: the engine of byte-pair and SentencePiece.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The id of a symbol that is no token.
pub(super) const NO_TOKEN: u32 = u32::MAX;

const NONE: usize = usize::MAX;

/// A stretch of the text that stands for one token, in a list linked both ways.
#[derive(Debug, Clone, Copy)]
pub(super) struct Symbol {
    pub(super) start: usize,
    /// Bytes; 0 once the symbol is merged into its left neighbour.
    pub(super) len: usize,
    pub(super) id: u32,
    previous: usize,
    next: usize,
}

/// What two neighbours may become.
#[derive(Debug, Clone, Copy)]
pub(super) struct Merge {
    /// Lower merges first; equal ranks merge from left to right.
    pub(super) rank: u32,
    /// The token that results.
    pub(super) id: u32,
}

/// Which pairs merge.
pub(super) trait Merges {
    /// The merge of two neighbours in `text`, if there is one.
    fn merge(&self, text: &[u8], left: &Symbol, right: &Symbol) -> Option<Merge>;
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    rank: u32,
    left: usize,
    right: usize,
    len: usize,
    id: u32,
}

/// The symbols of one piece of text and the queue of their merges; reused from piece to piece.
#[derive(Debug, Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Candidate>>,
}

impl Merger {
    /// Forgets the previous piece.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.queue.clear();
    }

    /// Appends the next symbol of the piece: `len` bytes, never 0.
    pub(super) fn push(&mut self, len: usize, id: u32) {
        let index = self.symbols.len();
        let (previous, start) = match self.symbols.last_mut() {
            Some(last) => {
                last.next = index;
                (index - 1, last.start + last.len)
            }
            None => (NONE, 0),
        };
        self.symbols.push(Symbol { start, len, id, previous, next: NONE });
    }

    /// Merges until no pair is left, in O(n log n) for n symbols.
    pub(super) fn run(&mut self, text: &[u8], merges: &impl Merges) {
        for right in 1..self.symbols.len() {
            self.consider(text, merges, right - 1, right);
        }
        while let Some(Reverse(best)) = self.queue.pop() {
            let right = self.symbols[best.right];
            let left = &mut self.symbols[best.left];
            // Symbols only grow, so a changed length is the mark of an outdated candidate.
            if left.len == 0 || right.len == 0 || left.len + right.len != best.len {
                continue;
            }
            left.len = best.len;
            left.id = best.id;
            left.next = right.next;
            let (previous, next) = (left.previous, left.next);
            self.symbols[best.right].len = 0;
            if next != NONE {
                self.symbols[next].previous = best.left;
            }
            self.consider(text, merges, previous, best.left);
            self.consider(text, merges, best.left, next);
        }
    }

    /// The symbols that are left, in order.
    pub(super) fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }

    fn consider(&mut self, text: &[u8], merges: &impl Merges, left: usize, right: usize) {
        if left == NONE || right == NONE {
            return;
        }
        let (l, r) = (&self.symbols[left], &self.symbols[right]);
        if let Some(Merge { rank, id }) = merges.merge(text, l, r) {
            let len = l.len + r.len;
            self.queue.push(Reverse(Candidate { rank, left, right, len, id }));
        }
    }
}
