//! The exact length of `zlib.compress(data)` at level 6, without producing the bytes.
//!
//! One membership quantity divides by this length, and other deflate implementations differ from zlib's by
//! a few bytes. What fixes the length is followed step by step: lazy matching with the level's four limits,
//! the 3-byte hash with its collisions (they use up the chain), blocks of 16383 symbols, and per block
//! the choice between stored, fixed and dynamic codes, with the Huffman ties broken as in zlib's heap
//! (ties decide the run lengths in the code's description).
//!
//! The sliding window needs no imitation: matches reach back less than it, whatever it holds. Only
//! position 0 differs, which zlib takes for "no match".
//!
//! Source: RFC 1950, RFC 1951, and the behaviour of zlib 1.2.13 with windowBits 15, memLevel 8.

const MIN_MATCH: usize = 3;
const MAX_MATCH: usize = 258;
/// Window of 32 KiB less the longest match and a margin.
const MAX_DISTANCE: usize = 32768 - (MAX_MATCH + MIN_MATCH + 1);
/// A match of three bytes further back than this costs more than three literals.
const TOO_FAR: usize = 4096;
const GOOD_LENGTH: usize = 8;
const MAX_LAZY: usize = 16;
const NICE_LENGTH: usize = 128;
const MAX_CHAIN: usize = 128;
const BLOCK_SYMBOLS: usize = 16383;
const NONE: u32 = u32::MAX;

/// Returns the length in bytes of the zlib stream (2 bytes of header, 4 of checksum) of `data`, level 6.
///
/// Meant for texts: positions are kept in 32 bits, so `data` must be shorter than 4 GiB.
pub fn compressed_len(data: &[u8]) -> usize {
    2 + Deflate::new(data).run().div_ceil(8) as usize + 4
}

/// The symbols of the block under construction, by their counts.
struct Block {
    literals: [u32; 286],
    distances: [u32; 30],
    symbols: usize,
    start: usize,
    bits: u64,
}

struct Deflate<'a> {
    data: &'a [u8],
    /// Latest position per hash, then the one before it with the same hash.
    head: Vec<u32>,
    previous: Vec<u32>,
    block: Block,
}

impl<'a> Deflate<'a> {
    fn new(data: &'a [u8]) -> Self {
        let block = Block { literals: [0; 286], distances: [0; 30], symbols: 0, start: 0, bits: 0 };
        Self { data, head: vec![NONE; 1 << 15], previous: vec![NONE; 1 << 15], block }
    }

    /// Enters position `at` and returns the latest earlier one with the same hash.
    fn insert(&mut self, at: usize) -> u32 {
        let &[a, b, c] = &self.data[at..at + MIN_MATCH] else { return NONE };
        let hash = (usize::from(a) << 10 ^ usize::from(b) << 5 ^ usize::from(c)) & 0x7fff;
        let before = std::mem::replace(&mut self.head[hash], at as u32);
        self.previous[at & 0x7fff] = before;
        before
    }

    /// Looks for a match longer than `best`; returns its length and start, or `best` and `start`.
    fn longest_match(
        &self,
        at: usize,
        mut candidate: usize,
        mut best: usize,
        mut start: usize,
    ) -> (usize, usize) {
        let left = self.data.len() - at;
        let limit = left.min(MAX_MATCH);
        let nice = NICE_LENGTH.min(left);
        let mut chain = if best >= GOOD_LENGTH { MAX_CHAIN >> 2 } else { MAX_CHAIN };
        let oldest = at.saturating_sub(MAX_DISTANCE);
        let scan = &self.data[at..];
        while best < limit {
            let text = &self.data[candidate..];
            if text[best] == scan[best] {
                let length = (0..limit).take_while(|&i| text[i] == scan[i]).count();
                if length > best {
                    (best, start) = (length, candidate);
                    if length >= nice {
                        break;
                    }
                }
            }
            let next = self.previous[candidate & 0x7fff];
            chain -= 1;
            if next == NONE || next as usize <= oldest || chain == 0 {
                break;
            }
            candidate = next as usize;
        }
        (best.min(left), start)
    }

