//! What only Slurm can be examined for: version, how long it lists what is over, and its books.

use super::{Books, Slurm, sinfo::Controller};
use crate::doctor::Finding;
use crate::lrms::{Lrms, LrmsId};

/// Earlier ones print other fields.
const VERSION_MIN: (u32, u32) = (20, 11);
/// Ends have to be listed for some looks.
const JOB_AGE_MIN_S: u64 = 30;

/// Look at the controller's configuration and the books.
pub async fn examine(slurm: &Slurm) -> Vec<Finding> {
    let controller = match slurm.controller().await {
        Ok(controller) => controller,
        Err(e) => return vec![Finding::bad("controller", e.to_string(), "see that slurmctld runs, and that `scontrol ping` finds it from here")],
    };
    let mut found = settings(&controller);
    found.push(match slurm.books() {
        Books::None => no_books(&controller),
        books => match slurm.records(&[LrmsId(1)]).await {
            Ok(_) => Finding::good("books", format!("can be read ({})", books_word(books))),
            Err(e) => Finding::bad("books", e.to_string(), "let the gateway's account read them (see docs/slurm.md)"),
        },
    });
    found
}

fn settings(controller: &Controller) -> Vec<Finding> {
    let version = controller.get("SLURM_VERSION").unwrap_or("unknown");
    let mut numbers = version.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let known = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let mut found = vec![match known >= VERSION_MIN {
        true => Finding::good("version", format!("Slurm {version}")),
        false => Finding::warning("version", format!("Slurm {version}"), "20.11 or later is needed for what squeue is asked to print"),
    }];
    let age = controller.number("MinJobAge").unwrap_or(0);
    if age < JOB_AGE_MIN_S {
        let seen = format!("MinJobAge is {age} s: what is over leaves the queue before it is seen");
        found.push(Finding::warning("settings", seen, "set MinJobAge=60, or install the completion program deploy/slurm/jobcomp"));
    }
    found
}

fn no_books(controller: &Controller) -> Finding {
    let seen = "no completion records: the end of a task whose own record is lost is known only while the queue lists it";
    match controller.get("AccountingStorageType") {
        Some("accounting_storage/slurmdbd") => Finding::warning("books", seen, "write accounting = true under [slurm]: it is on"),
        _ => Finding::warning("books", seen, "install deploy/slurm/jobcomp as JobCompLoc, and name its directory as `records`"),
    }
}

fn books_word(books: &Books) -> String {
    match books {
        Books::None => "none".to_string(),
        Books::Files(dir) => dir.display().to_string(),
        Books::Sacct => "sacct".to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Grade;

    #[test]
    fn who_is_not_shown_the_jobs_of_others_is_told() {
        let of = |data: &str| Controller::parse(&format!("SlurmUser = slurm(64030)\nPrivateData = {data}\n"));
        let private = of("accounts,jobs");
        assert!(private.hides_jobs_from("grid", "") && private.hides_jobs_from("grid", "None\n"));
        assert!(["root", "slurm"].iter().all(|chief| !private.hides_jobs_from(chief, "")));
        assert!(!private.hides_jobs_from("grid", "Operator\n") && !private.hides_jobs_from("grid", "Administrator\n"));
        assert!(!of("none").hides_jobs_from("grid", "") && !of("accounts,usage").hides_jobs_from("grid", ""));
    }

    #[test]
    fn settings_that_lose_ends_are_named() {
        let good = settings(&Controller::parse(include_str!("recorded/config.txt")));
        assert_eq!(vec![Grade::Good], good.iter().map(|f| f.grade).collect::<Vec<_>>());
        let bad = settings(&Controller::parse("SLURM_VERSION = 19.05.1\nMinJobAge = 2 sec\n"));
        assert!(bad.len() == 2 && bad.iter().all(|f| f.grade == Grade::Warning && !f.remedy.is_empty()), "{bad:?}");
        assert!(no_books(&Controller::parse("AccountingStorageType = accounting_storage/slurmdbd")).remedy.contains("accounting = true"));
    }
}
