//! Two contenders in alternation: this project, and what people write instead.

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    Ours,
    Theirs,
}

impl Contender {
    /// Both, in an order that alternates from block to block.
    pub(crate) fn in_turn(block: usize) -> [Self; 2] {
        if block.is_multiple_of(2) { [Self::Ours, Self::Theirs] } else { [Self::Theirs, Self::Ours] }
    }
}

/// The rates of both, a block each.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    pub(crate) ours: Vec<f64>,
    pub(crate) theirs: Vec<f64>,
}

impl Rates {
    /// The first block is for warming up, and doesn't count.
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
