//! Why something is not further: typed, nested, forwarded verbatim through every hop. Redaction drops the words and keeps the kind.

use crate::ids::SiteId;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $n:literal, $word:literal;)*) => {
        /// What kind of reason. Numbers never change their meaning; a number of a later version is kept as `Other` and forwarded.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
        pub enum ReasonKind { $($(#[$doc])* $name,)* /// Of a later version.
            Other(u32) }

        impl ReasonKind {
            /// All that this version knows.
            pub const ALL: &[ReasonKind] = &[$(ReasonKind::$name,)*];

            /// The number on the wire and in the store.
            pub fn number(self) -> u32 { match self { $(ReasonKind::$name => $n,)* ReasonKind::Other(n) => n } }

            /// From the number.
            pub fn from_number(n: u32) -> Self { match n { $($n => ReasonKind::$name,)* _ => ReasonKind::Other(n) } }

            /// One word for people and scripts.
            pub fn word(self) -> &'static str { match self { $(ReasonKind::$name => $word,)* ReasonKind::Other(_) => "other" } }
        }
    };
}

kinds! {
    /// Nothing has been decided yet: the next pass will.
    NotYetScheduled = 1, "not-yet-scheduled";
    /// No child and no agent is attached.
    NoResource = 2, "no-resource";
    /// No share could ever run it (static fit).
    NoFit = 3, "no-fit";
    /// Shares fit, all are full.
    AllBusy = 4, "all-busy";
    /// A placement came back beyond the credit.
    OverCredit = 5, "over-credit";
    /// A share is left alone for a while after it gave work back.
    BackOff = 6, "back-off";
    /// Somebody put it on hold.
    HeldByUser = 7, "held-by-user";
    /// It has used up its attempts.
    AttemptsUsed = 8, "attempts-used";
    /// The child that has it can't be reached.
    ContactLost = 9, "contact-lost";
    /// The child takes no new work.
    Draining = 10, "draining";
    /// The child that had it no longer knows of it, and no stop is confirmed.
    EvidenceLost = 11, "evidence-lost";
    /// The child has it and says why it waits there.
    WaitsBelow = 12, "waits-below";
    /// The old attempt there has not stopped yet.
    StillStopping = 13, "still-stopping";
    /// As many tasks of the array as may be are placed or running.
    Throttled = 14, "throttled";
    /// A machine could run it, and none is rented for it (yet): which limit stands in the way.
    NotRented = 15, "not-rented";
    /// It would cost more than what is left of what the job may cost.
    CostLimit = 16, "cost-limit";

    /// The payload exited with a code other than 0.
    ExitNonZero = 32, "exit-code";
    /// The payload was killed by a signal.
    ExitSignal = 33, "signal";
    /// The process is gone and nobody saw how it ended.
    ExitUnknown = 34, "exit-unknown";
    /// It ran beyond its time limit.
    TimeLimit = 35, "time-limit";
    /// It used more than its memory limit.
    MemoryLimit = 36, "memory-limit";
    /// The program does not exist (as a shell's 127).
    NoSuchProgram = 37, "no-such-program";
    /// The program can't be executed (as a shell's 126).
    NotExecutable = 38, "not-executable";
    /// An input could not be had, or was not what its hash says.
    StageInFailed = 39, "stage-in-failed";
    /// An output was not made, or could not be brought back.
    StageOutFailed = 40, "stage-out-failed";
    /// The machine could not start it (no process, no disk, no directory).
    StartFailed = 41, "start-failed";
    /// Stopped because somebody wished it.
    CancelledByUser = 42, "cancelled";
    /// Fenced: the attempt no longer counts.
    Fenced = 43, "fenced";

    /// The request has passed this site already, or too many.
    Loop = 64, "loop";
    /// The spec demands a feature that this site does not know.
    MustUnderstand = 65, "must-understand";
    /// The spec is refused here.
    InvalidSpec = 66, "invalid-spec";
    /// The parent lacks the right.
    NotAuthorised = 67, "not-authorised";
    /// Beyond a limit of this site.
    OverLimit = 68, "over-limit";
    /// The parent asked for it back.
    AskedBack = 69, "asked-back";
}

/// What a node takes beside its words, about.
const NODE_BYTES: usize = 48;

/// Who may read the words of a reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, Default)]
pub enum Audience {
    /// Anybody who may see the job.
    #[default]
    User,
    /// The site's operators.
    Operator,
}

/// A node of the tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reason {
    /// What kind.
    pub kind: ReasonKind,
    /// Evidence, in words.
    pub text: String,
    /// What would help; may be empty.
    pub remedy: String,
    /// Milliseconds since it holds, as of the message that carries it.
    pub age_ms: u64,
    /// Who may read `text` and `remedy`.
    pub audience: Audience,
    /// Who says so.
    pub site: Option<(SiteId, String)>,
    /// What it rests on.
    pub because: Vec<Reason>,
}