    /// Returns the length of the deflate stream in bits.
    fn run(mut self) -> u64 {
        let n = self.data.len();
        let (mut at, mut length, mut start, mut pending) = (0, MIN_MATCH - 1, 0, false);
        while at < n {
            let found = if n - at >= MIN_MATCH { self.insert(at) } else { NONE };
            let (last_length, last_start) = (length, start);
            length = MIN_MATCH - 1;
            // Position 0 is zlib's "none".
            if found != NONE
                && found != 0
                && last_length < MAX_LAZY
                && at - found as usize <= MAX_DISTANCE
            {
                (length, start) = self.longest_match(at, found as usize, last_length, start);
                if length == MIN_MATCH && at - start > TOO_FAR {
                    length = MIN_MATCH - 1;
                }
            }
            if last_length >= MIN_MATCH && length <= last_length {
                let end = at - 1 + last_length;
                let full = self.block.add_match(last_length, at - 1 - last_start);
                for inner in at + 1..end {
                    if inner + MIN_MATCH <= n {
                        self.insert(inner);
                    }
                }
                (at, length, pending) = (end, MIN_MATCH - 1, false);
                if full {
                    self.block.flush(at);
                }
            } else {
                if pending && self.block.add_literal(self.data[at - 1]) {
                    self.block.flush(at);
                }
                pending = true;
                at += 1;
            }
        }
        if pending {
            self.block.add_literal(self.data[n - 1]);
        }
        self.block.flush(n);
        self.block.bits
    }
}

fn length_extra(code: usize) -> u32 {
    if (8..28).contains(&code) { (code as u32 - 4) / 4 } else { 0 }
}

fn distance_extra(code: usize) -> u32 {
    (code as u32 / 2).saturating_sub(1)
}

fn length_code(length: usize) -> usize {
    let over = length - MIN_MATCH;
    match over {
        255 => 28,
        0..8 => over,
        _ => {
            let extra = over.ilog2() as usize - 2;
            4 * extra + (over >> extra)
        }
    }
}

fn distance_code(distance: usize) -> usize {
    let over = distance - 1;
    if over < 4 {
        return over;
    }
    let extra = over.ilog2() as usize - 1;
    2 * extra + (over >> extra)
}

impl Block {
    /// Counts a literal and says whether the block is full.
    fn add_literal(&mut self, byte: u8) -> bool {
        self.literals[usize::from(byte)] += 1;
        self.symbols += 1;
        self.symbols == BLOCK_SYMBOLS
    }

    /// Counts a match and says whether the block is full.
    fn add_match(&mut self, length: usize, distance: usize) -> bool {
        self.literals[257 + length_code(length)] += 1;
        self.distances[distance_code(distance)] += 1;
        self.symbols += 1;
        self.symbols == BLOCK_SYMBOLS
    }

    /// Adds the block's bits and starts the next one at byte `end`.
    fn flush(&mut self, end: usize) {
        self.literals[256] = 1;
        let extra: u64 = (0..29)
            .map(|c| u64::from(self.literals[257 + c] * length_extra(c)))
            .chain((0..30).map(|c| u64::from(self.distances[c] * distance_extra(c))))
            .sum();
        let fixed_literals: u64 =
            self.literals.iter().enumerate().map(|(s, &f)| u64::from(f) * fixed_length(s)).sum();
        let fixed_distances: u64 = self.distances.iter().map(|&f| 5 * u64::from(f)).sum();
        let fixed = extra + fixed_literals + fixed_distances;

        let literals = Code::new(&self.literals, 15);
        let distances = Code::new(&self.distances, 15);
        let dynamic =
            extra + literals.bits + distances.bits + description_bits(&literals, &distances);

        let bytes = |bits: u64| (bits + 3).div_ceil(8);
        let stored = (end - self.start) as u64;
        let best = bytes(fixed).min(bytes(dynamic));
        if stored + 4 <= best {
            self.bits = (self.bits + 3).next_multiple_of(8) + 8 * (4 + stored);
        } else if bytes(fixed) == best {
            // The choice is made in whole bytes, so this may be some bits longer.
            self.bits += 3 + fixed;
        } else {
            self.bits += 3 + dynamic;
        }
        self.literals.fill(0);
        self.distances.fill(0);
        self.symbols = 0;
        self.start = end;
    }
}

