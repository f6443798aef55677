//! The one source of chance: a seed, and streams split from it by name, so that leaving a fault out of a run does not move the rest of it.

/// A stream of numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Rng(u64);

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Rng {
    /// The stream of this seed for one purpose.
    pub fn new(seed: u64, purpose: u64) -> Self {
        Rng(mix(mix(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ purpose.wrapping_mul(0xd134_2543_de82_ef95)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// `from <= n < to`; `from` where that is empty.
    pub fn range(&mut self, from: u64, to: u64) -> u64 {
        let n = self.next();
        from + if to > from { n % (to - from) } else { 0 }
    }

    /// An index below `n`.
    pub fn index(&mut self, n: usize) -> usize {
        self.range(0, n as u64) as usize
    }

    /// True once in so many.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.range(0, n) == 0
    }

    /// True with this many percent.
    pub fn percent(&mut self, p: u64) -> bool {
        self.range(0, 100) < p
    }
}
