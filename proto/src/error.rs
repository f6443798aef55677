//! Refusals: a closed set of kinds, each of which says who may retry. Messages are lower case, name what was wrong, and the remedy what to do.

/// Why a request was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum RefusalKind {
    /// The request itself is wrong; never retry it as it is.
    Invalid,
    /// A key reused with another spec; a prefix that is not unique.
    Conflict,
    /// The caller lacks the right.
    NotAuthorised,
    /// No such thing, or not the caller's.
    NotFound,
    /// Beyond a bound; may be retried when there is room.
    OverLimit,
    /// Not now; retry with the same key.
    Unavailable,
    /// The request has passed here already, or passed too many hops.
    Loop,
    /// Somebody with this id is connected already.
    DuplicateIdentity,
    /// The spec demands a feature that this hop does not know.
    MustUnderstand,
    /// Content that is not here; upload it, then retry.
    MissingBlob,
    /// A fault of ours.
    Internal,
}

/// A request that was refused and changed nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}{}{remedy}", if remedy.is_empty() { "" } else { "; " })]
pub struct Refusal {
    /// Which of the closed set.
    pub kind: RefusalKind,
    /// What was wrong, and where.
    pub message: String,
    /// What to do; may be empty.
    pub remedy: String,
}

impl Refusal {
    /// Without a remedy.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Refusal { kind, message: message.into(), remedy: String::new() }
    }

    /// The request itself is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(RefusalKind::Invalid, message)
    }

    /// With what to do about it.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }
}

/// `LINE:COLUMN`, from 1, of a byte in a text: how every error in a configuration names its place.
pub fn line_and_column(text: &str, at: usize) -> String {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |n| n + 1);
    format!("{}:{}", before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Result of anything that can be refused.
pub type Result<T, E = Refusal> = std::result::Result<T, E>;
