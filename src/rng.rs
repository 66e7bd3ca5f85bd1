//! Counter-based random numbers: Philox4x32-10, so that a draw depends on its key and counter alone.
//!
//! Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); the same constants as Random123.

/// Returns the four words of Philox4x32-10 for `counter` under `key`.
#[inline]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// Returns a hash of an index: output `index` of SplitMix64 from state 0 (Steele, Lea and Flood, OOPSLA 2014).
///
/// `tests/golden/generate/thin.py` computes the same numbers.
pub fn mix(index: u64) -> u64 {
    let z = index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A named stream of random numbers under one root seed; any draw can be had directly by its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    key: [u32; 2],
}

impl Stream {
    /// Makes the stream `name` of the root seed `seed`.
    pub fn new(seed: u64, name: &str) -> Self {
        let key = xxhash_rust::xxh3::xxh3_64_with_seed(name.as_bytes(), seed);
        Self { key: [key as u32, (key >> 32) as u32] }
    }

    /// Returns 64 random bits for draw `index` of `step`.
    #[inline]
    pub fn bits(self, step: u64, index: u64) -> u64 {
        let words = philox(
            [index as u32, (index >> 32) as u32, step as u32, (step >> 32) as u32],
            self.key,
        );
        u64::from(words[0]) | u64::from(words[1]) << 32
    }

    /// Returns a number below `bound` (not 0), uniform to within 2^-64, for draw `index` of `step`.
    pub fn below(self, step: u64, index: u64, bound: u64) -> u64 {
        ((u128::from(self.bits(step, index)) * u128::from(bound)) >> 64) as u64
    }

    /// Returns a number in [0, 1) with 53 random bits for draw `index` of `step`.
    pub fn uniform(self, step: u64, index: u64) -> f64 {
        (self.bits(step, index) >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_matches_random123_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn mix_is_splitmix64_from_state_0() {
        let known = [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F];
        assert_eq!([0, 1, 2].map(mix), known);
    }

    #[test]
    fn below_stays_below() {
        let stream = Stream::new(7, "test");
        assert!((0..1000).all(|i| stream.below(3, i, 13) < 13));
    }
}
