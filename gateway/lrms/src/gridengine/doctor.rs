//! What only Grid Engine can be examined for: version, its books, the environment for several slots, what counts GPUs, and how long a task has between two signals.

use super::calls::Terms;
use super::gpus::Counted;
use super::{Gpus, GridEngine, GridEngineConfig, calls, qhost};
use crate::command::{Account, CallFailure, Hands};
use crate::doctor::Finding;
use crate::lrms::{Lrms, LrmsId};

/// How slots have to be given for a task to be on one machine.
const ON_ONE_MACHINE: &str = "$pe_slots";
/// Environments that are looked at for one that does.
const ENVIRONMENTS_MAX: usize = 50;
/// What a complex that counts GPUs is called where sites have one.
const GPU_COMPLEXES: [&str; 3] = ["gpu", "gpus", "ngpus"];
/// Versions that all of this was tried with, as their commands say it.
const VERSIONS_TRIED: [&str; 1] = ["SGE 8.1.9"];
/// A version is no longer.
const VERSION_CHARS_MAX: usize = 60;
/// Records come later than this otherwise.
const FLUSH: &str = "accounting_flush_time=00:00:01";

/// Look at the configuration and the books.
pub async fn examine(engine: &GridEngine) -> Vec<Finding> {
    let hands = Hands;
    let global = match hands.asked(calls::qconf_global(engine.call("qconf"))).await {
        Ok(text) => text,
        Err(e) => return vec![Finding::bad("controller", e.to_string(), "see that sge_qmaster runs, and that `qconf -sh` finds it from here")],
    };
    let help = hands.run(&Account::Own, calls::qconf_help(engine.call("qconf"))).await.map_or(String::new(), |said| said.stdout + &said.stderr);
    let mut found = vec![version(&help)];
    found.extend(settings(&global));
    // It says no where there are none.
    if let Ok(said) = hands.run(&Account::Own, calls::qconf_quotas(engine.call("qconf"))).await {
        found.extend(quotas(&said.stdout).filter(|_| said.is_good()));
    }
    if let Some(name) = &engine.config().terms.environment {
        found.push(match hands.asked(calls::qconf_environment(engine.call("qconf"), name)).await {
            Ok(text) => environment(name, &text),
            Err(e) => Finding::bad("slots", e.to_string(), "name one of `qconf -spl` in parallel_environment"),
        });
    } else {
        found.push(Finding::warning("slots", "no parallel_environment: each task has one slot", "name one whose allocation_rule is $pe_slots"));
    }
    if let Some(complex) = &engine.config().terms.gpu_complex {
        found.push(match engine.gpus().await {
            Ok(gpus) => of_gpus(complex, gpus.as_ref()),
            Err(e) => Finding::bad("gpus", e.to_string(), "let this account ask for complexes and machines: qconf -sc, qconf -se"),
        });
    }
    match engine.hidden().await {
        Ok(None) => {}
        Ok(Some(why)) => found.push(Finding::bad("qstat", why, "what it does not show would look gone: nothing is offered until it shows all")),
        Err(e) => found.push(Finding::bad("qstat", e.to_string(), "see that the cell's files and the home of this account can be read")),
    }
    let path = engine.accounting().display().to_string();
    found.push(match engine.records(&[LrmsId(1)]).await {
        Ok(_) => Finding::good("books", format!("{path} can be read")),
        Err(e) => Finding::bad("books", e.to_string(), "let the gateway's account read the accounting file, or name it in `records`"),
    });
    found
}

/// A parallel environment that gives the slots of a task on one machine, if there is one.
pub async fn environment_on_one_machine(engine: &GridEngine) -> Result<Option<String>, CallFailure> {
    let hands = Hands;
    // It says no where there is none at all.
    let listed = hands.run(&Account::Own, calls::qconf_environments(engine.call("qconf"))).await?;
    for name in listed.stdout.lines().map(str::trim).filter(|n| !n.is_empty() && listed.is_good()).take(ENVIRONMENTS_MAX) {
        let text = hands.asked(calls::qconf_environment(engine.call("qconf"), name)).await?;
        if qhost::setting(&text, "allocation_rule") == Some(ON_ONE_MACHINE) {
            return Ok(Some(name.to_string()));
        }
    }
    Ok(None)
}

/// A complex that counts the GPUs of some machine, if there is one that is called as such are.
pub async fn gpu_complex(config: &GridEngineConfig) -> Result<Option<String>, CallFailure> {
    for name in GPU_COMPLEXES {
        let terms = Terms { gpu_complex: Some(name.to_string()), ..config.terms.clone() };
        let gpus = GridEngine::new(GridEngineConfig { terms, ..config.clone() }).gpus().await?;
        if gpus.is_some_and(|gpus| gpus.counted.is_ok() && gpus.machines.values().any(|n| *n > 0)) {
            return Ok(Some(name.to_string()));
        }
    }
    Ok(None)
}

