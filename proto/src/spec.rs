//! A job's spec: decoded and checked once, forwarded as the bytes that were received.

use prost::Message;

use crate::error::{Refusal, RefusalKind, Result};
use crate::ids::BlobHash;
use crate::limits::*;
use crate::money::{Money, is_currency};
use crate::pb;
use crate::share::Shape;

/// Features that `must_understand` may name and this version knows.
pub const FEATURES: &[&str] = &["staging.v1", MAX_COST, GPUS, NODES];

/// A site that does not know `max_cost` would run the job at any price.
const MAX_COST: &str = "max-cost.v1";
/// One that does not know these would start it where it can't work.
const GPUS: &str = "gpus.v1";
/// See [`GPUS`].
const NODES: &str = "nodes.v1";

/// What to do when an attempt is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnLost {
    /// Fence it and run elsewhere: at least once.
    #[default]
    Requeue,
    /// Wait for a confirmed stop: at most one start.
    Wait,
}

/// A file known by its content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct File {
    /// In the task's directory.
    pub name: String,
    /// Of its content.
    pub hash: BlobHash,
    /// Bytes.
    pub size: u64,
    /// Gets mode 0755 instead of 0644.
    pub executable: bool,
}

/// What the user asks for, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobSpec {
    /// Label.
    pub name: String,
    /// Program and arguments; `{i}` is the task index.
    pub argv: Vec<String>,
    /// Staged program; without it argv[0] belongs to the site.
    pub executable: Option<File>,
    /// Environment, names unique.
    pub env: Vec<(String, String)>,
    /// Files to have in the task's directory.
    pub inputs: Vec<File>,
    /// Files to bring back; `{i}` is the task index.
    pub outputs: Vec<String>,
    /// What each task needs of a machine.
    pub shape: Shape,
    /// Wall clock of a task, milliseconds; None: not limited.
    pub time_limit_ms: Option<u64>,
    /// What to do when an attempt is lost.
    pub on_lost: OnLost,
    /// Milliseconds.
    pub disconnect_timeout_ms: u64,
    /// Over the whole tree.
    pub attempts_max: u32,
    /// W3C traceparent; empty: none.
    pub trace_parent: String,
    /// Of the array placed or running at a time; None: not limited.
    pub tasks_at_once: Option<u32>,
    /// Of all tasks and attempts together; None: not limited.
    pub max_cost: Option<Money>,
}

/// Features that such a job needs of every site.
fn needed(capped: bool, gpus: u32, nodes: u32) -> impl Iterator<Item = &'static str> {
    [(MAX_COST, capped), (GPUS, gpus > 0), (NODES, nodes > 1)].into_iter().filter_map(|(feature, needed)| needed.then_some(feature))
}

impl JobSpec {
    /// Of a program with arguments, all else by default.
    pub fn new(argv: impl IntoIterator<Item = impl Into<String>>) -> Self {
        JobSpec {
            name: String::new(),
            argv: argv.into_iter().map(Into::into).collect(),
            executable: None,
            env: Vec::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            shape: Shape::default(),
            time_limit_ms: None,
            on_lost: OnLost::Requeue,
            disconnect_timeout_ms: DISCONNECT_TIMEOUT_DEFAULT_MS,
            attempts_max: ATTEMPTS_MAX,
            trace_parent: String::new(),
            tasks_at_once: None,
            max_cost: None,
        }
    }

    /// The bytes that are hashed and forwarded.
    pub fn encode(&self) -> Vec<u8> {
        let file = |f: &File| pb::File { name: f.name.clone(), hash: f.hash.0.to_vec(), size: f.size, executable: f.executable };
        pb::JobSpec {
            name: self.name.clone(),
            argv: self.argv.clone(),
            executable: self.executable.as_ref().map(file),
            env: self.env.iter().map(|(name, value)| pb::EnvVar { name: name.clone(), value: value.clone() }).collect(),
            inputs: self.inputs.iter().map(file).collect(),
            outputs: self.outputs.clone(),
            slots: self.shape.slots,
            memory_bytes: self.shape.memory_bytes,
            time_limit_ms: self.time_limit_ms.unwrap_or(0),
            on_lost: match self.on_lost {
                OnLost::Requeue => pb::OnLost::Requeue.into(),
                OnLost::Wait => pb::OnLost::Wait.into(),
            },
            disconnect_timeout_ms: self.disconnect_timeout_ms,
            attempts_max: self.attempts_max,
            must_understand: needed(self.max_cost.is_some(), self.shape.gpus, self.shape.nodes).map(String::from).collect(),
            trace_parent: self.trace_parent.clone(),
            tasks_at_once: self.tasks_at_once.unwrap_or(0),
            max_cost: self.max_cost.as_ref().map(|m| pb::Money { micro: m.micro, currency: m.currency.clone() }),
            gpus: self.shape.gpus,
            nodes: if self.shape.nodes > 1 { self.shape.nodes } else { 0 },
        }
        .encode_to_vec()
    }

