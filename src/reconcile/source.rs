//! What an application says of where a counter's rows are, the same for each database.

/// The methods of a source, which is a `Target`, and of one whose rows can be read.
macro_rules! builder {
    ($source:ident, $typed:ident) => {
        impl $source {
            /// Rows of a table, grouped by these columns: one for each part of the counter's key, none for the key `()`, whose only page is the whole
            /// table. The table may stand behind its schema, as in `app.votes`; a name with a dot in it stands in double quotes. A bare name that
            /// several schemas have is refused. Columns are plain names; expressions are for [`query`](Self::query).
            #[must_use]
            pub fn table<const N: usize>(table: &str, key: [&str; N]) -> Self {
                Self(Target::table(table, &key))
            }

            /// Rows of a query, where a table alone does not say it: a row that adds to two keys of one counter is given twice by
            /// `UNION ALL`. Whether pages can be read from an index is then up to the query.
            #[must_use]
            pub fn query<const N: usize>(query: &str, key: [&str; N]) -> Self {
                Self(Target::query(query, &key))
            }

            /// What a row adds, as an SQL expression of integers; 1 by default; null adds nothing.
            ///
            /// Write names of columns bare, or as `r."name"`: a name in double quotes alone that no column has is a text to SQLite.
            #[must_use]
            pub fn amount(mut self, expression: &str) -> Self {
                self.0.amount = Some(expression.to_owned());
                self
            }

            /// Which rows count, as an SQL condition; every row by default. Names as for [`amount`](Self::amount).
            #[must_use]
            pub fn filter(mut self, condition: &str) -> Self {
                self.0.filter = Some(condition.to_owned());
                self
            }

            /// The last parts of the key, as many as there are columns here, name a row of this table: of a membership, the parent. A verify then reports
            /// memberships that dangle, whose parent is not there.
            #[must_use]
            pub fn parent<const N: usize>(mut self, table: &str, columns: [&str; N]) -> Self {
                self.0.parent = Some((Name::new(table), columns.map(str::to_owned).to_vec()));
                self
            }

            /// The last part of the key is an epoch: the last key column, a time in seconds, divided by `seconds` and rounded down. Pages
            /// come out of an index on the columns as they are.
            #[doc = concat!("Only for sources that are read [`by_tally`](", stringify!($typed), "::by_tally).")]
            ///
            /// # Panics
            ///
            /// When `seconds` is not above 0.
            #[must_use]
            pub fn per(mut self, seconds: i64) -> Self {
                assert!(seconds > 0, "an epoch is longer than nothing");
                self.0.per = Some(seconds);
                self
            }
        }

        impl $typed<'_> {
            /// Recounts by reading every row and its `tally`, instead of by `GROUP BY`: slower, and only the key is said twice; amount and filter are
            /// not used.
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

pub(super) use builder;
