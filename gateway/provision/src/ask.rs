//! How much of an unmet need is asked for in one round: damped, as glideinWMS does it, so that a burst of work does not rent a fleet for tasks that are
//! over before it has booted.

use crate::limits::{NEAR, RAMP_ATTENUATION};

/// A limit, and how much of it is used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Curb {
    /// As the configuration calls it.
    pub name: String,
    /// So much is used.
    pub used: u64,
    /// Of so much.
    pub max: u64,
}

/// What is asked for, and what damped it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ask {
    /// In the unit of the need.
    pub amount: u64,
    /// Limits that are near: each halved it.
    pub near: Vec<Curb>,
    /// The limit that is reached: nothing is asked for.
    pub hard: Option<Curb>,
}

/// A third of what is unmet, rounded up, halved for every limit that is near, 1 at least; nothing where a limit is reached.
pub fn ask(unmet: u64, curbs: &[Curb]) -> Ask {
    if let Some(hard) = curbs.iter().find(|c| c.used >= c.max) {
        return Ask { hard: Some(hard.clone()), ..Ask::default() };
    }
    let is_near = |c: &&Curb| u128::from(c.used) * u128::from(NEAR.1) >= u128::from(c.max) * u128::from(NEAR.0);
    let near: Vec<Curb> = curbs.iter().filter(is_near).cloned().collect();
    let damped = unmet.div_ceil(RAMP_ATTENUATION).checked_shr(near.len() as u32).unwrap_or(0);
    Ask { amount: damped.max(u64::from(unmet > 0)), near, hard: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ninety_unmet_are_thirty_fifteen_seven_or_none() {
        let curb = |used: u64| Curb { name: format!("limit at {used}"), used, max: 100 };
        assert_eq!(30, ask(90, &[curb(10), curb(79)]).amount);
        assert_eq!(15, ask(90, &[curb(80)]).amount);
        assert_eq!(7, ask(90, &[curb(80), curb(99)]).amount);
        assert_eq!(Ask { amount: 0, near: vec![], hard: Some(curb(100)) }, ask(90, &[curb(80), curb(100)]));
        assert_eq!([0, 1, 1], [ask(0, &[]).amount, ask(1, &[]).amount, ask(2, &[curb(90), curb(91)]).amount]);
    }
}
