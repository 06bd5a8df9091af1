//! Alternates between two contenders, namely this project and the code that people write instead.

/// One of the two contenders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    Ours,
    Theirs,
}

impl Contender {
    /// Returns both contenders, in an order that alternates from block to block.
    pub(crate) fn in_turn(block: usize) -> [Self; 2] {
        if block.is_multiple_of(2) { [Self::Ours, Self::Theirs] } else { [Self::Theirs, Self::Ours] }
    }
}

/// The rates of both contenders, with one value for each block.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    pub(crate) ours: Vec<f64>,
    pub(crate) theirs: Vec<f64>,
}

impl Rates {
    /// Adds the rate of a block. The first block is only for warming up and is not counted.
    pub(crate) fn add(&mut self, contender: Contender, block: usize, rate: f64) {
        if block == 0 {
            return;
        }
        match contender {
            Contender::Ours => self.ours.push(rate),
            Contender::Theirs => self.theirs.push(rate),
        }
    }
}
