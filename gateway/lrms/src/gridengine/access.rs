//! Who may use a queue: its access lists, as qconf prints them, against an account and its primary group. The rules are pure; any text is taken.

use std::collections::{BTreeMap, BTreeSet};

use super::{GridEngine, calls, qhost};
use crate::command::{Account, Call, CallFailure};
use crate::doctor::Finding;
use crate::lrms::Queue;

/// Access lists that are asked for, one by one.
const LISTS_MAX: usize = 50;
/// Prints name and primary group of each argument, a line each; empty is who asks.
const NAMES: &str = r#"for a in "$@"; do echo "$(id -un $a)"; echo "$(id -gn $a)"; done"#;

/// Names of the access lists of a queue.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// Who is in none of these is refused; empty: nobody is (`user_lists`).
    pub only: Vec<String>,
    /// Who is in one of these is refused (`xuser_lists`).
    pub never: Vec<String>,
}

/// An account that may not use a queue.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Denied {
    /// Who.
    pub account: Account,
    /// The queue.
    pub queue: String,
    /// By which list.
    pub why: String,
}

/// The names of a configuration's line. Where machines have their own, nothing is said of the queue as a whole.
pub fn names(value: &str) -> Vec<String> {
    if value.contains('[') {
        return Vec::new();
    }
    value.split([' ', ',']).filter(|name| !name.is_empty() && *name != "NONE").map(String::from).collect()
}

/// Users, and groups with `@` before them, of one list as `qconf -su` prints it.
fn entries(text: &str) -> Vec<String> {
    names(qhost::setting(&text.replace("\\\n", " "), "entries").unwrap_or_default())
}

/// Why a user of this primary group may not use a queue; a list that is not known refuses nobody.
fn denied(access: &Access, lists: &BTreeMap<String, Vec<String>>, user: &str, group: &str) -> Option<String> {
    let has = |name: &&String| lists.get(*name).is_some_and(|all| all.iter().any(|one| one == user || one.strip_prefix('@') == Some(group)));
    if let Some(list) = access.never.iter().find(has) {
        return Some(format!("{user} is in {list}, one of its xuser_lists"));
    }
    let known = access.only.iter().all(|name| lists.contains_key(name));
    (!access.only.is_empty() && known && !access.only.iter().any(|name| has(&name)))
        .then(|| format!("{user} is in none of its user_lists: {}", access.only.join(", ")))
}

/// Which of these accounts may not use which of the engine's queues. One whose name can't be had is left out.
pub async fn of(engine: &GridEngine, accounts: &[Account]) -> Result<Vec<Denied>, CallFailure> {
    let queues = engine.configured().await?;
    let wanted: BTreeSet<&String> = queues.values().flat_map(|q| q.access.only.iter().chain(&q.access.never)).collect();
    let mut lists = BTreeMap::new();
    for name in wanted.into_iter().take(LISTS_MAX) {
        let text = engine.asked(calls::qconf_users(engine.call("qconf"), name)).await?;
        lists.insert(name.clone(), entries(&text));
    }
    if lists.is_empty() || accounts.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let named = accounts.iter().map(|account| if let Account::Named(name) = account { name.as_str() } else { "" });
    let said = engine.asked(Call::new("sh").args(["-c", NAMES, "sh"]).args(named)).await?;
    let mut lines = said.lines();
    for account in accounts {
        let (Some(user), Some(group)) = (lines.next(), lines.next()) else { break };
        for (queue, configured) in queues.iter().filter(|_| !user.is_empty() && !group.is_empty()) {
            if let Some(why) = denied(&configured.access, &lists, user, group) {
                found.push(Denied { account: account.clone(), queue: queue.clone(), why });
            }
        }
    }
    Ok(found)
}

/// Tell the queues whom they refuse; one that refuses all our accounts, so many, takes nothing, and comes back as a disabled one does.
pub fn tell(queues: &mut [Queue], denied: &[Denied], accounts: usize) {
    for queue in queues {
        queue.denied = denied.iter().filter(|d| d.queue == queue.name).map(|d| (d.account.clone(), d.why.clone())).collect();
        if let Some(why) = queue.denied.values().next().filter(|_| queue.denied.len() >= accounts) {
            queue.closed.get_or_insert_with(|| format!("it takes no account of this site: {why}"));
            (queue.machines, queue.slots_total, queue.slots_free, queue.largest_free, queue.gpus_total) = Default::default();
        }
    }
}