fn fixed_length(symbol: usize) -> u64 {
    match symbol {
        0..144 => 8,
        144..256 => 9,
        256..280 => 7,
        _ => 8,
    }
}

/// A Huffman code as zlib builds it: lengths up to the last used symbol, and its cost without extra bits.
struct Code {
    lengths: Vec<u8>,
    bits: u64,
}

impl Code {
    fn new(counts: &[u32], max_length: usize) -> Self {
        let symbols = counts.len();
        let mut tree = Tree { weight: counts.to_vec(), depth: vec![0; symbols], heap: vec![] };
        tree.heap.extend((0..symbols).filter(|&s| counts[s] > 0));
        let mut last = tree.heap.last().copied();
        // A code has at least two symbols; the added ones cost nothing.
        while tree.heap.len() < 2 {
            let added = match last {
                None => 0,
                Some(l) if l < 2 => l + 1,
                Some(_) => 0,
            };
            if last.is_none_or(|l| l < 2) {
                last = Some(added);
            }
            tree.weight[added] = 1;
            tree.heap.push(added);
        }
        for i in (0..tree.heap.len() / 2).rev() {
            tree.sift(i);
        }
        let mut parent = vec![0; symbols];
        let mut order = vec![];
        loop {
            let first = tree.heap.swap_remove(0);
            tree.sift(0);
            let second = tree.heap[0];
            order.extend([first, second]);
            let node = tree.weight.len();
            tree.weight.push(tree.weight[first] + tree.weight[second]);
            tree.depth.push(tree.depth[first].max(tree.depth[second]) + 1);
            parent.push(0);
            parent[first] = node;
            parent[second] = node;
            tree.heap[0] = node;
            tree.sift(0);
            if tree.heap.len() < 2 {
                order.push(node);
                break;
            }
        }
        order.reverse();

        let mut length = vec![0usize; tree.weight.len()];
        let mut per_length = vec![0usize; max_length + 1];
        let mut overflow = 0i32;
        for &node in &order[1..] {
            let wanted = length[parent[node]] + 1;
            overflow += i32::from(wanted > max_length);
            length[node] = wanted.min(max_length);
            if node < symbols {
                per_length[length[node]] += 1;
            }
        }
        if overflow > 0 {
            while overflow > 0 {
                let mut l = max_length - 1;
                while per_length[l] == 0 {
                    l -= 1;
                }
                per_length[l] -= 1;
                per_length[l + 1] += 2;
                per_length[max_length] -= 1;
                overflow -= 2;
            }
            // The rarest symbols get the longest codes.
            let mut leaves = order.iter().rev().filter(|&&node| node < symbols);
            for l in (1..=max_length).rev() {
                for &leaf in leaves.by_ref().take(per_length[l]) {
                    length[leaf] = l;
                }
            }
        }
        let bits = (0..symbols).map(|s| u64::from(counts[s]) * length[s] as u64).sum();
        let used = last.map_or(0, |l| l + 1);
        Self { lengths: length[..used].iter().map(|&l| l as u8).collect(), bits }
    }
}

struct Tree {
    weight: Vec<u32>,
    depth: Vec<u8>,
    heap: Vec<usize>,
}

impl Tree {
    fn before(&self, a: usize, b: usize) -> bool {
        (self.weight[a], self.depth[a]) <= (self.weight[b], self.depth[b])
    }

