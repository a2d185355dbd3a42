//! An ordered set that knows the position of each entry: a B+-tree with counts.
//!
//! | invariant | what depends on it |
//! | --- | --- |
//! | entries rise strictly, within a leaf and from leaf to leaf | search, iteration |
//! | `bounds[i]` is above every entry of `children[i]` and at most every entry of `children[i + 1]` | the path down to an entry |
//! | `counts[i]` is the number of entries below `children[i]` | positions in O(log n) |
//! | all leaves have the same depth; every node but the root is at least half full | O(log n) |
//!
//! A bound need not be an entry: removing the entry that it once was leaves the bound unchanged.

use std::{mem, slice};

/// The maximum number of entries of a leaf. Tests use smaller nodes, so that small trees have many
/// levels.
const LEAF_MAX: usize = if cfg!(test) { 6 } else { 64 };

/// The maximum number of children of an inner node.
const FAN_MAX: usize = if cfg!(test) { 6 } else { 64 };

/// The number of free slots that a full leaf gets. Doubling would leave a quarter of the memory
/// unused.
const SPARE: usize = 8;

/// The number of entries that a search skips at once.
const BLOCK: usize = 8;

/// An ordered set with positions.
#[derive(Debug, Clone)]
pub(crate) struct OrderStatisticTree<T> {
    root: Node<T>,
    len: usize,
}

#[derive(Debug, Clone)]
enum Node<T> {
    Leaf(Vec<T>),
    Inner(Box<Inner<T>>),
}

/// Three lists, because a search reads one of them and a sum another.
#[derive(Debug, Clone)]
struct Inner<T> {
    /// One fewer than the children.
    bounds: Vec<T>,
    counts: Vec<usize>,
    children: Vec<Node<T>>,
}

impl<T> OrderStatisticTree<T> {
    pub(crate) const fn new() -> Self {
        Self { root: Node::Leaf(Vec::new()), len: 0 }
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// The entries from a position on, in order.
    pub(crate) fn iter_from(&self, position: usize) -> Iter<'_, T> {
        let mut iter = Iter { open: Vec::new(), leaf: [].iter() };
        let mut skip = position;
        let mut node = &self.root;
        while let Node::Inner(inner) = node {
            let at = inner.counts.iter().position(|&count| {
                let here = skip < count;
                skip -= if here { 0 } else { count };
                here
            });
            let mut rest = at.and_then(|at| inner.children.get(at..)).unwrap_or_default().iter();
            let Some(child) = rest.next() else {
                return iter; // after the last entry
            };
            iter.open.push(rest);
            node = child;
        }
        if let Node::Leaf(entries) = node {
            iter.leaf = entries.get(skip..).unwrap_or_default().iter();
        }
        iter
    }
}

impl<T: Ord + Clone> OrderStatisticTree<T> {
    /// Builds the tree level by level; `entries` must rise strictly.
    pub(crate) fn from_sorted(entries: Vec<T>) -> Self {
        debug_assert!(entries.is_sorted_by(|a, b| a < b), "entries rise strictly");
        let len = entries.len();
        let mut level: Vec<_> = groups(entries, LEAF_MAX).filter_map(Part::leaf).collect();
        while level.len() > 1 {
            level = groups(level, FAN_MAX).filter_map(Part::inner).collect();
        }
        level.pop().map_or_else(Self::new, |part| Self { root: part.node, len })
    }

    /// Inserts an entry; returns whether it is new.
    pub(crate) fn insert(&mut self, entry: T) -> bool {
        if !self.root.insert(entry) {
            return false;
        }
        self.len += 1;
        if self.root.is_over() {
            let root = mem::replace(&mut self.root, Node::Leaf(Vec::new()));
            let mut inner =
                Inner { bounds: Vec::new(), counts: vec![self.len], children: vec![root] };
            inner.split(0);
            self.root = Node::Inner(Box::new(inner));
        }
        true
    }

    /// Removes an entry; returns whether it was there.
    pub(crate) fn remove(&mut self, entry: &T) -> bool {
        if !self.root.remove(entry) {
            return false;
        }
        self.len -= 1;
        if let Node::Inner(inner) = &mut self.root
            && inner.bounds.is_empty()
            && let Some(only) = inner.children.pop()
        {
            self.root = only;
        }
        true
    }

    /// The number of entries before this one: `Ok` if it is in the set, `Err` with its would-be
    /// position if not.
    pub(crate) fn position(&self, entry: &T) -> Result<usize, usize> {
        let mut before = 0;
        let mut node = &self.root;
        while let Node::Inner(inner) = node {
            let at = inner.child_of(entry);
            before += inner.counts.get(..at).unwrap_or_default().iter().sum::<usize>();
            let Some(child) = inner.children.get(at) else { break };
            node = child;
        }
        let Node::Leaf(entries) = node else { return Err(before) };
        find(entries, entry).map(|at| before + at).map_err(|at| before + at)
    }
}

