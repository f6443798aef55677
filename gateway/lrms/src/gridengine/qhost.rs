//! What qhost and qconf print of machines and queues, read. Pure; any text is taken, and what does not parse is an error, never a guess.

use std::collections::BTreeMap;

use super::access::{self, Access};
use super::xml::{self, Event, attribute};
use crate::lrms::Queue;
use crate::records::bytes;

/// What a cluster queue is configured to be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Configured {
    /// The longest that a task may run.
    pub time_max_ms: Option<u64>,
    /// Its parallel environments.
    pub environments: Vec<String>,
    /// What ends a task in it.
    pub ends: Ends,
    /// The longest of all machines from the word that a task is to end, to its kill (`notify`); u64::MAX: for ever. None: not said.
    pub notify_ms: Option<u64>,
    /// Who may use it.
    pub access: Access,
}

/// Limits of a queue at which a task is killed; None: there is none. Machines may have their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ends {
    /// The least of all machines, milliseconds: `h_rt`, `s_rt`.
    pub time_ms: Option<u64>,
    /// The least of all machines, milliseconds for each slot: `h_cpu`, `s_cpu`.
    pub cpu_ms: Option<u64>,
    /// Bytes for each slot, which no machine lets a task go beyond: `h_vmem`, `s_vmem`.
    pub memory_bytes: Option<u64>,
}

/// One queue on one machine.
struct Instance<'a> {
    queue: &'a str,
    used: u64,
    reserved: u64,
    slots: u64,
    states: &'a str,
    /// Letters of its types; None: not said.
    types: Option<&'a str>,
    /// Of the slots that the machine has for all its queues together (`complex_values slots=N`), those that nobody occupies.
    left: u64,
}

impl<'a> Instance<'a> {
    fn new(queue: &'a str) -> Self {
        Instance { queue, used: 0, reserved: 0, slots: 0, states: "", types: None, left: u64::MAX }
    }
}

/// Where they are said.
const TYPES: &str = "qtype_string";
/// Of a queue, or a part of one, whose `qtype` is without BATCH: no task of ours with one slot starts there.
const NO_BATCH: &str = "it takes no batch jobs (qtype)";

/// `qhost -q -xml`, joined with what is configured. `environment` is the one for tasks with several slots; without it a task can have one. `gpus`: of each
/// machine.
pub fn queues(
    text: &str,
    waiting: &BTreeMap<String, u64>,
    configured: &BTreeMap<String, Configured>,
    environment: Option<&str>,
    gpus: &BTreeMap<String, u32>,
) -> Result<Vec<Queue>, String> {
    let events = xml::events(text).map_err(|e| format!("qhost: {e}"))?;
    let mut queues: BTreeMap<String, Queue> = BTreeMap::new();
    let mut closed: BTreeMap<String, String> = BTreeMap::new();
    let (mut machine, mut architecture, mut memory, mut name) = ("", "", 0, "");
    let (mut left, mut is_counted): (Option<u64>, bool) = (None, false);
    let mut instance: Option<Instance> = None;
    let mut here: Vec<Instance> = Vec::new();
    for event in &events {
        match event {
            Event::Open("host", attributes) => {
                (machine, architecture, memory, left) = (attribute(attributes, "name").unwrap_or_default(), "", 0, None);
            }
            Event::Open("queue", attributes) => {
                instance = Some(Instance::new(attribute(attributes, "name").unwrap_or_default()));
            }
            Event::Open(_, attributes) => {
                name = attribute(attributes, "name").unwrap_or_default();
                // `hc`, `gc`: of what the machine, or the cell, has so many.
                is_counted = attribute(attributes, "dominance").is_some_and(|d| d.ends_with('c'));
                if let Some(i) = instance.as_mut().filter(|_| name == TYPES) {
                    i.types = Some("");
                }
            }
            Event::Close("queue") => here.extend(instance.take().filter(|i| !i.queue.is_empty())),
            Event::Close("host") => {
                let used = here.iter().map(|i| i.used).fold(0, u64::saturating_add);
                for mut i in here.drain(..) {
                    if let Some(left) = left {
                        (i.slots, i.left) = (i.slots.min(left.saturating_add(used)), left);
                    }
                    let queue = queues.entry(i.queue.to_string()).or_insert_with(|| Queue { name: i.queue.to_string(), ..Queue::default() });
                    let is_batch = i.types.is_none_or(|letters| letters.contains('B'));
                    if is_batch {
                        add(queue, &i, architecture, memory, gpus.get(machine).copied().unwrap_or(0));
                    }
                    if let Some(why) = if is_batch { out_of_order(i.states) } else { Some(NO_BATCH.to_string()) } {
                        closed.insert(i.queue.to_string(), why);
                    }
                    if i.states.contains('u') {
                        queue.unheard.push(machine.to_string());
                    }
                }
            }
            Event::Close(_) => name = "",
            Event::Text(text) => match (name, &mut instance) {
                ("arch_string", None) => architecture = text,
                ("mem_total", None) => memory = bytes(text).unwrap_or(0),
                ("slots", None) if is_counted => left = text.trim().parse::<f64>().ok().filter(|n| (0.0..1e9).contains(n)).map(|n| n as u64),
                ("state_string", Some(i)) => i.states = text,
                (TYPES, Some(i)) => i.types = Some(&**text),
                ("slots" | "slots_used" | "slots_resv", Some(i)) => {
                    let number = text.trim().parse().map_err(|_| format!("qhost: {name} of {:?} is no number", i.queue))?;
                    *match name {
                        "slots" => &mut i.slots,
                        "slots_used" => &mut i.used,
                        _ => &mut i.reserved,
                    } = number;
                }
                _ => {}
            },
        }
    }
    for queue in queues.values_mut() {
        let conf = configured.get(&queue.name);
        queue.time_max_ms = conf.and_then(|c| c.time_max_ms);
        queue.kill_wait_ms = conf.and_then(|c| c.notify_ms);
        queue.waiting = waiting.get(&queue.name).copied().unwrap_or(0).saturating_add(waiting.get("").copied().unwrap_or(0));
        let several = environment.is_some_and(|e| conf.is_none_or(|c| c.environments.iter().any(|there| there == e)));
        if !several {
            queue.machine_slots = queue.machine_slots.min(1);
            queue.largest_free = queue.largest_free.min(1);
        }
        if queue.machines == 0 {
            queue.closed = closed.remove(&queue.name);
        }
    }
    Ok(queues.into_values().collect())
}

