//! GGUF files byte by byte, so that every field can be made wrong.

use kiln_core::SharedBytes;
use kiln_format::{FormatError, Gguf};

/// Ids of value types.
pub(crate) const U8: u32 = 0;
pub(crate) const I8: u32 = 1;
pub(crate) const U16: u32 = 2;
pub(crate) const I16: u32 = 3;
pub(crate) const U32: u32 = 4;
pub(crate) const I32: u32 = 5;
pub(crate) const F32: u32 = 6;
pub(crate) const BOOL: u32 = 7;
pub(crate) const STRING: u32 = 8;
pub(crate) const ARRAY: u32 = 9;
pub(crate) const U64: u32 = 10;
pub(crate) const I64: u32 = 11;
pub(crate) const F64: u32 = 12;

/// The pieces of a file; [`Pieces::build`] joins them.
#[derive(Clone)]
pub(crate) struct Pieces {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u32,
    /// Counts in the header where they should not be those of the lists.
    pub(crate) tensor_count: Option<u64>,
    pub(crate) entry_count: Option<u64>,
    pub(crate) entries: Vec<Vec<u8>>,
    pub(crate) tensors: Vec<Vec<u8>>,
    pub(crate) alignment: usize,
    pub(crate) data: Vec<u8>,
}

impl Default for Pieces {
    fn default() -> Self {
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            entry_count: None,
            entries: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: Vec::new(),
        }
    }
}

impl Pieces {
    pub(crate) fn entry(
        mut self,
        key: impl AsRef<[u8]>,
        type_id: u32,
        payload: impl AsRef<[u8]>,
    ) -> Self {
        self.entries.push([&string(key)[..], &type_id.to_le_bytes(), payload.as_ref()].concat());
        self
    }

    /// `ne` in the order of the file: the contiguous axis first.
    pub(crate) fn tensor(
        mut self,
        name: impl AsRef<[u8]>,
        ne: &[u64],
        type_id: u32,
        offset: u64,
    ) -> Self {
        let mut bytes = string(name);
        bytes.extend((ne.len() as u32).to_le_bytes());
        bytes.extend(ne.iter().flat_map(|len| len.to_le_bytes()));
        bytes.extend(type_id.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        self.tensors.push(bytes);
        self
    }

    pub(crate) fn data(mut self, len: usize) -> Self {
        self.data = (0..len).map(|i| i as u8).collect();
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut file = self.magic.to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend(self.tensor_count.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        file.extend(self.entry_count.unwrap_or(self.entries.len() as u64).to_le_bytes());
        file.extend(self.entries.concat());
        file.extend(self.tensors.concat());
        if !self.data.is_empty() {
            file.resize(file.len().next_multiple_of(self.alignment), 0);
        }
        file.extend(&self.data);
        file
    }
}

/// A string with its length.
pub(crate) fn string(text: impl AsRef<[u8]>) -> Vec<u8> {
    let text = text.as_ref();
    [&(text.len() as u64).to_le_bytes(), text].concat()
}

/// The payload of an array value.
pub(crate) fn array(element: u32, len: u64, elements: impl AsRef<[u8]>) -> Vec<u8> {
    [&element.to_le_bytes()[..], &len.to_le_bytes(), elements.as_ref()].concat()
}

/// The payload of an array of strings.
pub(crate) fn strings(list: &[&[u8]]) -> Vec<u8> {
    array(STRING, list.len() as u64, list.iter().flat_map(string).collect::<Vec<u8>>())
}

/// A small valid file with a value of every type and tensors of several; its last byte is data.
pub(crate) fn sample() -> Pieces {
    let mut pieces = Pieces::default()
        .entry("general.architecture", STRING, string("llama"))
        .entry("u8", U8, [200])
        .entry("i8", I8, (-3i8).to_le_bytes())
        .entry("u16", U16, 60000u16.to_le_bytes())
        .entry("i16", I16, (-30000i16).to_le_bytes())
        .entry("u32", U32, 4_000_000_000u32.to_le_bytes())
        .entry("i32", I32, (-5i32).to_le_bytes())
        .entry("f32", F32, 1.5f32.to_le_bytes())
        .entry("bool", BOOL, [1])
        .entry("u64", U64, (1u64 << 40).to_le_bytes())
        .entry("i64", I64, (-(1i64 << 40)).to_le_bytes())
        .entry("f64", F64, 0.1f64.to_le_bytes())
        .entry("raw", STRING, string([0xff, 0xfe]))
        .entry("tokens", ARRAY, strings(&[b"<s>", b"", b"\xf0\x9f", "\u{2581}a".as_bytes()]))
        .entry("scores", ARRAY, array(F32, 2, [0.5f32, -1.0].map(f32::to_le_bytes).concat()))
        .entry("types", ARRAY, array(I32, 3, [1i32, 2, -1].map(i32::to_le_bytes).concat()))
        .entry("heads", ARRAY, array(U32, 2, [8u32, 4].map(u32::to_le_bytes).concat()))
        .entry("bools", ARRAY, array(BOOL, 3, [1, 0, 1]))
        .entry("empty", ARRAY, array(U64, 0, []))
        .tensor("token_embd.weight", &[64, 3], 8, 0) // Q8_0: 3 rows of 68 bytes
        .tensor("output_norm.weight", &[5], 0, 224) // F32
        .tensor("nothing", &[32, 0], 2, 256)
        .tensor("scalar", &[], 30, 256) // BF16
        .data(258);
    pieces.data[204..224].fill(0);
    pieces.data[244..256].fill(0);
    pieces
}

/// Opens a file in memory.
pub(crate) fn open(bytes: Vec<u8>) -> Result<Gguf, FormatError> {
    Gguf::from_bytes(SharedBytes::from_vec(bytes))
}

/// A repeatable sequence of random numbers (splitmix64).
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