impl<T: Ord + Clone> FromIterator<T> for OrderStatisticTree<T> {
    fn from_iter<I: IntoIterator<Item = T>>(entries: I) -> Self {
        let mut entries: Vec<T> = entries.into_iter().collect();
        entries.sort_unstable();
        entries.dedup();
        Self::from_sorted(entries)
    }
}

/// The entries of an [`OrderStatisticTree`] from a position on.
pub(crate) struct Iter<'a, T> {
    /// From the root down, the children that are still to be visited.
    open: Vec<slice::Iter<'a, Node<T>>>,
    leaf: slice::Iter<'a, T>,
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = &'a T;

    fn next(&mut self) -> Option<&'a T> {
        loop {
            if let Some(entry) = self.leaf.next() {
                return Some(entry);
            }
            match self.open.last_mut()?.next() {
                Some(Node::Leaf(entries)) => self.leaf = entries.iter(),
                Some(Node::Inner(inner)) => self.open.push(inner.children.iter()),
                None => drop(self.open.pop()),
            }
        }
    }
}

impl<T: Ord + Clone> Node<T> {
    fn insert(&mut self, entry: T) -> bool {
        match self {
            Self::Inner(inner) => inner.insert(entry),
            Self::Leaf(entries) => {
                let Err(at) = find(entries, &entry) else { return false };
                if entries.len() == entries.capacity() {
                    entries.reserve_exact(SPARE);
                }
                entries.insert(at, entry);
                true
            }
        }
    }

    fn remove(&mut self, entry: &T) -> bool {
        match self {
            Self::Inner(inner) => inner.remove(entry),
            Self::Leaf(entries) => {
                let Ok(at) = find(entries, entry) else { return false };
                entries.remove(at);
                trim(entries);
                true
            }
        }
    }

    /// Whether the node must be split.
    fn is_over(&self) -> bool {
        match self {
            Self::Leaf(entries) => entries.len() > LEAF_MAX,
            Self::Inner(inner) => inner.children.len() > FAN_MAX,
        }
    }

    /// Whether the node must be joined with a neighbour.
    fn is_thin(&self) -> bool {
        match self {
            Self::Leaf(entries) => entries.len() < LEAF_MAX / 2,
            Self::Inner(inner) => inner.children.len() < FAN_MAX / 2,
        }
    }

    /// Splits off the second half, with the bound between the two; `None` if there is nothing to
    /// split.
    fn split(&mut self) -> Option<Part<T>> {
        match self {
            Self::Leaf(entries) => {
                let second = entries.split_off(entries.len() / 2);
                trim(entries);
                Part::leaf(second)
            }
            Self::Inner(inner) => {
                let half = inner.children.len() / 2;
                let children = inner.children.split_off(half);
                let counts = inner.counts.split_off(half);
                let bounds = inner.bounds.split_off(half);
                let count = counts.iter().sum();
                let bound = inner.bounds.pop()?;
                Some(Part {
                    bound,
                    count,
                    node: Self::Inner(Box::new(Inner { bounds, counts, children })),
                })
            }
        }
    }

    /// Appends the next node of the same level. That may leave this node too large.
    fn join(&mut self, bound: T, next: Self) {
        match (self, next) {
            (Self::Leaf(entries), Self::Leaf(next)) => {
                entries.reserve_exact(next.len());
                entries.extend(next);
            }
            (Self::Inner(inner), Self::Inner(next)) => {
                inner.bounds.push(bound);
                inner.bounds.extend(next.bounds);
                inner.counts.extend(next.counts);
                inner.children.extend(next.children);
            }
            _ => debug_assert!(false, "all leaves are at one depth"),
        }
    }
}

impl<T: Ord + Clone> Inner<T> {
    /// The index of the child that contains the entry, or would.
    fn child_of(&self, entry: &T) -> usize {
        find(&self.bounds, entry).map_or_else(|at| at, |at| at + 1)
    }

    fn child_mut(&mut self, index: usize) -> Option<(&mut usize, &mut Node<T>)> {
        self.counts.get_mut(index).zip(self.children.get_mut(index))
    }

    fn insert(&mut self, entry: T) -> bool {
        let at = self.child_of(&entry);
        let Some((count, child)) = self.child_mut(at) else { return false };
        if !child.insert(entry) {
            return false;
        }
        *count += 1;
        if child.is_over() {
            self.split(at);
        }
        true
    }

    fn remove(&mut self, entry: &T) -> bool {
        let at = self.child_of(entry);
        let Some((count, child)) = self.child_mut(at) else { return false };
        if !child.remove(entry) {
            return false;
        }
        *count -= 1;
        if child.is_thin() {
            self.thicken(at);
        }
        true
    }