fn add(queue: &mut Queue, i: &Instance, architecture: &str, memory: u64, gpus: u32) {
    let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    queue.machine_slots = queue.machine_slots.max(narrow(i.slots));
    queue.slots_all = queue.slots_all.saturating_add(i.slots);
    queue.machine_memory_bytes = queue.machine_memory_bytes.max(memory);
    queue.machine_gpus = queue.machine_gpus.max(gpus);
    if queue.architecture.is_empty() {
        queue.architecture = machine(architecture).to_string();
    }
    if out_of_order(i.states).is_some() {
        return;
    }
    let free = i.slots.saturating_sub(i.used).saturating_sub(i.reserved).min(i.left);
    queue.machines = queue.machines.saturating_add(1);
    queue.slots_total = queue.slots_total.saturating_add(i.slots);
    queue.slots_free = queue.slots_free.saturating_add(free);
    queue.gpus_total = queue.gpus_total.saturating_add(gpus.into());
    queue.largest_free = queue.largest_free.max(narrow(free));
}

/// Why a queue takes nothing on a machine, by the letters of its state there.
fn out_of_order(states: &str) -> Option<String> {
    let word = |c| match c {
        'd' => Some("disabled"),
        'D' => Some("disabled by its calendar"),
        'E' => Some("in error"),
        'u' => Some("its machine is not heard of"),
        'c' => Some("its configuration is ambiguous"),
        'o' => Some("orphaned"),
        's' | 'S' | 'C' => Some("suspended"),
        'a' | 'A' => Some("its machine is overloaded"),
        _ => None,
    };
    let words: Vec<&str> = states.chars().filter_map(word).collect();
    (!words.is_empty()).then(|| words.join(", "))
}

/// As `uname -m` says it.
fn machine(architecture: &str) -> &'static str {
    match architecture.rsplit('-').next() {
        Some("amd64" | "x64") => "x86_64",
        Some("arm64" | "aarch64") => "aarch64",
        _ => "",
    }
}

