//! Every bound of the provisioner, in one place.

/// A lease of a machine that is billed by the second: so much is charged ahead.
pub const LEASE_MS: u64 = 10 * 60_000;
/// A machine that can't be paid for any longer, or is not wanted for another hour, takes no new work so long before its lease ends.
pub const LEASE_LEAD_MS: u64 = 5 * 60_000;
/// It is ended so long before its lease ends, whatever it does: a provider needs time to stop it.
pub const STOP_LEAD_MS: u64 = 2 * 60_000;
/// How far a lease that ran out is extended, when the machine has been told to end and has not.
pub const OVERRUN_MS: u64 = 60_000;
/// Launch calls in flight.
pub const CALLS_MAX: usize = 8;
/// Machines that one round may add.
pub const ROUND_MACHINES_MAX: u32 = 100;
/// A third of the need that is unmet is asked for in a round (glideinWMS, ramp_up_attenuation).
pub const RAMP_ATTENUATION: u64 = 3;
/// A soft limit is near at this part of its hard limit: four fifths.
pub const NEAR: (u64, u64) = (4, 5);
/// A call whose outcome is unknown is repeated after so long, with the same token, twice as long each time ...
pub const REPEAT_MIN_MS: u64 = 2_000;
/// ... up to this.
pub const REPEAT_MAX_MS: u64 = 60_000;
/// An offer is left alone for so long after the provider had no capacity, or a machine of it has failed, twice as long each time ...
pub const BACK_OFF_MIN_MS: u64 = 60_000;
/// ... up to this.
pub const BACK_OFF_MAX_MS: u64 = 30 * 60_000;
/// A provider that refuses for a reason that concerns all offers (credentials, a bad image) is left alone for so long.
pub const BLOCKED_MS: u64 = 5 * 60_000;
/// Without room on a disk of ours for what a launch writes, none is tried for so long.
pub const NO_ROOM_MS: u64 = 5_000;
/// Looks that must all miss a machine before its absence is believed ...
pub const ABSENT_LOOKS: u32 = 5;
/// ... over at least so long, after the last word of it: listings lag behind.
pub const ABSENT_MS: u64 = 5 * 60_000;
/// Looks that must all see a machine that no intent knows before it is ended.
pub const STRANGER_LOOKS: u32 = 2;
/// Between two looks while anything is uncertain; the double while nothing is.
pub const LOOK_MS: u64 = 30_000;
/// A terminate call is repeated after so long.
pub const TERMINATE_AGAIN_MS: u64 = 15_000;
/// The free slots of a machine whose agent had come and is away are still reckoned with for so long: most are back by then, also after a restart of ours.
pub const AWAY_SUPPLY_MS: u64 = 10_000;
/// A machine that is without us and without work may end so much later than it should: it has to miss us first, and its provider to stop it ...
pub const ALONE_LATE_MS: u64 = 2 * 60_000;
/// ... and so much later still, where its agent had not come yet: it had to boot, and to fetch that.
pub const BOOT_LATE_MS: u64 = 30 * 60_000;
/// Where machines' times are ahead of the clock of a start by more than this ...
pub const AHEAD_MIN_MS: u64 = 60_000;
/// ... they are wrong, and not the clock, when that has gone on for so long and was not set ahead: it may be behind until the network's time has come.
pub const CLOCK_SET_MS: u64 = 10 * 60_000;
/// A clock that goes ahead of the monotonic one by so much was set.
pub const STEP_MIN_MS: u64 = 1_000;
/// Rounds in which a booting machine must be of no use before it is given up.
pub const SURPLUS_ROUNDS: u32 = 5;
/// Machines' numbers of a new ledger begin behind one of so many multiples ...
pub const NUMBERS_BEGIN_MAX: u64 = 1_000;
/// ... of this: what a ledger that was lost has launched bears others.
pub const NUMBERS_STEP: u64 = 10_000;
/// No price and no cap is larger, in millionths: what is too large to be added up is above every cap.
pub const AMOUNT_MAX_MICRO: u64 = 1_000_000_000_000 * 1_000_000;
/// Days before that of the latest charge of which a budget keeps what was charged, one by one: more than a month has.
pub const DAYS_KEPT_MAX: u64 = 70;
/// Owners without a budget of their own of whom is kept what was charged for them; beyond it those go of whom nothing was charged for longest.
pub const OTHERS_MAX: usize = 256;
/// Reasons that are kept of one round.
pub const UNMET_MAX: usize = 64;