    fn split(&mut self, index: usize) {
        let Some((count, child)) = self.child_mut(index) else { return };
        let Some(second) = child.split() else { return };
        *count -= second.count;
        self.bounds.insert(index, second.bound);
        self.counts.insert(index + 1, second.count);
        self.children.insert(index + 1, second.node);
    }

    /// Joins a thin child with a neighbour, and splits the result if it is too large for one node.
    fn thicken(&mut self, index: usize) {
        let first = index.saturating_sub(1);
        if self.bounds.len() <= first {
            return; // an only child, which only the root may have
        }
        let bound = self.bounds.remove(first);
        let moved = self.counts.remove(first + 1);
        let next = self.children.remove(first + 1);
        let Some((count, child)) = self.child_mut(first) else { return };
        *count += moved;
        child.join(bound, next);
        if child.is_over() {
            self.split(first);
        }
    }
}

/// A node that is not yet linked to its parent.
struct Part<T> {
    /// At most every entry of the node, and above every entry before it.
    bound: T,
    count: usize,
    node: Node<T>,
}

impl<T: Clone> Part<T> {
    /// `None` without entries.
    fn leaf(entries: Vec<T>) -> Option<Self> {
        Some(Self {
            bound: entries.first()?.clone(),
            count: entries.len(),
            node: Node::Leaf(entries),
        })
    }

    /// `None` without parts.
    fn inner(parts: Vec<Self>) -> Option<Self> {
        let mut bounds = Vec::with_capacity(parts.len());
        let mut counts = Vec::with_capacity(parts.len());
        let mut children = Vec::with_capacity(parts.len());
        for part in parts {
            bounds.push(part.bound);
            counts.push(part.count);
            children.push(part.node);
        }
        if bounds.is_empty() {
            return None;
        }
        let bound = bounds.remove(0);
        Some(Self {
            bound,
            count: counts.iter().sum(),
            node: Node::Inner(Box::new(Inner { bounds, counts, children })),
        })
    }
}

/// Distributes items to nodes of nearly equal size. Nodes that are three quarters full leave room
/// for the first inserts. With more than one node, none is less than half full.
fn groups<I>(items: Vec<I>, max: usize) -> impl Iterator<Item = Vec<I>> {
    let mut left = items.len();
    let nodes = if left <= max { left.min(1) } else { left.div_ceil(max * 3 / 4) };
    let mut items = items.into_iter();
    (1..=nodes).rev().map(move |nodes| {
        let take = left / nodes;
        left -= take;
        items.by_ref().take(take).collect()
    })
}

/// The entry's position, or its would-be position. Steps of one size let the processor load several
/// cache lines at once, while each step of a binary search waits for the one before it: a quarter
/// less time for a change among a million entries.
fn find<T: Ord>(entries: &[T], entry: &T) -> Result<usize, usize> {
    let blocks = entries
        .chunks_exact(BLOCK)
        .take_while(|block| block.last().is_some_and(|last| last < entry))
        .count();
    let rest = entries.get(blocks * BLOCK..).unwrap_or_default();
    let at = rest.iter().take_while(|other| *other < entry).count();
    let found = rest.get(at) == Some(entry);
    let at = blocks * BLOCK + at;
    if found { Ok(at) } else { Err(at) }
}