/// `qconf -sq`: a name and a value a line, long ones folded with a backslash.
pub fn configured(text: &str) -> BTreeMap<String, Configured> {
    let text = text.replace("\\\n", " ");
    let (mut queues, mut name) = (BTreeMap::new(), String::new());
    for line in text.lines() {
        let (key, value) = line.split_once(char::is_whitespace).map_or((line, ""), |(key, value)| (key, value.trim()));
        if key == "qname" {
            name = value.to_string();
            queues.insert(name.clone(), Configured::default());
        }
        let Some(queue) = queues.get_mut(&name) else { continue };
        match key {
            "h_rt" | "s_rt" => {
                // What machines have of their own, comes after the first.
                let time = value.split(',').next().and_then(time_ms);
                queue.time_max_ms = queue.time_max_ms.into_iter().chain(time).min();
                queue.ends.time_ms = queue.ends.time_ms.into_iter().chain(each_of(value).filter_map(time_ms)).min();
            }
            "h_cpu" | "s_cpu" => queue.ends.cpu_ms = queue.ends.cpu_ms.into_iter().chain(each_of(value).filter_map(time_ms)).min(),
            "h_vmem" | "s_vmem" => {
                let most = each_of(value).map(bytes).collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max());
                queue.ends.memory_bytes = queue.ends.memory_bytes.into_iter().chain(most).min();
            }
            "notify" => {
                let time = |text: &str| if text.eq_ignore_ascii_case("INFINITY") { Some(u64::MAX) } else { any_time_ms(text) };
                queue.notify_ms = each_of(value).filter_map(time).max();
            }
            "user_lists" => queue.access.only = access::names(value),
            "xuser_lists" => queue.access.never = access::names(value),
            "pe_list" => queue.environments = value.split([' ', ',', '[', ']', '=']).filter(|e| !e.is_empty()).map(String::from).collect(),
            _ => {}
        }
    }
    queues
}

/// The value of all machines, then those of some: `60,[m1=90],[@big=INFINITY]`.
fn each_of(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(|one| one.trim().trim_matches(['[', ']'])).map(|one| one.rsplit_once('=').map_or(one, |(_, value)| value).trim())
}

/// `00:10:00`, or seconds; None: not limited.
pub(super) fn time_ms(text: &str) -> Option<u64> {
    any_time_ms(text).filter(|ms| *ms > 0)
}

/// The same, where 0 is a time.
fn any_time_ms(text: &str) -> Option<u64> {
    let mut seconds = 0u64;
    for part in text.trim().split(':') {
        seconds = seconds.checked_mul(60)?.checked_add(if part.is_empty() { 0 } else { part.parse().ok()? })?;
    }
    seconds.checked_mul(1_000)
}

