//! From messages to words: for people here and in `table` and `tree`, for scripts in `objects`.

pub mod objects;
pub mod table;
pub mod tree;

use intergrid_proto::link::Kind;
use intergrid_proto::pb;
use intergrid_proto::phase::{Exit, Phase};

/// `12s`, `3m05s`, `2h10m`, `4d02h`, `350ms`.
pub fn duration(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0 => format!("{ms}ms"),
        1..10 if ms % 1_000 >= 100 => format!("{s}.{}s", ms % 1_000 / 100),
        1..60 => format!("{s}s"),
        60..3_600 => format!("{}m{:02}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h{:02}m", s / 3_600, s % 3_600 / 60),
        _ => format!("{}d{:02}h", s / 86_400, s % 86_400 / 3_600),
    }
}

/// `640B`, `1.5G`, `12M`: binary, as memory is counted.
pub fn bytes(n: u64) -> String {
    let units = [("P", 50), ("T", 40), ("G", 30), ("M", 20), ("K", 10)];
    let Some((unit, shift)) = units.into_iter().find(|(_, shift)| n >> shift > 0) else { return format!("{n}B") };
    let tenths = (u128::from(n) * 10) >> shift;
    match tenths < 100 && !tenths.is_multiple_of(10) {
        true => format!("{}.{}{unit}", tenths / 10, tenths % 10),
        false => format!("{}{unit}", tenths / 10),
    }
}

/// `1 task`, `64 tasks`.
pub fn count(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// A command as it can be given to a shell again: words that it would change are quoted. It leaves `{i}` alone.
pub fn command(argv: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    let word = |w: &String| match w.is_empty() || !w.replace("{i}", "").chars().all(plain) {
        true => format!("'{}'", w.replace('\'', r"'\''")),
        false => w.clone(),
    };
    argv.iter().map(word).collect::<Vec<_>>().join(" ")
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A phase's name; one of a later version shows as its number.
pub fn phase(n: i32) -> String {
    Phase::from_number(n).map_or_else(|| format!("phase-{n}"), |p| p.name().to_owned())
}

/// A kind's name.
pub fn kind(n: i32) -> &'static str {
    match pb::Kind::try_from(n) {
        Ok(pb::Kind::Broker) => Kind::Broker.name(),
        Ok(pb::Kind::Gateway) => Kind::Gateway.name(),
        Ok(pb::Kind::Agent) => Kind::Agent.name(),
        Ok(pb::Kind::Unspecified) | Err(_) => "site",
    }
}

/// A wish's name.
pub fn want(n: i32) -> &'static str {
    match pb::WantValue::try_from(n) {
        Ok(pb::WantValue::WantHold) => "hold",
        Ok(pb::WantValue::WantReturn) => "return",
        Ok(pb::WantValue::WantCancel) => "cancel",
        Ok(pb::WantValue::WantRun) | Err(_) => "run",
    }
}

/// Tasks as people write them; what can't be read is empty.
pub fn tasks(t: Option<&pb::Tasks>) -> intergrid_proto::TaskSet {
    t.and_then(|t| intergrid_proto::TaskSet::from_runs(&t.runs)).unwrap_or_default()
}

/// Each exit once, `exit 0, signal 9`.
pub fn exits(numbers: &[u32]) -> String {
    let mut seen: Vec<u32> = numbers.to_vec();
    seen.sort_unstable();
    seen.dedup();
    seen.into_iter().map(|n| Exit::from_number(n).to_string()).collect::<Vec<_>>().join(", ")
}

/// `exit-code: exit 3 [campus]; look into its log`, without what it rests on.
pub fn reason(r: &pb::Reason) -> String {
    let word = intergrid_proto::ReasonKind::from_number(r.kind).word();
    let mut text = word.to_owned();
    for (before, part) in [(": ", &r.text), (" [", &r.site_name), ("; ", &r.remedy)] {
        if !part.is_empty() {
            text.push_str(before);
            text.push_str(part);
            text.push_str(if before == " [" { "]" } else { "" });
        }
    }
    text
}

/// The same but for the time that it holds.
pub fn same_reason(a: &pb::Reason, b: &pb::Reason) -> bool {
    let words = |r: &pb::Reason| (r.kind, r.text.clone(), r.remedy.clone(), r.site_name.clone());
    words(a) == words(b) && a.because.len() == b.because.len() && a.because.iter().zip(&b.because).all(|(a, b)| same_reason(a, b))
}