/// Frees the room of removed entries, with some slack so that it does not happen on every removal.
fn trim<T>(entries: &mut Vec<T>) {
    if entries.capacity() > entries.len() + 2 * SPARE {
        entries.shrink_to(entries.len() + SPARE);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    impl<T: Ord> OrderStatisticTree<T> {
        /// Panics if an invariant is violated.
        fn check(&self) {
            let (count, _) = self.root.check(None, None);
            assert_eq!(count, self.len);
            match &self.root {
                Node::Leaf(entries) => assert!(entries.len() <= LEAF_MAX),
                Node::Inner(inner) => assert!((2..=FAN_MAX).contains(&inner.children.len())),
            }
        }
    }

    impl<T: Ord> Node<T> {
        /// The number of entries below and the depth. All entries must be at least `low` and less
        /// than `high`.
        fn check(&self, low: Option<&T>, high: Option<&T>) -> (usize, usize) {
            match self {
                Self::Leaf(entries) => {
                    assert!(entries.is_sorted_by(|a, b| a < b));
                    assert!(low.zip(entries.first()).is_none_or(|(low, first)| low <= first));
                    assert!(high.zip(entries.last()).is_none_or(|(high, last)| last < high));
                    assert!(entries.capacity() <= entries.len() + 2 * SPARE);
                    (entries.len(), 0)
                }
                Self::Inner(inner) => inner.check(low, high),
            }
        }

        fn fill(&self) -> (usize, usize) {
            match self {
                Self::Leaf(entries) => (entries.len(), LEAF_MAX),
                Self::Inner(inner) => (inner.children.len(), FAN_MAX),
            }
        }
    }

    impl<T: Ord> Inner<T> {
        fn check(&self, low: Option<&T>, high: Option<&T>) -> (usize, usize) {
            assert_eq!(self.children.len(), self.counts.len());
            assert_eq!(self.children.len(), self.bounds.len() + 1);
            assert!(self.bounds.is_sorted_by(|a, b| a < b));
            let mut depths = BTreeSet::new();
            for (at, child) in self.children.iter().enumerate() {
                let low = at.checked_sub(1).map_or(low, |at| self.bounds.get(at));
                let (count, depth) = child.check(low, self.bounds.get(at).or(high));
                assert_eq!(count, self.counts[at]);
                let (fill, max) = child.fill();
                assert!((max / 2..=max).contains(&fill), "{fill} of {max}");
                depths.insert(depth);
            }
            assert_eq!(depths.len(), 1, "all leaves are at one depth");
            (self.counts.iter().sum(), depths.first().unwrap() + 1)
        }
    }

    fn agrees(order: &OrderStatisticTree<u16>, model: &BTreeSet<u16>) {
        order.check();
        assert_eq!(order.len(), model.len());
        assert!(order.iter_from(0).eq(model));
    }

    #[test]
    fn every_size_is_built_grown_and_emptied() {
        for size in 0..400 {
            let model: BTreeSet<u16> = (0..size).collect();
            let built = OrderStatisticTree::from_sorted((0..size).collect());
            agrees(&built, &model);
            let mut up = OrderStatisticTree::new();
            let mut down = OrderStatisticTree::new();
            for entry in 0..size {
                assert!(up.insert(entry) && down.insert(size - 1 - entry));
            }
            agrees(&up, &model);
            agrees(&down, &model);
            for entry in 0..size {
                assert!(up.remove(&entry) && down.remove(&(size - 1 - entry)));
                up.check();
                down.check();
            }
            assert_eq!((up.len(), down.len()), (0, 0));
            assert_eq!(up.iter_from(0).next(), None);
        }
    }

    #[test]
    fn iteration_starts_at_every_position_and_ends_with_the_last_entry() {
        for size in [0, 1, 5, 6, 7, 40, 300] {
            let order: OrderStatisticTree<usize> = (0..size).collect();
            for position in 0..size + 2 {
                assert!(
                    order.iter_from(position).copied().eq(position..size),
                    "{position} of {size}"
                );
            }
        }
    }

    #[test]
    fn a_bound_outlives_its_entry() {
        let mut order: OrderStatisticTree<u16> = (0..400).map(|entry| entry * 2).collect();
        let mut model: BTreeSet<u16> = order.iter_from(0).copied().collect();
        for entry in 0..400 {
            assert!(order.remove(&(entry * 2)) && order.insert(entry * 2 + 1));
            assert!(model.remove(&(entry * 2)) && model.insert(entry * 2 + 1));
            agrees(&order, &model);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u16),
        Remove(u16),
        /// Removes this share of the entries, in parts of 256, at one place.
        Drain(u16, u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            8 => (0..2_000_u16).prop_map(Step::Insert),
            6 => (0..2_000_u16).prop_map(Step::Remove),
            1 => (0..2_000_u16, any::<u8>()).prop_map(|(from, share)| Step::Drain(from, share)),
        ];
        vec(step, 0..300)
    }

    proptest! {
        #[test]
        fn an_order_is_a_sorted_list(start in vec(0..2_000_u16, 0..1_500), steps in steps()) {
            let mut order: OrderStatisticTree<u16> = start.iter().copied().collect();
            let mut model: BTreeSet<u16> = start.into_iter().collect();
            agrees(&order, &model);
            for step in steps {
                match step {
                    Step::Insert(entry) => prop_assert_eq!(order.insert(entry), model.insert(entry)),
                    Step::Remove(entry) => prop_assert_eq!(order.remove(&entry), model.remove(&entry)),
                    Step::Drain(from, share) => {
                        let most = model.len() * usize::from(share) / 256;
                        for entry in model.range(from..).take(most).copied().collect::<Vec<_>>() {
                            prop_assert!(order.remove(&entry) && model.remove(&entry));
                        }
                    }
                }
                order.check();
            }
            agrees(&order, &model);
            let sorted: Vec<u16> = model.iter().copied().collect();
            for entry in 0..2_000 {
                prop_assert_eq!(order.position(&entry), sorted.binary_search(&entry));
            }
            for entry in sorted {
                prop_assert!(order.remove(&entry));
                order.check();
            }
            prop_assert_eq!(order.len(), 0);
        }
    }
}