    /// Decode and check. Fields of a later version are ignored here and forwarded in the bytes; features that must be understood and are not known are
    /// refused. Errors: `Invalid` with the field's name, `MustUnderstand`, `OverLimit`.
    pub fn decode(bytes: &[u8]) -> Result<JobSpec> {
        if bytes.len() > SPEC_BYTES_MAX {
            let message = format!("the job's spec has {} bytes, at most {SPEC_BYTES_MAX} are taken", bytes.len());
            return Err(Refusal::new(RefusalKind::OverLimit, message).remedy("stage large values as input files"));
        }
        let spec = pb::JobSpec::decode(bytes).map_err(|e| Refusal::invalid(format!("the job's spec can't be decoded: {e}")))?;
        if let Some(f) = spec.must_understand.iter().find(|f| !FEATURES.contains(&f.as_str())) {
            let message = format!("the job needs the feature {f:?}, which this site does not know");
            return Err(Refusal::new(RefusalKind::MustUnderstand, message).remedy("send it to a site of a later version"));
        }
        // Sites of an older version would take the job, and run it as if these were not there.
        if let Some(f) = needed(spec.max_cost.is_some(), spec.gpus, spec.nodes).find(|f| !spec.must_understand.iter().any(|m| m == f)) {
            return Err(Refusal::invalid(format!("must_understand: {f:?} is not named, and the job needs it")));
        }
        check_name_or_empty("name", &spec.name)?;
        let program = spec.argv.first().map(String::as_str).unwrap_or("");
        check(!program.is_empty(), "argv: empty; name a program")?;
        check(spec.argv.iter().all(|a| !a.contains('\0')), "argv: an argument has a NUL byte")?;
        for (what, n) in [("argv", spec.argv.len()), ("env", spec.env.len()), ("inputs", spec.inputs.len()), ("outputs", spec.outputs.len())] {
            if n > SPEC_ITEMS_MAX {
                return Err(Refusal::new(RefusalKind::OverLimit, format!("{what}: {n} items, at most {SPEC_ITEMS_MAX} are taken")));
            }
        }
        let mut env: Vec<(String, String)> = Vec::with_capacity(spec.env.len());
        for e in spec.env {
            let good = !e.name.is_empty() && !e.name.contains(['=', '\0']) && !e.value.contains('\0');
            check(good, format!("env: {:?} is not a variable's name, or its value has a NUL byte", e.name))?;
            check(!e.name.starts_with("GRID_"), format!("env: {} is ours: names that begin with GRID_ are set for every task", e.name))?;
            check(env.iter().all(|(n, _)| *n != e.name), format!("env: {} is given twice", e.name))?;
            env.push((e.name, e.value));
        }
        let mut names = std::collections::BTreeSet::new();
        let mut file = |what: &str, f: pb::File| -> Result<File> {
            check_file_name(what, &f.name)?;
            check(names.insert(f.name.clone()), format!("{what}: two files are called {:?}", f.name))?;
            check(f.size <= BLOB_BYTES_MAX, format!("{what}: {:?} has {} bytes, at most {BLOB_BYTES_MAX} are staged", f.name, f.size))?;
            let hash = BlobHash::from_slice(&f.hash).ok_or_else(|| Refusal::invalid(format!("{what}: the hash of {:?} is not 32 bytes", f.name)))?;
            Ok(File { name: f.name, hash, size: f.size, executable: f.executable })
        };
        let executable = spec.executable.map(|f| file("executable", f)).transpose()?;
        let inputs = spec.inputs.into_iter().map(|f| file("inputs", f)).collect::<Result<Vec<_>>>()?;
        for o in &spec.outputs {
            check_file_name("outputs", o)?;
        }
        check((1..=SLOTS_PER_TASK_MAX).contains(&spec.slots), format!("slots: {} is not between 1 and {SLOTS_PER_TASK_MAX}", spec.slots))?;
        check(spec.gpus <= GPUS_PER_MACHINE_MAX, format!("gpus: {}, at most {GPUS_PER_MACHINE_MAX} of one machine", spec.gpus))?;
        check(spec.nodes <= NODES_PER_TASK_MAX, format!("nodes: {}, at most {NODES_PER_TASK_MAX} for one task", spec.nodes))?;
        check(spec.memory_bytes <= MEMORY_PER_TASK_BYTES_MAX, format!("memory: {} bytes, at most {MEMORY_PER_TASK_BYTES_MAX}", spec.memory_bytes))?;
        check(spec.time_limit_ms <= TIME_MS_MAX, format!("time: {} ms, at most {TIME_MS_MAX}", spec.time_limit_ms))?;
        check(spec.disconnect_timeout_ms <= TIME_MS_MAX, format!("disconnect_timeout: {} ms, at most {TIME_MS_MAX}", spec.disconnect_timeout_ms))?;
        check(spec.trace_parent.is_empty() || is_traceparent(&spec.trace_parent), "trace_parent: not a W3C traceparent")?;
        let on_lost = match pb::OnLost::try_from(spec.on_lost) {
            Ok(pb::OnLost::Requeue) => OnLost::Requeue,
            Ok(pb::OnLost::Wait) => OnLost::Wait,
            Err(_) => return Err(Refusal::invalid(format!("on_lost: {} is not known here", spec.on_lost))),
        };
        let max_cost = spec.max_cost.map(|m| Money { micro: m.micro, currency: m.currency });
        if let Some(m) = &max_cost {
            check(is_currency(&m.currency), format!("max_cost: {:?} is not a currency, as three capital letters", m.currency))?;
            if m.micro > 0 && spec.time_limit_ms == 0 {
                let message = "max_cost: without a time limit nobody can say what a task costs at most";
                return Err(Refusal::invalid(message).remedy("give each task a time limit (-t), or a cap of 0 for what costs no money"));
            }
        }
        Ok(JobSpec {
            name: spec.name,
            argv: spec.argv,
            executable,
            env,
            inputs,
            outputs: spec.outputs,
            shape: Shape { slots: spec.slots, memory_bytes: spec.memory_bytes, gpus: spec.gpus, nodes: spec.nodes.max(1) },
            time_limit_ms: (spec.time_limit_ms > 0).then_some(spec.time_limit_ms),
            on_lost,
            disconnect_timeout_ms: spec.disconnect_timeout_ms,
            attempts_max: match spec.attempts_max {
                0 => ATTEMPTS_MAX,
                n => n.min(ATTEMPTS_MAX),
            },
            trace_parent: spec.trace_parent,
            tasks_at_once: (spec.tasks_at_once > 0).then_some(spec.tasks_at_once),
            max_cost,
        })
    }

