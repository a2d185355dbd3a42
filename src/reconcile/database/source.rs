//! The builders with which an application says where a counter's rows are, the same for each
//! database.

/// The methods of a source, which wraps a `Target`, and of a typed source, whose rows can be read.
macro_rules! builder {
    ($source:ident, $typed:ident) => {
        impl $source {
            /// Reads the rows of a table, grouped by these columns: one for each part of the
            /// counter's key, none for the key `()`, whose only page is the whole table.
            ///
            /// The table may have a schema prefix, as in `app.votes`; put a name with a dot in it
            /// in double quotes. A bare name that several schemas have is refused. Columns are
            /// plain names; use [`query`](Self::query) for expressions.
            #[must_use]
            pub fn table<const N: usize>(table: &str, key: [&str; N]) -> Self {
                Self(Target::table(table, &key))
            }

            /// Reads the rows of a query, if a table alone is not enough: a row that adds to two
            /// keys of one counter is returned twice by `UNION ALL`. Whether pages can be read from
            /// an index then depends on the query.
            #[must_use]
            pub fn query<const N: usize>(query: &str, key: [&str; N]) -> Self {
                Self(Target::query(query, &key))
            }

            /// Sets what a row adds, as an SQL expression of integers; the default is 1, and null
            /// adds nothing.
            ///
            /// Write names of columns bare or as `r."name"`: SQLite reads a name in double quotes
            /// that no column has as a string.
            #[must_use]
            pub fn amount(mut self, expression: &str) -> Self {
                self.0.amount = Some(expression.to_owned());
                self
            }

            /// Sets which rows count, as an SQL condition; the default is every row. Write names as
            /// for [`amount`](Self::amount).
            #[must_use]
            pub fn filter(mut self, condition: &str) -> Self {
                self.0.filter = Some(condition.to_owned());
                self
            }

            /// Says that the last parts of the key, one for each column here, refer to a row of
            /// this table, such as the parent of a membership. A verify then reports dangling
            /// memberships, whose parent does not exist.
            #[must_use]
            pub fn parent<const N: usize>(mut self, table: &str, columns: [&str; N]) -> Self {
                self.0.parent = Some((Name::new(table), columns.map(str::to_owned).to_vec()));
                self
            }

            /// Makes the last part of the key an epoch: the last key column, a time in seconds,
            /// divided by `seconds` and rounded down. Pages are read from an index on the columns
            /// as they are.
            #[doc = concat!("Only for sources that are read [`by_tally`](", stringify!($typed), "::by_tally).")]
            ///
            /// # Panics
            ///
            /// If `seconds` is not greater than 0.
            #[must_use]
            pub fn per(mut self, seconds: i64) -> Self {
                assert!(seconds > 0, "an epoch is longer than nothing");
                self.0.per = Some(seconds);
                self
            }
        }

        impl $typed<'_> {
            /// Recounts by reading every row and its `tally`, instead of by `GROUP BY`.
            ///
            /// This is slower, but then only the key is defined twice; amount and filter are not
            /// used.
            #[must_use]
            pub fn by_tally(mut self) -> Self {
                self.by_tally = true;
                self
            }
        }

        impl std::fmt::Debug for $typed<'_> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($typed))
                    .field("target", &self.target)
                    .field("by_tally", &self.by_tally)
                    .finish_non_exhaustive()
            }
        }
    };
}

pub(in crate::reconcile) use builder;