/// Tasks of a job in this phase.
pub fn in_phase(view: &pb::JobView, phase: Phase) -> u64 {
    view.counts.iter().filter(|c| c.phase == phase as i32).map(|c| c.tasks).sum()
}

/// `10`; `6 of 10` where these alone have come to the site that is asked: the others of the job are elsewhere.
pub fn size(view: &pb::JobView) -> String {
    match view.counts.iter().map(|c| c.tasks).sum::<u64>() {
        here if here == u64::from(view.tasks) => here.to_string(),
        here => format!("{here} of {}", view.tasks),
    }
}

/// Tasks of a job that will never change again.
pub fn ended(view: &pb::JobView) -> u64 {
    [Phase::Done, Phase::Failed, Phase::Cancelled].into_iter().map(|p| in_phase(view, p)).sum()
}

/// `running 6, queued 58`: the furthest first.
pub fn phases(counts: &[pb::PhaseCount]) -> String {
    let mut sums = std::collections::BTreeMap::<i32, u64>::new();
    counts.iter().filter(|c| c.tasks > 0).for_each(|c| *sums.entry(c.phase).or_default() += c.tasks);
    sums.into_iter().rev().map(|(p, n)| format!("{} {n}", phase(p))).collect::<Vec<_>>().join(", ")
}

/// The phase that tells most of a job: a failure before anything else, then whatever goes on, then the end.
pub fn telling_phase(view: &pb::JobView) -> Phase {
    use Phase::*;
    let order = [Failed, Running, StagingOut, StagingIn, Suspended, Placed, Held, Queued, Cancelled, Done];
    order.into_iter().find(|p| in_phase(view, *p) > 0).unwrap_or(Queued)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes() {
        for (ms, want) in [
            (0, "0ms"),
            (350, "350ms"),
            (1_200, "1.2s"),
            (3_040, "3s"),
            (12_000, "12s"),
            (185_000, "3m05s"),
            (7_800_000, "2h10m"),
            (360_000_000, "4d04h"),
        ] {
            assert_eq!(want, duration(ms));
        }
        for (n, want) in [(0, "0B"), (640, "640B"), (1 << 10, "1K"), (1_610_612_736, "1.5G"), (12 << 20, "12M"), (u64::MAX, "16383P")] {
            assert_eq!(want, bytes(n));
        }
    }

    #[test]
    fn a_command_is_quoted_as_for_a_shell() {
        let shown = |argv: &[&str]| command(&argv.iter().map(|w| w.to_string()).collect::<Vec<_>>());
        assert_eq!("sh -c 'exit {i}'", shown(&["sh", "-c", "exit {i}"]));
        assert_eq!(
            "./render --tile=t-{i} --at=1,2 '{1,2}' '' 'it'\\''s' '$HOME' '*'",
            shown(&["./render", "--tile=t-{i}", "--at=1,2", "{1,2}", "", "it's", "$HOME", "*"])
        );
    }

    #[test]
    fn phases_are_summed_and_the_telling_one_is_found() {
        let count = |phase: Phase, tasks| pb::PhaseCount { phase: phase as i32, tasks, reason: None };
        let view = pb::JobView { counts: vec![count(Phase::Queued, 50), count(Phase::Running, 6), count(Phase::Queued, 8)], ..Default::default() };
        assert_eq!("running 6, queued 58", phases(&view.counts));
        assert_eq!((Phase::Running, 0), (telling_phase(&view), ended(&view)));
        let view = pb::JobView { counts: vec![count(Phase::Done, 63), count(Phase::Failed, 1)], ..Default::default() };
        assert_eq!((Phase::Failed, 64), (telling_phase(&view), ended(&view)));
    }

    #[test]
    fn reasons_say_what_where_and_remedy() {
        let r = pb::Reason { kind: 3, text: "needs 8 slots".into(), remedy: "ask for 4".into(), site_name: "campus".into(), ..Default::default() };
        assert_eq!("no-fit: needs 8 slots [campus]; ask for 4", reason(&r));
        assert_eq!("all-busy", reason(&pb::Reason { kind: 4, ..Default::default() }));
        assert_eq!("exit 0, signal 9", exits(&[265, 0, 0]));
    }
}