impl Reason {
    /// A leaf, for users, holding since now.
    pub fn new(kind: ReasonKind, text: impl Into<String>) -> Self {
        Reason { kind, text: text.into(), remedy: String::new(), age_ms: 0, audience: Audience::User, site: None, because: Vec::new() }
    }

    /// With what would help.
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// Holding since so long.
    pub fn aged(mut self, age_ms: u64) -> Self {
        self.age_ms = age_ms;
        self
    }

    /// So much later, with all that it rests on.
    pub fn later(mut self, ms: u64) -> Self {
        self.age_ms = self.age_ms.saturating_add(ms);
        self.because = self.because.into_iter().map(|b| b.later(ms)).collect();
        self
    }

    /// With what it rests on.
    pub fn because(mut self, because: Vec<Reason>) -> Self {
        self.because = because;
        self
    }

    /// Cut to `REASON_TREE_BYTES_MAX`: what is nearest to the top stays. A reason that has been through this fits any message and record.
    pub fn bounded(mut self) -> Reason {
        let mut left = crate::limits::REASON_TREE_BYTES_MAX;
        self.cut(&mut left);
        self
    }

    fn cut(&mut self, left: &mut usize) {
        let own = |r: &Reason| NODE_BYTES + r.text.len() + r.remedy.len() + r.site.as_ref().map_or(0, |s| s.1.len());
        *left = left.saturating_sub(own(self));
        // First all of this level, then what each rests on.
        let mut kept = 0;
        for r in &self.because {
            if own(r) > *left {
                break;
            }
            *left -= own(r);
            kept += 1;
        }
        self.because.truncate(kept);
        for r in &mut self.because {
            *left += own(r);
            r.cut(left);
        }
    }

    /// Without the words that this audience may not read; kinds stay.
    pub fn redacted_for(&self, audience: Audience) -> Reason {
        let mut out = self.clone();
        if self.audience == Audience::Operator && audience == Audience::User {
            out.text.clear();
            out.remedy.clear();
        }
        out.because = self.because.iter().map(|r| r.redacted_for(audience)).collect();
        out
    }
}

/// `no-fit: needs 8 slots, largest machine has 4`
impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.text.is_empty() {
            true => f.write_str(self.kind.word()),
            false => write!(f, "{}: {}", self.kind.word(), self.text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back_and_unknown_ones_are_kept() {
        for k in ReasonKind::ALL {
            assert_eq!(*k, ReasonKind::from_number(k.number()));
        }
        assert_eq!(9_999, ReasonKind::from_number(9_999).number());
    }

    #[test]
    fn large_trees_are_cut_from_below() {
        let leaf = || Reason::new(ReasonKind::AllBusy, "x".repeat(500));
        let middle = || leaf().because((0..64).map(|_| leaf()).collect());
        let cut = Reason::new(ReasonKind::NoFit, "top").because((0..64).map(|_| middle()).collect()).bounded();
        fn size(r: &Reason) -> usize {
            NODE_BYTES + r.text.len() + r.because.iter().map(size).sum::<usize>()
        }
        assert!(size(&cut) <= crate::limits::REASON_TREE_BYTES_MAX + NODE_BYTES && cut.because.len() > 10, "{}", size(&cut));
        let small = Reason::new(ReasonKind::NoFit, "top").because(vec![leaf()]);
        assert_eq!(small.clone().bounded(), small);
    }

    #[test]
    fn time_passes_for_all_that_a_reason_rests_on() {
        let of = |age, below| Reason::new(ReasonKind::OverCredit, "").aged(age).because(vec![Reason::new(ReasonKind::NotRented, "").aged(below)]);
        assert_eq!(of(57_000, 59_000), of(0, 2_000).later(57_000));
    }

    #[test]
    fn redaction_keeps_the_kind() {
        let mut inner = Reason::new(ReasonKind::AllBusy, "node n17 is full");
        inner.audience = Audience::Operator;
        let seen = Reason::new(ReasonKind::WaitsBelow, "at campus").because(vec![inner]).redacted_for(Audience::User);
        assert_eq!((seen.text.as_str(), seen.because[0].kind, seen.because[0].text.as_str()), ("at campus", ReasonKind::AllBusy, ""));
    }
}
