//! Which spans of a rollup's keys a page sums, their SQL conditions, and where a page ends that no
//! stored total bounds; for both dialects, without I/O.

use std::ops::Bound;

use crate::counter::CounterId;
use crate::error::{Error, Result};
use crate::key::KeyBuf;
use crate::reconcile::audit::{PageDiff, PageRequest, Recount, merge};
use crate::sql::{self, Dialect, Value};

/// The columns of a rollup's key, in the pairs that it sums.
pub(super) struct KeyColumns {
    pub(super) dialect: Dialect,
    pub(super) counter: CounterId,
    /// The membership's parent.
    pub(super) parent: Vec<String>,
    /// The part of the base counter's key after the child.
    pub(super) suffix: Vec<String>,
}

/// A span of keys that one query sums.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Span<'k> {
    /// All keys of the parents after the parent of `after` and before the parent of `until`; with
    /// that parent too if `through`.
    Parents { after: Option<&'k KeyBuf>, until: Option<&'k KeyBuf>, through: bool },
    /// Keys of the parent of `of`.
    Within { of: &'k KeyBuf, from: Bound<&'k KeyBuf>, until: Option<&'k KeyBuf> },
}

impl KeyColumns {
    /// Returns all columns, separated by commas.
    pub(super) fn listed(&self) -> String {
        self.parent.iter().chain(&self.suffix).map(String::as_str).collect::<Vec<_>>().join(", ")
    }

    /// Returns the spans between two keys, in key order. In a parent where a page begins or ends,
    /// the suffix bounds the span too, so that the page reads no more of a wide parent than it
    /// compares.
    pub(super) fn spans<'k>(
        &self,
        after: Option<&'k KeyBuf>,
        until: Option<&'k KeyBuf>,
    ) -> Result<Vec<Span<'k>>> {
        if self.suffix.is_empty() {
            // Nothing comes after the only key of `()`.
            let nothing = self.parent.is_empty() && after.is_some();
            return Ok(if nothing {
                Vec::new()
            } else {
                vec![Span::Parents { after, until, through: true }]
            });
        }
        if let (Some(after), Some(until)) = (after, until)
            && self.is_same_parent(after, until)?
        {
            return Ok(vec![Span::Within {
                of: after,
                from: Bound::Excluded(after),
                until: Some(until),
            }]);
        }
        let rest = after.map(|after| Span::Within {
            of: after,
            from: Bound::Excluded(after),
            until: None,
        });
        let between = Span::Parents { after, until, through: false };
        let last = until.map(|until| Span::Within {
            of: until,
            from: Bound::Unbounded,
            until: Some(until),
        });
        Ok(rest.into_iter().chain([between]).chain(last).collect())
    }

    /// Returns the parent of a key.
    pub(super) fn parent_of(&self, key: &KeyBuf) -> Result<KeyBuf> {
        let split = self.counter.split(key, self.parent.len());
        split.map(|(parent, _)| parent).map_err(|cause| Error::key(&self.counter, key, cause))
    }

    pub(super) fn is_same_parent(&self, one: &KeyBuf, other: &KeyBuf) -> Result<bool> {
        Ok(self.parent_of(one)? == self.parent_of(other)?)
    }

    /// Returns a span's conditions on the parent's columns and on the suffix's; appends their
    /// parameters.
    pub(super) fn conditions<'k>(
        &self,
        span: &Span<'k>,
        values: &mut Vec<Value<'k>>,
    ) -> Result<(String, String)> {
        let (mut parents, mut suffixes) = (String::new(), String::new());
        match *span {
            Span::Parents { after, until, through } => {
                if let Some(after) = after {
                    self.compare(
                        &self.parent,
                        ">",
                        self.parent_values(after)?,
                        values,
                        &mut parents,
                    );
                }
                if let Some(until) = until {
                    let before = if through { "<=" } else { "<" };
                    self.compare(
                        &self.parent,
                        before,
                        self.parent_values(until)?,
                        values,
                        &mut parents,
                    );
                }
            }
            Span::Within { of, from, until } => {
                self.compare(&self.parent, "=", self.parent_values(of)?, values, &mut parents);
                match from {
                    Bound::Unbounded => {}
                    Bound::Included(key) => {
                        self.compare(
                            &self.suffix,
                            ">=",
                            self.suffix_values(key)?,
                            values,
                            &mut suffixes,
                        );
                    }
                    Bound::Excluded(key) => {
                        self.compare(
                            &self.suffix,
                            ">",
                            self.suffix_values(key)?,
                            values,
                            &mut suffixes,
                        );
                    }
                }
                if let Some(until) = until {
                    self.compare(
                        &self.suffix,
                        "<=",
                        self.suffix_values(until)?,
                        values,
                        &mut suffixes,
                    );
                }
            }
        }
        Ok((parents, suffixes))
    }

    /// Compares columns with values. Without columns there is one value, equal to itself.
    fn compare<'k>(
        &self,
        columns: &[String],
        operator: &str,
        given: Vec<Value<'k>>,
        values: &mut Vec<Value<'k>>,
        to: &mut String,
    ) {
        if columns.is_empty() {
            let nothing = if operator.contains('=') {
                self.dialect.everything()
            } else {
                self.dialect.nothing()
            };
            to.extend([" AND ", nothing]);
            return;
        }
        let first = values.len() + 1;
        let params: Vec<String> =
            (first..first + columns.len()).map(|at| self.dialect.param(at)).collect();
        to.extend([" AND (", &columns.join(", "), ") ", operator, " (", &params.join(", "), ")"]);
        values.extend(given);
    }

    pub(super) fn parent_values<'k>(&self, key: &'k KeyBuf) -> Result<Vec<Value<'k>>> {
        let mut values = sql::prefix_values(self.dialect, &self.counter, key)?;
        values.truncate(self.parent.len());
        Ok(values)
    }

    pub(super) fn suffix_values<'k>(&self, key: &'k KeyBuf) -> Result<Vec<Value<'k>>> {
        Ok(sql::prefix_values(self.dialect, &self.counter, key)?.split_off(self.parent.len()))
    }

    /// Returns the query that plans one parent: every [`STEP`]th key of `pairs`, which stands after
    /// FROM.
    pub(super) fn every_step(&self, pairs: &str) -> String {
        let (listed, suffix) = (self.listed(), self.suffix.join(", "));
        let columns = self.parent.iter().chain(&self.suffix).zip(1..);
        let (selected, outer): (Vec<String>, Vec<String>) =
            columns.map(|(column, at)| (format!("{column} AS k_{at}"), format!("k_{at}"))).unzip();
        let (selected, outer) = (selected.join(", "), outer.join(", "));
        format!(
            "SELECT {outer} FROM (SELECT {selected}, row_number() OVER (ORDER BY {suffix}) AS n FROM {pairs} GROUP BY {listed}) AS p WHERE n % {STEP} = 0 ORDER BY n"
        )
    }

    /// Groups these keys by parent, each group in key order; without a suffix, each key is a group.
    pub(super) fn by_parent<'k>(&self, keys: &'k [KeyBuf]) -> Result<Vec<Vec<&'k KeyBuf>>> {
        let mut sorted: Vec<&KeyBuf> = keys.iter().collect();
        sorted.sort_unstable();
        let mut groups: Vec<Vec<&KeyBuf>> = Vec::new();
        for key in sorted {
            match groups.last_mut() {
                Some(group)
                    if !self.suffix.is_empty()
                        && self.is_same_parent(group.first().unwrap_or(&key), key)? =>
                {
                    group.push(key);
                }
                _ => groups.push(vec![key]),
            }
        }
        Ok(groups)
    }
}