    /// Moves the entry at `hole` down to its place.
    fn sift(&mut self, mut hole: usize) {
        let Some(&moving) = self.heap.get(hole) else { return };
        loop {
            let mut child = 2 * hole + 1;
            if child >= self.heap.len() {
                break;
            }
            if child + 1 < self.heap.len() && self.before(self.heap[child + 1], self.heap[child]) {
                child += 1;
            }
            if self.before(moving, self.heap[child]) {
                break;
            }
            self.heap[hole] = self.heap[child];
            hole = child;
        }
        self.heap[hole] = moving;
    }
}

/// The bits that describe both codes at the head of a dynamic block.
fn description_bits(literals: &Code, distances: &Code) -> u64 {
    const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];
    let mut counts = [0u32; 19];
    count_runs(&literals.lengths, &mut counts);
    count_runs(&distances.lengths, &mut counts);
    let code = Code::new(&counts, 7);
    let length = |s: usize| code.lengths.get(s).copied().unwrap_or(0);
    let sent = (3..19).rev().find(|&i| length(ORDER[i]) != 0).unwrap_or(2) + 1;
    let extra = 2 * counts[16] + 3 * counts[17] + 7 * counts[18];
    code.bits + u64::from(extra) + 3 * sent as u64 + 5 + 5 + 4
}

/// Counts the run-length symbols of one list of code lengths.
fn count_runs(lengths: &[u8], counts: &mut [u32; 19]) {
    let limits = |next: Option<u8>, current: Option<u8>| match next {
        Some(0) => (138, 3),
        _ if next == current => (6, 3),
        _ => (7, 4),
    };
    let mut before = None;
    let mut run = 0;
    let (mut longest, mut shortest) = limits(lengths.first().copied(), None);
    for (i, &current) in lengths.iter().enumerate() {
        let next = lengths.get(i + 1).copied();
        run += 1;
        if run < longest && next == Some(current) {
            continue;
        }
        if run < shortest {
            counts[usize::from(current)] += run;
        } else if current != 0 {
            counts[usize::from(current)] += u32::from(before != Some(current));
            counts[16] += 1;
        } else if run <= 10 {
            counts[17] += 1;
        } else {
            counts[18] += 1;
        }
        run = 0;
        before = Some(current);
        (longest, shortest) = limits(next, before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A linear congruential generator, so that Python can make the same bytes.
    fn noise(n: usize, modulus: u32, mut state: u32) -> Vec<u8> {
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as u8
        })
        .map(|b| (u32::from(b) % modulus) as u8)
        .take(n)
        .collect()
    }

    #[test]
    fn compressed_len_of_short_data_is_zlibs() {
        for (data, length) in [
            (&b""[..], 8),
            (b"a", 9),
            (b"Alice was beginning to get very tired", 45),
            (&[b'a'; 1000], 17),
        ] {
            assert_eq!(compressed_len(data), length, "{data:?}");
        }
        assert_eq!(compressed_len("abc".repeat(50).as_bytes()), 14);
    }

    #[test]
    fn compressed_len_of_noise_is_zlibs() {
        for (n, modulus, seed, length) in NOISE {
            assert_eq!(compressed_len(&noise(n, modulus, seed)), length, "{n} {modulus} {seed}");
        }
    }

    // From `python3 -c`, zlib 1.2.13: len(zlib.compress(bytes(noise))).
    const NOISE: [(usize, u32, u32, usize); 12] = [
        (100, 256, 1, 111),
        (20_000, 256, 2, 20_016),
        (70_000, 256, 3, 70_031),
        (300, 2, 4, 79),
        (100_000, 2, 5, 15_963),
        (50_000, 5, 6, 17_436),
        (40_000, 20, 7, 24_244),
        (200_000, 30, 8, 130_398),
        (5000, 1, 9, 28),
        (258, 1, 0, 12),
        (33_000, 100, 11, 27_581),
        (140_000, 3, 12, 33_401),
    ];
}