/// One value of `qconf -sconf`, `-ssconf` or `-sp`.
pub fn setting<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.split_once(char::is_whitespace).filter(|(key, _)| *key == name).map(|(_, value)| value.trim()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Of Son of Grid Engine 8.1.9.
    const RECORDED: &str = include_str!("recorded/qhost.xml");
    const QUEUES: &str = include_str!("recorded/queues.txt");
    const CONF: &str = include_str!("recorded/conf.txt");

    /// Of machines without GPUs.
    fn queues(text: &str, waiting: &BTreeMap<String, u64>, conf: &BTreeMap<String, Configured>, pe: Option<&str>) -> Result<Vec<Queue>, String> {
        super::queues(text, waiting, conf, pe, &BTreeMap::new())
    }

    #[test]
    fn recorded_queues_are_read() {
        let waiting = BTreeMap::from([("batch".to_string(), 5), (String::new(), 2)]);
        let read = queues(RECORDED, &waiting, &configured(QUEUES), Some("smp")).unwrap();
        assert_eq!(vec!["batch", "short"], read.iter().map(|q| q.name.as_str()).collect::<Vec<_>>());
        let [batch, short] = &read[..] else { panic!("{read:?}") };
        assert_eq!((8, 1, 8, 7, "x86_64", None), {
            (batch.slots_total, batch.machines, batch.machine_slots, batch.waiting, batch.architecture.as_str(), batch.time_max_ms)
        });
        assert_eq!([Some(2_000), Some(2_000)], [batch.kill_wait_ms, short.kill_wait_ms]);
        assert!(batch.machine_memory_bytes > 20 << 30 && batch.slots_free < 8 && batch.closed.is_none(), "{batch:?}");
        assert_eq!((0, 0, 4, Some(600_000)), (short.slots_total, short.machines, short.machine_slots, short.time_max_ms));
        assert_eq!(Some("disabled"), short.closed.as_deref());
        let lost = RECORDED.replace("state_string'>d<", "state_string'>au<");
        let read_lost = queues(&lost, &waiting, &configured(QUEUES), None).unwrap();
        assert_eq!((0, vec!["localhost".to_string()]), (read_lost[0].unheard.len(), read_lost[1].unheard.clone()));
        // Where no batch job starts, there is nothing for us, and nothing that may come back.
        for types in ["IP", "N", ""] {
            let text = RECORDED.replacen(">BIP<", &format!(">{types}<"), 1);
            let read = queues(&text, &waiting, &configured(QUEUES), Some("smp")).unwrap();
            let [batch, short] = &read[..] else { panic!("{read:?}") };
            assert_eq!((0, 0, 0, Some(NO_BATCH)), (batch.machine_slots, batch.slots_all, batch.slots_free, batch.closed.as_deref()), "{types}");
            assert_eq!((4, Some("disabled")), (short.machine_slots, short.closed.as_deref()));
        }
        // Of four slots for both queues together three are taken, two of them in this one.
        let taken = RECORDED.replacen("'slots_used'>8<", "'slots_used'>2<", 1);
        let read = |dominance: &str| {
            let left = format!("<resourcevalue name='slots' dominance='{dominance}'>1.000000</resourcevalue>\n <queue name='batch'>");
            let read = queues(&taken.replacen("<queue name='batch'>", &left, 1), &waiting, &configured(QUEUES), Some("smp")).unwrap();
            (read[0].slots_total, read[0].machine_slots, read[0].slots_free, read[0].largest_free)
        };
        assert_eq!([(4, 4, 1, 1), (4, 4, 1, 1), (8, 8, 6, 6)], [read("hc"), read("gc"), read("hl")]);
        // Its GPUs are there for each queue that is open on it.
        let gpus = BTreeMap::from([("localhost".to_string(), 2), ("other".to_string(), 8)]);
        let read_gpus = super::queues(RECORDED, &waiting, &configured(QUEUES), None, &gpus).unwrap();
        assert_eq!(vec![(2, 2), (2, 0)], read_gpus.iter().map(|q| (q.machine_gpus, q.gpus_total)).collect::<Vec<_>>());
        // Without an environment for them, no task has several slots.
        for environment in [None, Some("mpi")] {
            let read = queues(RECORDED, &waiting, &configured(QUEUES), environment).unwrap();
            assert!(read.iter().all(|q| q.machine_slots == 1 && q.largest_free <= 1), "{environment:?}");
        }
        assert!(queues(&RECORDED[..RECORDED.len() / 2], &waiting, &BTreeMap::new(), None).is_err());
    }

    #[test]
    fn settings_are_read() {
        assert_eq!((Some("75000"), Some("2000"), None), (setting(CONF, "max_aj_tasks"), setting(CONF, "max_aj_instances"), setting(CONF, "none")));
        assert_eq!((Some(600_000), Some(90_000), None, None), (time_ms("0:10:0"), time_ms("90"), time_ms("INFINITY"), time_ms("0")));
        assert_eq!((Some(47 << 29), Some(5), None), (bytes("23.5G"), bytes("5"), bytes("-")));
        assert_eq!((Some(8_000_000_000), None), (bytes("8g"), bytes("INFINITY")));
        let folded = configured("qname x\npe_list mpi \\\n   smp,[@big=wide]\nh_rt 60,[a=90]\ns_rt 50\n");
        assert_eq!(Some(50_000), folded["x"].time_max_ms);
        assert_eq!(Ends { time_ms: Some(600_000), ..Ends::default() }, configured(QUEUES)["short"].ends);
        let ends = |lines: &str| configured(&format!("qname x\n{lines}"))["x"].ends;
        let own = ends("h_rt 600,[m1=90]\ns_rt INFINITY\nh_cpu 0:1:0\nh_vmem 2G,[m1=4G]\ns_vmem 8g\n");
        assert_eq!(Ends { time_ms: Some(90_000), cpu_ms: Some(60_000), memory_bytes: Some(4 << 30) }, own);
        assert_eq!(None, ends("h_vmem 2G,[m1=INFINITY]\ns_vmem INFINITY\n").memory_bytes, "some machine has no limit");
        let notify = |value: &str| configured(&format!("qname x\nnotify {value}\n"))["x"].notify_ms;
        assert_eq!([Some(60_000), Some(0), Some(300_000)], ["00:01:00", "00:00:00", "00:01:00,[m1=00:05:00],[m2=2]"].map(notify));
        assert_eq!([Some(u64::MAX), None], ["60,[m1=INFINITY]", "x"].map(notify));
        assert!(["mpi", "smp", "wide"].iter().all(|e| folded["x"].environments.iter().any(|there| there == e)));
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "(?s).{0,100}", more in "[0-9A-Za-z:., \n]{0,60}") {
            for text in [&text, &more] {
                let _ = (queues(text, &BTreeMap::new(), &BTreeMap::new(), None), configured(text), time_ms(text), bytes(text), setting(text, "a"));
                let _ = configured(&format!("qname a\nh_rt {text}\npe_list {more}\n"));
                let slots = "<queuevalue name='slots'>";
                let row = format!("<q><host name='a'><queue name='b'>{slots}{more}</queuevalue></queue></host></q>");
                let _ = queues(&row, &BTreeMap::new(), &BTreeMap::new(), None);
            }
        }
    }
}
