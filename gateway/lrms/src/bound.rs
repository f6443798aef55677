//! How many tasks one submission may have: what the LRMS says of it, asked now and then, as an administrator may lower or raise it. Pure.
//!
//! What the LRMS says is no promise: Slurm tells a `MaxArraySize` that was raised at once, and keeps to the former until its controller is started anew
//! (seen in the source of 22.05). So a refusal of what is within a raised bound brings back the former one, until it is asked again.

use crate::limits::BOUND_INTERVAL_MS;

/// Tasks that one submission may have.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bound {
    max: Option<u32>,
    /// Before it was changed.
    former: Option<u32>,
    asked_ms: u64,
}

impl Bound {
    /// None: not known, and each task goes by itself.
    pub fn max(&self) -> Option<u32> {
        self.max
    }

    /// Is the LRMS to be asked?
    pub fn is_due(&self, now: u64) -> bool {
        self.max.is_none() || now >= self.asked_ms + BOUND_INTERVAL_MS
    }

    /// What it said; None: nothing, and what is known stays.
    pub fn heard(&mut self, said: Option<u32>, now: u64) {
        self.asked_ms = now;
        if said.is_some() && said != self.max {
            self.former = self.max.or(self.former);
            self.max = said;
        }
    }

    /// So many were refused for their number, and it was asked anew: may fewer go?
    pub fn refused(&mut self, tasks: u32, said: Option<u32>, now: u64) -> bool {
        self.heard(said, now);
        match (said, self.former) {
            (None, _) => self.max = None,
            (Some(said), Some(former)) if former < tasks && tasks <= said => self.max = Some(former),
            (Some(said), _) => return said < tasks,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_raised_or_lowered_is_heard_of_within_minutes() {
        let mut bound = Bound::default();
        assert!(bound.is_due(0));
        bound.heard(None, 5);
        assert!(bound.is_due(6), "it is not known yet");
        bound.heard(Some(3), 10);
        assert!(!bound.is_due(9 + BOUND_INTERVAL_MS) && bound.is_due(10 + BOUND_INTERVAL_MS));
        let now = 10 + BOUND_INTERVAL_MS;
        bound.heard(None, now);
        assert_eq!((Some(3), false), (bound.max(), bound.is_due(now + 1)), "an LRMS that does not answer is not asked each time");
        bound.heard(Some(20), now + BOUND_INTERVAL_MS);
        assert_eq!(Some(20), bound.max());
        bound.heard(Some(7), now + 2 * BOUND_INTERVAL_MS);
        assert_eq!(Some(7), bound.max());
    }

    #[test]
    fn what_is_refused_goes_as_fewer_where_fewer_may_help() {
        let mut bound = Bound::default();
        bound.heard(Some(100), 0);
        assert!(!bound.refused(5, Some(100), 1), "within all that was ever said");
        assert_eq!((true, Some(2)), (bound.refused(5, Some(2), 1), bound.max()), "it was lowered");
        assert!(!bound.refused(2, Some(2), 1));
        assert_eq!((true, None), (bound.refused(2, None, 1), bound.max()), "not known, one by one");
    }

    #[test]
    fn a_raised_bound_that_is_not_kept_to_is_the_former_one_until_it_is_asked_again() {
        let mut bound = Bound::default();
        bound.heard(Some(3), 0);
        bound.heard(Some(20), 1);
        // Two that were under way together.
        for tasks in [8, 20] {
            assert_eq!((true, Some(3)), (bound.refused(tasks, Some(20), 2), bound.max()));
        }
        assert!(!bound.is_due(3));
        bound.heard(Some(20), 2 + BOUND_INTERVAL_MS);
        assert_eq!((true, Some(3)), (bound.refused(8, Some(20), 3 + BOUND_INTERVAL_MS), bound.max()));
        assert!(!bound.refused(3, Some(20), 4 + BOUND_INTERVAL_MS), "nor does it keep to the former one");
    }
}
