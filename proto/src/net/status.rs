//! Refusals as gRPC statuses and back. A status carries the refusal encoded as details; one without details is the transport's, and is put into words.

use std::error::Error;

use prost::Message;
use tonic::{Code, Status};

use crate::error::{Refusal, RefusalKind};
use crate::limits::REASON_TEXT_BYTES_MAX;
use crate::pb;

impl From<Refusal> for Status {
    fn from(mut r: Refusal) -> Status {
        let code = match r.kind {
            RefusalKind::Invalid => Code::InvalidArgument,
            RefusalKind::Conflict | RefusalKind::DuplicateIdentity => Code::AlreadyExists,
            RefusalKind::NotAuthorised => Code::PermissionDenied,
            RefusalKind::NotFound => Code::NotFound,
            RefusalKind::OverLimit => Code::ResourceExhausted,
            RefusalKind::Unavailable => Code::Unavailable,
            RefusalKind::Loop | RefusalKind::MissingBlob => Code::FailedPrecondition,
            RefusalKind::MustUnderstand => Code::Unimplemented,
            RefusalKind::Internal => Code::Internal,
        };
        // Both travel in headers, which are bounded.
        cut(&mut r.message);
        cut(&mut r.remedy);
        let message = r.message.clone();
        Status::with_details(code, message, pb::Error::from(r).encode_to_vec().into())
    }
}

fn cut(text: &mut String) {
    let end = (0..=REASON_TEXT_BYTES_MAX.min(text.len())).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    text.truncate(end);
}

/// The refusal that a status carries, or what the transport means by it.
pub fn refusal_of(status: &Status) -> Refusal {
    if !status.details().is_empty()
        && let Ok(error) = pb::Error::decode(status.details())
    {
        return error.into();
    }
    let kind = match status.code() {
        Code::InvalidArgument | Code::Unimplemented => RefusalKind::Invalid,
        Code::Internal if status.message().contains("decode Protobuf") => RefusalKind::Invalid,
        Code::OutOfRange | Code::ResourceExhausted => RefusalKind::OverLimit,
        Code::PermissionDenied | Code::Unauthenticated => RefusalKind::NotAuthorised,
        Code::NotFound => RefusalKind::NotFound,
        _ => RefusalKind::Unavailable,
    };
    let said = said(status);
    match kind {
        RefusalKind::Unavailable => Refusal::new(kind, format!("no answer from the peer: {said}")).remedy("the call may be repeated"),
        _ if status.code() == Code::Unimplemented => Refusal::new(kind, "the peer does not know this call").remedy("bring both to the same version"),
        _ => Refusal::new(kind, said),
    }
}

/// Why a stream ended, in one clause: what its refusal says, or what the transport means.
pub fn cause(status: &Status) -> String {
    if status.details().is_empty() { said(status) } else { refusal_of(status).message }
}

/// What the transport says, in one clause. The innermost source says most; a lost connection is told in the same words however it was noticed.
fn said(status: &Status) -> String {
    let mut all = vec![status.message().to_string()];
    let mut source = status.source();
    while let Some(e) = source {
        all.push(e.to_string());
        source = e.source();
    }
    all.retain(|s| !s.is_empty());
    match all.last() {
        Some(last) => in_words(&all.join(": ")).map_or_else(|| last.clone(), str::to_string),
        None => format!("{:?}", status.code()).to_lowercase(),
    }
}

/// Faults of a connection as people say them; None: something else.
fn in_words(said: &str) -> Option<&'static str> {
    // The first that fits: what is nearer to the cause stands first.
    const WORDS: [(&[&str], &str); 5] = [
        (&["connection refused"], "connection refused"),
        (&["connection reset"], "the connection was reset"),
        (&["keep-alive timed out", "keepalivetimedout", "timed out", "timeout expired", "deadline"], "no answer in time"),
        (&["no route to host", "unreachable"], "no route to it"),
        (
            &[
                "close_notify",
                "broken pipe",
                "unexpected eof",
                "unexpected end of file",
                "not connected",
                "connection closed",
                "channel closed",
                "connection is lost",
                "transport error",
            ],
            "the connection was closed",
        ),
    ];
    let said = said.to_lowercase();
    WORDS.iter().find(|(parts, _)| parts.iter().any(|p| said.contains(p))).map(|(_, words)| *words)
}

/// A fault of a connection in one clause, as people say it.
pub fn clause(e: &std::io::Error) -> String {
    in_words(&e.to_string()).map_or_else(|| e.to_string(), str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_back_as_it_was() {
        use RefusalKind::*;
        let kinds =
            [Invalid, Conflict, NotAuthorised, NotFound, OverLimit, Unavailable, Loop, DuplicateIdentity, MustUnderstand, MissingBlob, Internal];
        for kind in kinds {
            let refusal = Refusal::new(kind, "job 4: what was wrong").remedy("what to do");
            assert_eq!(refusal_of(&refusal.clone().into()), refusal);
        }
    }

    #[test]
    fn statuses_of_the_transport_are_put_into_words() {
        let of = |code, message: &str| refusal_of(&Status::new(code, message));
        assert_eq!(of(Code::Unknown, "transport error").kind, RefusalKind::Unavailable);
        assert_eq!(of(Code::Unknown, "transport error").message, "no answer from the peer: the connection was closed");
        let io = |kind: std::io::ErrorKind| clause(&kind.into());
        assert_eq!("the connection was reset", io(std::io::ErrorKind::ConnectionReset));
        assert_eq!("connection refused", clause(&std::io::Error::from_raw_os_error(111)));
        // As h2 has it, with all that is behind it.
        let h2 = "h2 protocol error: error reading a body from connection: stream closed because of a broken pipe";
        assert_eq!(of(Code::Unknown, h2).message, "no answer from the peer: the connection was closed");
        assert_eq!(of(Code::Cancelled, "").to_string(), "no answer from the peer: cancelled; the call may be repeated");
        assert!(of(Code::Unimplemented, "").message.contains("does not know this call"));
        assert_eq!(of(Code::OutOfRange, "too large").kind, RefusalKind::OverLimit);
        let garbage = Status::with_details(Code::NotFound, "gone", vec![0xff; 9].into());
        assert_eq!(refusal_of(&garbage).kind, RefusalKind::NotFound);
    }
}
