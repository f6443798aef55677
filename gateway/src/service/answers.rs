//! What children answer of themselves, before it is passed on: each under the name by which it is known here, in words that a terminal can show, no deeper
//! than a tree can be, and together no larger than a message may be. What is right in it, it does not know.

use intergrid_proto::limits::{HOPS_MAX, MESSAGE_BYTES_MAX, REASON_TEXT_BYTES_MAX};
use intergrid_proto::{Reason, pb};
use prost::Message;

/// Answers of all children together; the rest of a message is our own.
const ANSWERS_BYTES_MAX: usize = MESSAGE_BYTES_MAX / 2;
/// Levels below a child.
const LEVELS_MAX: u32 = HOPS_MAX + 2;

/// In words that a terminal can show, and not too many.
fn words(text: &mut String) {
    if text.len() > REASON_TEXT_BYTES_MAX || text.chars().any(char::is_control) {
        let mut left = REASON_TEXT_BYTES_MAX;
        let fits = |c: &char| {
            left = left.saturating_sub(c.len_utf8());
            left > 0
        };
        *text = text.chars().map(|c| if c.is_control() { '?' } else { c }).take_while(fits).collect();
    }
}

fn reason(r: &mut pb::Reason) {
    *r = Reason::from(std::mem::take(r)).into();
}

fn host(h: &mut pb::Host, levels: u32) {
    [&mut h.version, &mut h.unreachable, &mut h.backend, &mut h.endpoint].into_iter().for_each(words);
    h.site.iter_mut().for_each(|s| words(&mut s.name));
    words(&mut h.currency);
    h.machines.iter_mut().for_each(|m| [&mut m.name, &mut m.id, &mut m.r#type, &mut m.zone, &mut m.state, &mut m.owner].into_iter().for_each(words));
    h.machines.iter_mut().filter_map(|m| m.need.as_mut()).for_each(|n| words(&mut n.principal));
    h.spending.iter_mut().for_each(|s| [&mut s.name, &mut s.above].into_iter().for_each(words));
    h.draining.iter_mut().for_each(reason);
    for s in &mut h.shares {
        let why = [&mut s.draining_reason, &mut s.not_rented, &mut s.bound];
        [&mut s.key, &mut s.origin_name, &mut s.architecture, &mut s.currency].into_iter().chain(why).for_each(words);
    }
    match levels {
        0 => h.below.clear(),
        n => h.below.iter_mut().for_each(|b| host(b, n - 1)),
    }
}

fn explanation(e: &mut pb::Explanation, levels: u32) {
    words(&mut e.unreachable);
    words(&mut e.job);
    e.site.iter_mut().for_each(|s| words(&mut s.name));
    e.reasons.iter_mut().for_each(reason);
    e.counts.iter_mut().flat_map(|c| &mut c.reason).for_each(reason);
    match levels {
        0 => e.below.clear(),
        n => e.below.iter_mut().for_each(|b| explanation(b, n - 1)),
    }
}

/// A child's answer, under the name by which it is known here.
pub(super) fn of_host(mut h: pb::Host, site: Option<pb::Hop>) -> pb::Host {
    host(&mut h, LEVELS_MAX);
    pb::Host { site, ..h }
}

/// As [`of_host`].
pub(super) fn of_explanation(mut e: pb::Explanation, site: pb::Hop) -> pb::Explanation {
    explanation(&mut e, LEVELS_MAX);
    pb::Explanation { site: Some(site), ..e }
}

/// The largest ones go, until the rest can be sent.
fn fit<T: Message>(answers: &mut [T], instead: impl Fn(&T, String) -> T) {
    let mut sizes: Vec<usize> = answers.iter().map(T::encoded_len).collect();
    while sizes.iter().sum::<usize>() > ANSWERS_BYTES_MAX
        && let Some((k, size)) = sizes.iter().copied().enumerate().max_by_key(|(_, size)| *size)
    {
        answers[k] = instead(&answers[k], format!("its answer has {size} bytes, too many to be passed on"));
        sizes[k] = 0;
    }
}

/// See [`fit`].
pub(super) fn fit_hosts(below: &mut [pb::Host]) {
    fit(below, |h, unreachable| pb::Host { site: h.site.clone(), unreachable, ..Default::default() });
}

/// See [`fit`].
pub(super) fn fit_explanations(below: &mut [pb::Explanation]) {
    fit(below, |e, unreachable| pb::Explanation { site: e.site.clone(), unreachable, ..Default::default() });
}
