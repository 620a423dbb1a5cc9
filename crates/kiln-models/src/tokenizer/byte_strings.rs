//! Many short byte strings in one allocation, and an index from their text to their position.

use std::hash::{BuildHasher, RandomState};

/// A list of byte strings that share one allocation: the texts of a vocabulary.
///
/// ```
/// use kiln_models::tokenizer::ByteStrings;
///
/// let texts: ByteStrings = ["a", "", "bc"].into_iter().collect();
/// assert_eq!(texts.len(), 3);
/// assert_eq!(texts.get(2), Some(&b"bc"[..]));
/// assert_eq!(texts.get(3), None);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ByteStrings {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl ByteStrings {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a string.
    pub fn push(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
        self.ends.push(self.bytes.len());
    }

    /// Gives back memory that was reserved for more strings.
    pub fn shrink_to_fit(&mut self) {
        self.bytes.shrink_to_fit();
        self.ends.shrink_to_fit();
    }

    /// The string at `index`, or `None` past the end.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |previous| self.ends[previous]);
        Some(&self.bytes[start..end])
    }

    /// How many strings there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True without any string.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Every string in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

impl<T: AsRef<[u8]>> FromIterator<T> for ByteStrings {
    fn from_iter<I: IntoIterator<Item = T>>(texts: I) -> Self {
        let mut list = Self::new();
        for text in texts {
            list.push(text.as_ref());
        }
        list
    }
}

/// From text to position in a [`ByteStrings`], which every call must pass again.
///
/// Open addressing with linear probing; the hash is keyed at random, so a file cannot choose texts
/// that collide.
#[derive(Debug, Clone)]
pub(super) struct TextIndex {
    slots: Box<[Slot]>,
    hasher: RandomState,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// The upper half of the hash: most texts that differ are told apart without reading them.
    tag: u32,
    id: u32,
}

const VACANT: Slot = Slot { tag: 0, id: u32::MAX };

impl Slot {
    fn is_vacant(self) -> bool {
        self.id == VACANT.id
    }
}

impl TextIndex {
    /// An index with room for `count` texts.
    pub(super) fn with_capacity(count: usize) -> Self {
        let slots = (count.max(4) * 2).next_power_of_two();
        Self { slots: vec![VACANT; slots].into(), hasher: RandomState::new() }
    }

    /// The id of `text`, if it was inserted.
    pub(super) fn get(&self, texts: &ByteStrings, text: &[u8]) -> Option<u32> {
        let slot = self.slots[self.find(texts, text).0];
        (!slot.is_vacant()).then_some(slot.id)
    }

    /// Inserts the text with this id; returns false when an equal text is there already.
    pub(super) fn insert(&mut self, texts: &ByteStrings, id: u32) -> bool {
        let Some(text) = texts.get(id as usize) else { return false };
        let (at, tag) = self.find(texts, text);
        let vacant = self.slots[at].is_vacant();
        if vacant {
            self.slots[at] = Slot { tag, id };
        }
        vacant
    }

    /// The slot that holds `text` or the vacant one where it belongs, and the tag of the text. At
    /// least half of the slots are vacant, so the probe ends.
    fn find(&self, texts: &ByteStrings, text: &[u8]) -> (usize, u32) {
        let mask = self.slots.len() - 1;
        let hash = self.hasher.hash_one(text);
        let tag = (hash >> 32) as u32;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot.is_vacant() || slot.tag == tag && texts.get(slot.id as usize) == Some(text) {
                return (at, tag);
            }
            at = (at + 1) & mask;
        }
    }
}
