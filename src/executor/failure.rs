//! A driver's error, and what it means: by the SQLSTATE in PostgreSQL, by the code and the words in
//! SQLite.

use crate::error::Cause;

/// A driver's error.
#[derive(Debug)]
pub struct Failure {
    /// What it means.
    pub kind: ErrorKind,
    /// What is wrong with the statement itself, or with the rows that it reads, if the error is
    /// about those: the source of a counter is then at fault, and not the database.
    pub fault: Option<String>,
    /// The library's own error.
    pub cause: Cause,
}

/// What a driver's error means.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Nothing was done, and the whole transaction may be tried again, for this reason.
    Busy(&'static str),
    /// A sum left 64 bits.
    Overflow,
    /// A table is absent: this one, or one that the database did not name separately.
    NoTable(Option<String>),
    /// A table is not as the statement expects.
    Misfit,
    /// The database can only be read now.
    ReadOnly,
    /// Anything else.
    Other,
}

impl ErrorKind {
    /// The connection was lost. Before a commit, nothing was applied then.
    pub const LOST: Self =
        Self::Busy("the connection was lost; open another, and try the whole transaction again");
    /// The server ended the connection.
    pub const ENDED: Self = Self::Busy(
        "the server ended the connection; open another, and try the whole transaction again",
    );
    /// The server does not know a prepared statement any more. The driver must have removed the
    /// cause.
    pub const FORGOTTEN: Self = Self::Busy(
        "the server has forgotten a prepared statement, which is prepared again; roll back, and try the whole transaction again",
    );

    /// What an error of a PostgreSQL server means, by its SQLSTATE.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::executor::ErrorKind;
    ///
    /// assert!(matches!(ErrorKind::of_sqlstate("40P01"), ErrorKind::Busy(_))); // a deadlock
    /// assert_eq!(ErrorKind::of_sqlstate("22003"), ErrorKind::Overflow);
    /// assert_eq!(ErrorKind::of_sqlstate("23505"), ErrorKind::Other); // a unique key
    /// ```
    #[must_use]
    pub fn of_sqlstate(code: &str) -> Self {
        match code {
            "25P02" => Self::Busy(
                "an earlier error has aborted the transaction; roll back, and try the whole transaction again",
            ),
            "40001" => Self::Busy(
                "another transaction changed what this one had read; roll back, and try the whole transaction again",
            ),
            "40P01" => Self::Busy(
                "it and another transaction are in a deadlock; roll back, and try the whole transaction again",
            ),
            "55P03" => Self::Busy(
                "another transaction held a lock that it needs for longer than lock_timeout",
            ),
            "57014" => Self::Busy("it was cancelled, or took longer than statement_timeout"),
            "53200" | "53300" => Self::Busy("the server is out of memory or connections"),
            "57P01" | "57P02" | "57P03" | "25P03" => Self::ENDED,
            "22003" => Self::Overflow,
            // The server names an absent table only in the message.
            "42P01" => Self::NoTable(None),
            "25006" | "42501" => Self::ReadOnly,
            _ if code.starts_with("42") => Self::Misfit,
            _ => Self::Other,
        }
    }

    /// What an error of a PostgreSQL server means, by its SQLSTATE, if the server ended the
    /// connection with it: whatever the code is, the transaction is gone.
    #[must_use]
    pub fn of_fatal(code: &str) -> Self {
        match Self::of_sqlstate(code) {
            busy @ Self::Busy(_) => busy,
            _ => Self::ENDED,
        }
    }

