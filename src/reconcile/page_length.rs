//! The length of pages that adapt to a target time.

use std::time::Duration;

use super::options;

/// The keys of a counter's next page, and the observed cost of its pages.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) keys: usize,
    /// What a page takes however few keys it has, as far as it is known.
    fixed: Duration,
    /// Keys and rows of the last page, and the time that it took.
    last: Option<(u64, Duration)>,
}

/// Bounds of a page.
const MIN: usize = 16;
const MAX: usize = 8192;

impl Pages {
    pub(super) const fn new(keys: usize) -> Self {
        Self { keys, fixed: Duration::ZERO, last: None }
    }

    /// Starts again for the next counter, whose pages have another cost.
    pub(super) fn next_counter(&mut self) {
        *self = Self::new(self.keys.min(MAX));
    }

    /// Learns from a page with this much work, in keys and rows: the next page's time goes towards
    /// the target.
    ///
    /// A page halves at most, and doubles at most. A fixed cost (a wide parent's children, a scan
    /// of a hash table) does not fall with shorter pages, but is paid more often. So if the fixed
    /// cost is most of a page's time, pages grow, by up to a factor of four, until it is half of
    /// their time.
    pub(super) fn adapt(&mut self, work: u64, took: Duration, target: Duration) {
        self.learn(work, took);
        let (took, target, fixed) = (took.as_nanos(), target.as_nanos(), self.fixed.as_nanos());
        let pays_to_grow = 2 * fixed > target;
        let (of, to, step) = if pays_to_grow && 2 * fixed > took {
            (took - fixed, fixed, 4)
        } else {
            (took, target.max(2 * fixed), 2)
        };
        let wanted = (self.keys as u128 * to).checked_div(of);
        let wanted =
            wanted.map_or(usize::MAX, |wanted| usize::try_from(wanted).unwrap_or(usize::MAX));
        let most = if pays_to_grow { options::MAX_PAGE } else { MAX };
        self.keys = wanted.clamp(self.keys / 2, self.keys * step).clamp(MIN, most);
    }

    /// Fits a line through this page and the last one. If both did about the same work, time saved
    /// was not fixed cost.
    fn learn(&mut self, work: u64, took: Duration) {
        let Some((work_before, took_before)) = self.last.replace((work, took)) else { return };
        let more = i128::from(work) - i128::from(work_before);
        let nanos = |time: Duration| i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
        let (now, before, fixed) = (nanos(took), nanos(took_before), nanos(self.fixed));
        let found = if more.unsigned_abs() * 8 <= u128::from(work_before) {
            fixed - (before - now).max(0)
        } else {
            now - (i128::from(work) * (now - before) / more).max(0)
        };
        self.fixed = Duration::from_nanos(u64::try_from(found.clamp(0, now)).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(50);

    /// Returns the lengths of a counter's pages, each of which costs `fixed` microseconds and
    /// `each` microseconds a key.
    fn lengths(first: usize, count: usize, cost: impl Fn(usize) -> (u64, u64)) -> Vec<usize> {
        let mut pages = Pages::new(first);
        let mut lengths = Vec::new();
        for at in 0..count {
            lengths.push(pages.keys);
            let (fixed, each) = cost(at);
            let work = pages.keys as u64;
            pages.adapt(work, Duration::from_micros(fixed + each * work), TARGET);
        }
        lengths
    }

    #[test]
    fn pages_whose_time_is_their_keys_take_the_time_that_is_wanted() {
        assert_eq!(lengths(1024, 6, |_| (0, 100)), [1024, 512, 500, 500, 500, 500]);
        assert_eq!(lengths(1024, 5, |_| (0, 10)), [1024, 2048, 4096, 5000, 5000]);
        assert_eq!(lengths(1024, 5, |_| (1_000, 100)), [1024, 512, 490, 490, 490]);
    }

    /// They used to shrink to 16 keys: each page read as much as before, and there were ever more
    /// of them.
    #[test]
    fn pages_that_cost_as_much_however_short_they_are_grow() {
        let lengths = lengths(1024, 9, |_| (300_000, 2));
        assert_eq!(lengths, [1024, 512, 2048, 8192, 32_768, 100_000, 100_000, 100_000, 100_000]);
    }

    #[test]
    fn pages_whose_time_is_less_than_is_wanted_double_whatever_they_cost_anyway() {
        assert_eq!(lengths(1024, 4, |_| (8_000, 2)), [1024, 2048, 4096, 8192]);
    }

    #[test]
    fn time_that_a_page_of_the_same_work_saves_was_fixed_cost() {
        let mut pages = Pages::new(100);
        for (work, took, fixed) in [(100, 1_000, 0), (200, 1_100, 900), (200, 1_000, 800)] {
            pages.learn(work, Duration::from_micros(took));
            assert_eq!(pages.fixed, Duration::from_micros(fixed), "{work} in {took}");
        }
    }

    #[test]
    fn pages_grow_until_half_of_their_time_is_their_keys() {
        let lengths = lengths(1024, 12, |_| (60_000, 20));
        assert!(lengths[6..].iter().all(|keys| (2900..=3100).contains(keys)), "{lengths:?}");
    }

    #[test]
    fn pages_come_back_when_what_they_cost_anyway_is_over() {
        let lengths = lengths(1024, 24, |at| if at < 8 { (300_000, 2) } else { (0, 20) });
        assert_eq!(lengths[7], 100_000);
        assert!(lengths[20..].iter().all(|keys| (2400..=2600).contains(keys)), "{lengths:?}");
    }

    #[test]
    fn a_counter_begins_with_pages_of_an_ordinary_length() {
        let mut pages = Pages::new(100_000);
        pages.next_counter();
        assert_eq!(pages.keys, 8192);
    }
}
