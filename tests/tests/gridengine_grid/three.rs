//! One tree over all kinds: a root broker over a gateway with Slurm, one with Grid Engine, and one with agents; one array over the three.

use std::collections::BTreeMap;

use intergrid_proto::net::CertRole;
use intergrid_tests::gridengine::{COMMANDS, GridEngine};
use intergrid_tests::slurm::Slurm;
use intergrid_tests::starts::{Starts, dir_of_all};

use crate::site::{PATIENCE, section};
use crate::tree::Tree;

/// 16 of Slurm, 16 of Grid Engine, 2 agents of 2.
const SLOTS: u64 = 36;
const TASKS: u32 = 120;

#[test]
fn one_array_over_slurm_grid_engine_and_agents() {
    let (slurm, engine) = (Slurm::start(), GridEngine::start());
    let starts = Starts::new(&engine.dir().join("starts"));
    std::os::unix::fs::symlink(COMMANDS, engine.dir().join("commands")).unwrap();
    let shared = dir_of_all(&slurm.dir().join("shared"));
    let of_slurm = format!(
        "\n[slurm]\npartitions = [\"batch\"]\naccount = \"self\"\ndirectory = \"{}/own\"\nconf = \"{}\"\nrecords = \"{}\"\n",
        shared.display(),
        slurm.conf().display(),
        slurm.records().display()
    );
    let mut tree = Tree::new();
    tree.gateway("physics", Some("root"), &of_slurm);
    tree.gateway("biology", Some("root"), &(section(&engine, &["batch"], "own") + "account = \"self\"\n"));
    tree.gateway("desktops", Some("root"), "");
    tree.broker("root", &["physics", "biology", "desktops"], None);
    ["desktop-1", "desktop-2"].iter().for_each(|name| tree.agent(name, "desktops", "slots = 2\n"));
    tree.user("root").until_slots(SLOTS, PATIENCE);
    let ann = tree.user_as("root", CertRole::User, "ann");
    let job = ann.submit(&["-n", &TASKS.to_string(), "--no-requeue", "--", "sh", "-c", &starts.counted("sleep 1; echo $((GRID_TASK_ID * 3))")]);
    assert_eq!(0, ann.run(&["wait", "--timeout", "170s", &job]).code, "{}", ann.run(&["show", &job]).out);
    starts.assert_each_once(TASKS);
    let mut by_site: BTreeMap<String, u32> = BTreeMap::new();
    starts.of_each().into_values().flatten().for_each(|site| *by_site.entry(site).or_default() += 1);
    println!("{by_site:?}");
    assert_eq!(vec!["biology", "desktops", "physics"], by_site.keys().map(String::as_str).collect::<Vec<_>>(), "{by_site:?}");
    for n in [0, TASKS / 2, TASKS - 1] {
        assert_eq!(format!("{}\n", n * 3), ann.run(&["logs", &format!("{job}[{n}]")]).well());
    }
}