/// What there is to say of it.
pub async fn examine(engine: &GridEngine, accounts: &[Account]) -> Vec<Finding> {
    match of(engine, accounts).await {
        Ok(found) => found.into_iter().map(finding).collect(),
        Err(e) => vec![Finding::warning("access lists", e.to_string(), "let this account ask for them: qconf -su")],
    }
}

fn finding(denied: Denied) -> Finding {
    let Denied { account, queue, why } = denied;
    let remedy = "let it use the queue (qconf -au USER LIST, or -du), or leave the queue out of `queues`: its tasks only come back from there";
    Finding::bad(format!("queue {queue} as {account}"), why, remedy)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_account_is_refused_by_the_lists_of_its_queue() {
        let list = "name    physics\ntype    ACL\nfshare  0\noticket 0\nentries ann,@theory, \\\n        bob\n";
        assert_eq!(vec!["ann", "@theory", "bob"], entries(list));
        assert_eq!((vec![], vec![]), (entries("name x\nentries NONE\n"), entries("")));
        let lists = BTreeMap::from([("physics".to_string(), entries(list)), ("none".to_string(), vec![])]);
        let queues = |lines: &str| qhost::configured(&format!("qname q\n{lines}"))["q"].access.clone();
        let why = |lines: &str, user, group| denied(&queues(lines), &lists, user, group);
        for lines in ["user_lists NONE\nxuser_lists NONE\n", "user_lists physics none\n", "user_lists physics,none\nxuser_lists none\n"] {
            assert_eq!([None, None], [why(lines, "ann", "users"), why(lines, "eve", "theory")], "{lines}");
        }
        assert_eq!(Some("eve is in none of its user_lists: physics, none".into()), why("user_lists physics none\n", "eve", "users"));
        assert_eq!(Some("eve is in none of its user_lists: none".into()), why("user_lists none\n", "eve", "theory"));
        let both = "user_lists physics\nxuser_lists none,physics\n";
        assert_eq!(Some("bob is in physics, one of its xuser_lists".into()), why(both, "bob", "users"), "who is in both is refused");
        // A user is no group of the same name; what is not known, and what machines have of their own, is not judged.
        assert!(why("user_lists physics\n", "theory", "users").is_some());
        assert_eq!([None, None], [why("user_lists gone\n", "eve", "users"), why("user_lists none,[m1=physics]\n", "eve", "users")]);
    }

    #[test]
    fn a_queue_that_refuses_all_accounts_takes_nothing() {
        let account = |name: &str| Account::Named(name.to_string());
        let denied = |name: &str| Denied { account: account(name), queue: "q".into(), why: format!("{name} is in none") };
        let told = |denied: &[Denied], closed: Option<&str>| {
            let open = |name: &str| Queue { name: name.into(), slots_total: 4, slots_free: 4, machine_slots: 4, machines: 1, ..Queue::default() };
            let mut queues = [Queue { closed: closed.map(String::from), ..open("q") }, open("r")];
            tell(&mut queues, denied, 2);
            let [q, r] = queues;
            assert_eq!(open("r"), r);
            (q.denied.into_keys().collect::<Vec<_>>(), q.closed, q.slots_total, q.slots_free, q.machine_slots)
        };
        let both = [denied("ann"), denied("bob")];
        assert_eq!((vec![], None, 4, 4, 4), told(&[], None));
        assert_eq!((vec![account("bob")], None, 4, 4, 4), told(&both[1..], None));
        let why = "it takes no account of this site: ann is in none".to_string();
        assert_eq!((vec![account("ann"), account("bob")], Some(why), 0, 0, 4), told(&both, None));
        assert_eq!(Some("disabled".to_string()), told(&both, Some("disabled")).1);
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in "(?s).{0,100}", more in "[a-z@, \\[\\]=\n\\\\]{0,60}") {
            for text in [&text, &more] {
                let _ = (names(text), entries(text), entries(&format!("entries {text}\n")));
            }
        }
    }
}