    /// Content that must be here before a task can start.
    pub fn blobs(&self) -> impl Iterator<Item = &File> {
        self.executable.iter().chain(&self.inputs)
    }
}

/// `{i}` in an argument, a value or an output's name becomes the task index.
pub fn substitute(text: &str, task: u32) -> String {
    text.replace("{i}", &task.to_string())
}

/// `00-<trace: 32 hex digits>-<parent: 16>-<flags: 2>`, lower case, neither of the ids 0.
pub fn is_traceparent(text: &str) -> bool {
    let hex = |part: Option<&str>, n: usize| part.is_some_and(|p| p.len() == n && p.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
    let id = |part: Option<&str>, n: usize| hex(part, n) && part.is_some_and(|p| p.bytes().any(|b| b != b'0'));
    let mut parts = text.split('-');
    parts.next() == Some("00") && id(parts.next(), 32) && id(parts.next(), 16) && hex(parts.next(), 2) && parts.next().is_none()
}

/// A spec's bytes but for its trace: what makes it the same job. Bytes that can't be read stay as they are.
pub fn without_trace(bytes: &[u8]) -> Vec<u8> {
    use prost::encoding::{DecodeContext, decode_key, skip_field};
    let (mut rest, mut out) = (bytes, Vec::with_capacity(bytes.len()));
    while !rest.is_empty() {
        let before = rest;
        let Ok((tag, wire)) = decode_key(&mut rest) else { return bytes.to_vec() };
        if skip_field(wire, tag, &mut rest, DecodeContext::default()).is_err() {
            return bytes.to_vec();
        }
        if tag != TRACE_PARENT_TAG {
            out.extend_from_slice(&before[..before.len() - rest.len()]);
        }
    }
    out
}

/// Of the field in `spec.proto`.
const TRACE_PARENT_TAG: u32 = 14;

fn check(good: bool, message: impl Into<String>) -> Result<()> {
    if good { Ok(()) } else { Err(Refusal::invalid(message)) }
}

fn check_name_or_empty(what: &str, name: &str) -> Result<()> {
    check(name.len() <= NAME_BYTES_MAX, format!("{what}: longer than {NAME_BYTES_MAX} bytes"))?;
    check(!name.chars().any(char::is_control), format!("{what}: {name:?} has a control character"))
}

/// A file's name in the task's directory, and nowhere else.
pub fn check_file_name(what: &str, name: &str) -> Result<()> {
    check_name_or_empty(what, name)?;
    let inside = !name.is_empty() && name != "." && name != ".." && !name.contains('/');
    check(inside, format!("{what}: {name:?} is not a plain file name (no '/', not '.' or '..')"))?;
    check(!matches!(name, "stdout" | "stderr"), format!("{what}: {name:?} is ours: every task has its stdout and stderr anyway"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn comes_back_as_it_was() {
        let mut spec = JobSpec::new(["./render", "--tile", "{i}"]);
        spec.executable = Some(File { name: "render".into(), hash: BlobHash::of(b"x"), size: 1, executable: true });
        spec.env = vec![("A".into(), "b".into())];
        spec.outputs = vec!["tile-{i}.png".into()];
        spec.on_lost = OnLost::Wait;
        spec.time_limit_ms = Some(5);
        spec.tasks_at_once = Some(8);
        assert_eq!(Ok(spec.clone()), JobSpec::decode(&spec.encode()));
        spec.max_cost = Some(Money { micro: 1, currency: "USD".into() });
        spec.shape = Shape { gpus: 2, nodes: 3, ..Shape::new(4, 5) };
        assert_eq!(Ok(spec.clone()), JobSpec::decode(&spec.encode()));
    }

    #[test]
    fn a_trace_is_checked_and_makes_no_other_job() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(is_traceparent(good));
        for bad in
            ["", "00", &good[1..], &good.to_uppercase(), &good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)), &format!("{good}-x")]
        {
            assert!(!is_traceparent(bad), "{bad}");
        }
        let mut spec = JobSpec::new(["true"]);
        (spec.name, spec.tasks_at_once) = ("n".into(), Some(3));
        let plain = spec.encode();
        spec.trace_parent = good.into();
        assert_ne!(plain, spec.encode());
        assert_eq!(plain, without_trace(&spec.encode()));
        assert_eq!(vec![0xff; 5], without_trace(&[0xff; 5]));
        spec.name = "m".into();
        assert_ne!(plain, without_trace(&spec.encode()));
    }

    #[test]
    fn bad_specs_name_their_field() {
        let base = || pb::JobSpec { argv: vec!["true".into()], slots: 1, ..Default::default() };
        let cap = |currency: &str| pb::Money { micro: 1, currency: currency.into() };
        let capped = |currency: &str| pb::JobSpec { max_cost: Some(cap(currency)), must_understand: vec![MAX_COST.into()], ..base() };
        let cases: Vec<(&str, pb::JobSpec)> = vec![
            ("argv", pb::JobSpec { argv: vec![], ..base() }),
            ("argv", pb::JobSpec { argv: vec!["a\0b".into()], ..base() }),
            ("slots", pb::JobSpec { slots: 0, ..base() }),
            ("memory", pb::JobSpec { memory_bytes: u64::MAX, ..base() }),
            ("time", pb::JobSpec { time_limit_ms: u64::MAX, ..base() }),
            ("on_lost", pb::JobSpec { on_lost: 9, ..base() }),
            ("outputs", pb::JobSpec { outputs: vec!["../x".into()], ..base() }),
            ("inputs", pb::JobSpec { inputs: vec![pb::File { name: "a".into(), hash: vec![1], size: 1, executable: false }], ..base() }),
            ("env", pb::JobSpec { env: vec![pb::EnvVar { name: "GRID_TASK_ID".into(), value: String::new() }], ..base() }),
            ("name", pb::JobSpec { name: "a\nb".into(), ..base() }),
            ("max_cost: \"usd\"", pb::JobSpec { time_limit_ms: 1, ..capped("usd") }),
            ("max_cost: without", capped("USD")),
            ("must_understand", pb::JobSpec { time_limit_ms: 1, must_understand: vec![], ..capped("USD") }),
            ("must_understand", pb::JobSpec { gpus: 1, ..base() }),
            ("must_understand", pb::JobSpec { nodes: 2, must_understand: vec![GPUS.into()], ..base() }),
            ("gpus", pb::JobSpec { gpus: u32::MAX, must_understand: vec![GPUS.into()], ..base() }),
            ("nodes", pb::JobSpec { nodes: u32::MAX, must_understand: vec![NODES.into()], ..base() }),
            ("trace_parent", pb::JobSpec { trace_parent: "00-0-0-00".into(), ..base() }),
        ];
        for (field, spec) in cases {
            let refused = JobSpec::decode(&spec.encode_to_vec()).expect_err(field);
            assert!(refused.kind == RefusalKind::Invalid && refused.message.starts_with(field), "{field}: {refused}");
        }
        let refused = JobSpec::decode(&pb::JobSpec { must_understand: vec!["teleport".into()], ..base() }.encode_to_vec()).expect_err("must");
        assert_eq!(RefusalKind::MustUnderstand, refused.kind);
        assert_eq!(RefusalKind::OverLimit, JobSpec::decode(&vec![0; SPEC_BYTES_MAX + 1]).expect_err("large").kind);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_taken(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = JobSpec::decode(&bytes);
        }
    }
}
