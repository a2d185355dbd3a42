//! Replaces the example's errors, which need SQLite.

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug)]
pub enum Error {
    Said(String),
}

impl Error {
    pub fn said(text: impl Into<String>) -> Self {
        Self::Said(text.into())
    }
}