fn of_gpus(complex: &str, gpus: Option<&Gpus>) -> Finding {
    let counted = gpus.map_or(Err("not known".to_string()), |gpus| gpus.counted.clone());
    let machines = || gpus.into_iter().flat_map(|gpus| gpus.machines.values()).filter(|n| **n > 0);
    match counted {
        Err(why) => Finding::bad("gpus", why, "name a complex of `qconf -sc` that is requestable and consumable (YES or JOB) in gpu_complex"),
        Ok(_) if machines().count() == 0 => {
            let remedy = format!("qconf -aattr exechost complex_values {complex}=N MACHINE, for each machine that has some");
            Finding::warning("gpus", format!("no machine has {complex} in its complex_values"), remedy)
        }
        Ok(counted) => {
            let each = if counted == Counted::BySlot { "for each slot" } else { "once a task" };
            let total: u64 = machines().map(|n| u64::from(*n)).sum();
            Finding::good("gpus", format!("{complex}: {total} on {} machines, counted {each}", machines().count()))
        }
    }
}

fn version(help: &str) -> Finding {
    let said: String = help.lines().map(str::trim).find(|l| !l.is_empty()).unwrap_or("not said").chars().take(VERSION_CHARS_MAX).collect();
    let seen = format!("{said}; known to work: {}", VERSIONS_TRIED.join(", "));
    match VERSIONS_TRIED.contains(&said.as_str()) {
        true => Finding::good("version", seen),
        false => Finding::warning("version", seen, "other descendants of 6.2 speak alike: see that a test task runs as each account"),
    }
}

fn settings(global: &str) -> Vec<Finding> {
    let unfolded = global.replace("\\\n", " ");
    let mut found = Vec::new();
    let reporting = qhost::setting(&unfolded, "reporting_params").unwrap_or_default();
    if !reporting.contains("accounting=true") {
        found.push(Finding::bad("settings", "reporting_params: accounting is off", "set accounting=true: qconf -mconf"));
    } else if !reporting.contains(FLUSH) {
        let seen = "records of what is over come late";
        found.push(Finding::warning("settings", seen, format!("set {FLUSH} in reporting_params: qconf -mconf")));
    }
    if !qhost::setting(&unfolded, "execd_params").unwrap_or_default().to_ascii_uppercase().contains("INHERIT_ENV=FALSE") {
        let seen = "tasks are given the environment of sge_execd";
        found.push(Finding::warning("settings", seen, "set INHERIT_ENV=false in execd_params, or start sge_execd with an empty one"));
    }
    found
}

/// Resource quota sets, one a line.
fn quotas(listed: &str) -> Option<Finding> {
    let names: Vec<&str> = listed.lines().map(str::trim).filter(|l| !l.is_empty() && !l.contains(' ')).collect();
    let seen = format!("resource quotas are not looked at: {}; slots that they keep from us are offered as free", names.join(", "));
    let remedy = "see `qconf -srqs`; where one is for our accounts, write slots_max or ceiling_percent in [gridengine.limits]";
    (!names.is_empty()).then(|| Finding::warning("quotas", seen, remedy))
}

fn environment(name: &str, text: &str) -> Finding {
    match qhost::setting(text, "allocation_rule") {
        Some(ON_ONE_MACHINE) => Finding::good("slots", format!("{name} gives the slots of a task on one machine")),
        other => {
            let seen = format!("{name} has allocation_rule {}: a task's slots may be on several machines", other.unwrap_or("none"));
            Finding::bad("slots", seen, format!("name another in parallel_environment, or set allocation_rule {ON_ONE_MACHINE}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Grade;

    #[test]
    fn what_is_amiss_is_named() {
        let grades = |text: &str| settings(text).iter().map(|f| f.grade).collect::<Vec<_>>();
        // Of Son of Grid Engine 8.1.9, as our tests set it up.
        assert_eq!(vec![Grade::Warning], grades(include_str!("recorded/conf.txt")));
        assert_eq!(vec![Grade::Bad, Grade::Warning], grades("reporting_params accounting=false\n"));
        assert_eq!(vec![Grade::Warning], grades("reporting_params accounting=true \\\n  flush_time=00:00:15\nexecd_params INHERIT_ENV=false\n"));
        assert_eq!(Finding::good("version", "SGE 8.1.9; known to work: SGE 8.1.9"), version("SGE 8.1.9\nusage: qconf [options]\n"));
        for help in ["UGE 8.6.4\nusage: qconf [options]\n", ""] {
            let found = version(help);
            assert!(found.grade == Grade::Warning && found.seen.ends_with("known to work: SGE 8.1.9"), "{found:?}");
        }
        let gpus = |counted: Result<Counted, &str>, n| {
            let gpus = Gpus { counted: counted.map_err(String::from), machines: [("m1".to_string(), n), ("m2".to_string(), n)].into() };
            of_gpus("gpu", Some(&gpus))
        };
        assert_eq!(Finding::good("gpus", "gpu: 4 on 2 machines, counted once a task"), gpus(Ok(Counted::Once), 2));
        assert_eq!((Grade::Warning, Grade::Bad), (gpus(Ok(Counted::BySlot), 0).grade, gpus(Err("no"), 2).grade));
        assert_eq!((None, None), (quotas(""), quotas("no resource quota set list defined\n")));
        assert!(quotas("per_user\nphysics\n").is_some_and(|f| f.grade == Grade::Warning && f.seen.contains("per_user, physics")));
        assert_eq!(Grade::Good, environment("smp", "pe_name smp\nallocation_rule    $pe_slots\n").grade);
        assert_eq!(Grade::Bad, environment("mpi", "allocation_rule $round_robin\n").grade);
    }
}