/// The most pairs that a repair looks up one by one: as many as it may read rows. If a parent has
/// so many children that there would be more, it scans them once.
pub(super) const MAX_LOOK_UPS: u64 = 100_000;

/// A plan has every `STEP`th key of a parent.
pub(super) const STEP: usize = 64;

/// Where pages of one parent may end, as the parent was when its first page was read.
///
/// It tells a page how far to read at each child if no stored totals do. It serves planning only:
/// each page compares what its own snapshot has.
#[derive(Debug)]
pub(super) struct Plan {
    counter: CounterId,
    /// The key after which the plan was made.
    after: KeyBuf,
    parent: KeyBuf,
    ends: Vec<KeyBuf>,
}

impl Plan {
    pub(super) fn new(columns: &KeyColumns, after: &KeyBuf, ends: Vec<KeyBuf>) -> Result<Self> {
        Ok(Self {
            counter: columns.counter,
            after: after.clone(),
            parent: columns.parent_of(after)?,
            ends,
        })
    }

    /// Returns whether the plan covers what comes after this key.
    pub(super) fn is_of(&self, columns: &KeyColumns, after: &KeyBuf) -> Result<bool> {
        Ok(self.counter.same(&columns.counter)
            && self.after <= *after
            && self.parent == columns.parent_of(after)?)
    }

    /// Returns the end of a page of about this many keys after one; `None` if no more than that is
    /// left of the parent.
    pub(super) fn end(&self, after: &KeyBuf, keys: usize) -> Option<&KeyBuf> {
        let next = self.ends.partition_point(|end| end <= after);
        self.ends.get(next + (keys / STEP).saturating_sub(1))
    }
}

/// Returns the last key that a page can compare, if its totals were truncated there, and therefore
/// its rows too.
pub(super) fn bound<'t>(ask: &PageRequest, totals: &'t [(KeyBuf, i64)]) -> Option<&'t KeyBuf> {
    let last = ask.keys.checked_sub(1).and_then(|last| totals.get(last));
    last.filter(|_| totals.len() > ask.keys).map(|(key, _)| key)
}

/// Merges like [`merge`], for a page that ends at `end` although there may be more after it.
pub(super) fn merge_up_to(
    ask: &PageRequest,
    end: Option<KeyBuf>,
    recounts: Vec<Recount>,
    totals: Vec<(KeyBuf, i64)>,
) -> Result<PageDiff> {
    let Some(end) = end.filter(|end| ask.until.as_ref().is_none_or(|until| end < until)) else {
        return merge(ask, recounts, totals);
    };
    let mut diff =
        merge(&PageRequest { until: Some(end.clone()), ..ask.clone() }, recounts, totals)?;
    diff.next.get_or_insert(end);
    Ok(diff)
}
