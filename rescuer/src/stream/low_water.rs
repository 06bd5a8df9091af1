//! The low-water mark: a position such that every change before it was processed.
//!
//! Changes are processed in order, one page at a time. The mark moves past a page once every command for the
//! page is confirmed; it never moves past a change that was only read. The stream also delivers marks without
//! a change. Such a mark waits for its turn among the changes, and then moves the low-water mark.

/// An item that was read from the stream.
#[derive(Debug)]
pub enum InHand<C, M> {
    /// A change to be processed.
    Change(C),
    /// All changes before this mark are irrelevant or were passed on.
    UpTo(M),
}

/// Changes that are processed together.
#[derive(Debug)]
pub struct Page<C, M> {
    /// The changes that are old enough, in order.
    pub changes: Vec<C>,
    /// The position after these changes.
    pub mark: M,
    /// The first change that was read but isn't old enough, if there is such a change.
    pub next: Option<C>,
}

/// Fills a page with the changes that were read and are old enough.
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

/// The low-water mark, and whether it has to be saved.
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
    /// Records that every change before this mark was processed.
    pub fn reach(&mut self, mark: M) {
        self.unsaved = Some(mark);
    }

    /// Whether there is a mark to save.
    pub fn is_unsaved(&self) -> bool {
        self.unsaved.is_some()
    }

    /// Takes the mark to save. If saving fails, call [`reach`](Self::reach) with the mark again.
    pub fn take(&mut self) -> Option<M> {
        self.unsaved.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each change serves as its own mark.
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