    /// What an error of SQLite means, by its extended code, if it has one, and its message.
    ///
    /// # Examples
    ///
    /// ```
    /// use keepcount::executor::ErrorKind;
    ///
    /// assert!(matches!(ErrorKind::of_sqlite(Some(5), "database is locked"), ErrorKind::Busy(_)));
    /// let absent = ErrorKind::of_sqlite(Some(1), "no such table: show_votes");
    /// assert_eq!(absent, ErrorKind::NoTable(Some("show_votes".to_owned())));
    /// ```
    #[must_use]
    pub fn of_sqlite(code: Option<i32>, message: &str) -> Self {
        let primary = code.map(|code| code & 0xff);
        match (code, primary) {
            (Some(BUSY_SNAPSHOT), _) => Self::Busy(
                "another connection wrote after this transaction had read; roll it back and repeat it whole, and begin \
                 transactions that write with BEGIN IMMEDIATE",
            ),
            (_, Some(BUSY | LOCKED)) => Self::Busy(
                "the database is locked by another connection; roll back and try again, or set a busy timeout",
            ),
            (_, Some(READONLY)) => Self::ReadOnly,
            (Some(CONSTRAINT_DATATYPE), _) => Self::Overflow,
            // A missing column. Errors of the database itself, with a code of their own, are not
            // this.
            (_, None | Some(ERROR)) if message.contains("no such column") => Self::Misfit,
            _ => Self::in_words(message),
        }
    }

    /// Errors that SQLite tells apart only in the message.
    fn in_words(message: &str) -> Self {
        if message.contains("integer overflow") {
            return Self::Overflow;
        }
        let Some((_, table)) = message.split_once("no such table: ") else { return Self::Other };
        let table = table.split([' ', ',']).next().unwrap_or(table);
        Self::NoTable(Some(table.trim_start_matches("main.").to_owned()))
    }
}

/// SQLite's codes.
const ERROR: i32 = 1;
const BUSY: i32 = 5;
const LOCKED: i32 = 6;
const READONLY: i32 = 8;
const BUSY_SNAPSHOT: i32 = 517;
/// A sum beyond 64 bits becomes REAL, which a STRICT column refuses.
const CONSTRAINT_DATATYPE: i32 = 3_091;

/// What is wrong with a statement or its rows, if an error of a PostgreSQL server is about those:
/// what the server said, with a hint.
///
/// It is if its SQLSTATE is of the classes "cardinality violation", "data exception", and "syntax
/// error or access rule violation".
#[must_use]
pub fn fault_of_sqlstate(code: &str, said: &str) -> Option<String> {
    let is_of_statement = ["21", "22", "42"].iter().any(|class| code.starts_with(class));
    let hint = if code == "42501" { "; read it as a role that sees all rows" } else { "" };
    is_of_statement.then(|| format!("{said}{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_sqlite_is_a_misfit_if_a_column_is_missing_and_its_code_says_nothing_else() {
        let (column, syntax) = ("no such column: total", "near \"FORM\": syntax error");
        for (code, message, misfit) in [
            (None, column, true),
            (Some(1), column, true),
            (Some(26), column, false),
            (None, syntax, false),
            (Some(1), syntax, false),
        ] {
            let kind = if misfit { ErrorKind::Misfit } else { ErrorKind::Other };
            assert_eq!(ErrorKind::of_sqlite(code, message), kind, "{code:?} {message}");
        }
    }

    #[test]
    fn an_error_of_postgres_that_ends_the_connection_is_busy_whatever_its_code() {
        for (code, kind, fatal) in [
            ("42703", ErrorKind::Misfit, ErrorKind::ENDED),
            ("42P01", ErrorKind::NoTable(None), ErrorKind::ENDED),
            ("42501", ErrorKind::ReadOnly, ErrorKind::ENDED),
            ("57P05", ErrorKind::Other, ErrorKind::ENDED),
            ("57P01", ErrorKind::ENDED, ErrorKind::ENDED),
        ] {
            assert_eq!(
                (ErrorKind::of_sqlstate(code), ErrorKind::of_fatal(code)),
                (kind, fatal),
                "{code}"
            );
        }
    }

    #[test]
    fn a_fault_of_a_statement_says_which_role_can_read_if_this_one_may_not() {
        let role = "no; read it as a role that sees all rows";
        for (code, said) in [("42501", Some(role)), ("42703", Some("no")), ("40001", None)] {
            assert_eq!(fault_of_sqlstate(code, "no").as_deref(), said, "{code}");
        }
    }
}
