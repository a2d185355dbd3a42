//! The seeded generator of the integration tests: Splitmix64 (Steele, Lea, Flood).

#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number from 0 to `end`, exclusive. `end` is positive.
    pub fn below<N: TryFrom<u64> + TryInto<u64>>(&mut self, end: N) -> N {
        let end: u64 = end.try_into().ok().unwrap();
        N::try_from(self.next() % end).ok().unwrap()
    }

    pub fn int(&mut self, from: i64, to: i64) -> i64 {
        from + self.below(to - from)
    }

    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }

    pub fn one_in(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    /// A number below `end`, small ones much more often than large ones.
    pub fn skewed_below(&mut self, end: usize) -> usize {
        let most = self.below(end) + 1;
        let most = self.below(most) + 1;
        self.below(most)
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// An element, the first ones much more often than the last ones.
    pub fn pick_skewed<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.skewed_below(from.len())]
    }
}
