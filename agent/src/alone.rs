//! The dead man's switch of a rented machine: without its gateway, and with nothing that runs, it ends by itself after a while, so that it stops to cost
//! money even if nobody is left who could end it. Pure.

/// Since when, and for how long at most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone {
    max_ms: Option<u64>,
    since_ms: Option<u64>,
}

impl Alone {
    /// None: never.
    pub fn new(max_ms: Option<u64>) -> Self {
        Alone { max_ms, since_ms: None }
    }

    /// Is it time to end? `now_ms` is monotonic. What has ended and could not be told to anybody does not keep it: it is lost, as it was alone for so long.
    pub fn is_over(&mut self, attached: bool, works: bool, now_ms: u64) -> bool {
        if attached || works {
            self.since_ms = None;
            return false;
        }
        let since = *self.since_ms.get_or_insert(now_ms);
        self.max_ms.is_some_and(|max| now_ms.saturating_sub(since) >= max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_only_while_alone_and_idle() {
        let mut alone = Alone::new(Some(100));
        assert!(!alone.is_over(false, false, 1_000) && !alone.is_over(false, false, 1_099));
        assert!(!alone.is_over(false, true, 1_100), "something runs");
        assert!(!alone.is_over(false, false, 1_101) && !alone.is_over(true, false, 1_150), "the gateway is back");
        assert!(!alone.is_over(false, false, 1_160) && alone.is_over(false, false, 1_260));
        assert!(!Alone::new(None).is_over(false, false, u64::MAX));
    }
}
