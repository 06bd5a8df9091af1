//! The low-water mark: which position is behind everything that was dealt with.
//!
//! Changes are dealt with in order, a page at a time. The mark moves behind a page once everything that the page needed is
//! confirmed, and never behind a change that was only read. Apart from that it is moved by marks that the stream gives when
//! nothing lies between: they count in their place among the changes.

/// One thing that was read, in its order.
#[derive(Debug)]
pub enum InHand<C, M> {
    /// A change to be dealt with.
    Change(C),
    /// Nothing that matters lies before this.
    UpTo(M),
}

/// Changes that are dealt with together.
#[derive(Debug)]
pub struct Page<C, M> {
    /// Those that are old enough, in order.
    pub changes: Vec<C>,
    /// The position behind them.
    pub mark: M,
    /// The next change, which isn't old enough.
    pub next: Option<C>,
}

/// Fills a page with what has been read, as far as it is old enough.
pub fn fill_page<C, M>(
    first: C,
    most: usize,
    mark_of: impl Fn(&C) -> M,
    mut next: impl FnMut() -> Option<InHand<C, M>>,
    is_old: impl Fn(&C) -> bool,
) -> Page<C, M> {
    let mut page = Page { mark: mark_of(&first), changes: vec![first], next: None };
    while page.changes.len() < most
        && let Some(in_hand) = next()
    {
        match in_hand {
            InHand::UpTo(behind) => page.mark = behind,
            InHand::Change(change) if is_old(&change) => {
                page.mark = mark_of(&change);
                page.changes.push(change);
            }
            InHand::Change(change) => {
                page.next = Some(change);
                break;
            }
        }
    }
    page
}

/// A mark that is to be saved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LowWater<M> {
    unsaved: Option<M>,
}

impl<M> Default for LowWater<M> {
    fn default() -> Self {
        Self { unsaved: None }
    }
}

impl<M> LowWater<M> {
    /// Everything before this was dealt with.
    pub fn reach(&mut self, mark: M) {
        self.unsaved = Some(mark);
    }

    /// Whether there is a mark to save.
    pub fn is_unsaved(&self) -> bool {
        self.unsaved.is_some()
    }

    /// The mark to save. One that could not be saved is [reached](Self::reach) again.
    pub fn take(&mut self) -> Option<M> {
        self.unsaved.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changes are their own marks.
    fn page_of(read: Vec<InHand<u32, u32>>, most: usize, old: u32) -> Page<u32, u32> {
        let mut read = read.into_iter();
        fill_page(1, most, |change| *change, || read.next(), |change| *change <= old)
    }

    #[test]
    fn a_page_ends_before_a_young_change() {
        let page =
            page_of(vec![InHand::Change(2), InHand::UpTo(3), InHand::Change(4), InHand::UpTo(5)], 9, 3);
        assert_eq!((page.changes, page.mark, page.next), (vec![1, 2], 3, Some(4)));
    }

    #[test]
    fn a_full_page_reads_no_further() {
        let page = page_of(vec![InHand::Change(2), InHand::Change(3)], 2, 9);
        assert_eq!((page.changes, page.mark, page.next), (vec![1, 2], 2, None));
    }
}
