//! Files on their way while parts are killed: each output comes back, whole, once its task is done.

use std::fs;
use std::time::Duration;

use super::tree::{Tree, until};

const TASKS: usize = 120;
const PATIENCE: Duration = Duration::from_secs(120);
const OUTPUT_BYTES: usize = 600_000;

#[test]
fn outputs_come_back_whole_though_each_part_was_killed() {
    let mut tree = Tree::deep();
    let user = tree.user("root");
    let scene: Vec<u8> = (0..OUTPUT_BYTES as u32 / 4).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    user.write("scene", &scene);
    user.script("prog", "#!/bin/sh\n: >> \"$STARTS/$1\"; echo $1; (cat scene; echo $1) > tile-$1; sleep 0.05\n");
    let dir = tree.path("starts");
    let env = format!("STARTS={}", dir.display());
    let job = user.submit(&["-n", "120", "--env", &env, "--in", "scene", "--out", "tile-{i}", "--", "./prog", "{i}"]);
    for (k, part) in ["campus", "campus-1", "eu", "root"].iter().enumerate() {
        until("tasks have started", PATIENCE, || match fs::read_dir(&dir).unwrap().count() {
            n if n >= TASKS * (k + 1) / 6 => Ok(()),
            n => Err(format!("{n} have")),
        });
        tree.kill(part);
        std::thread::sleep(Duration::from_millis(300));
        tree.start(part);
    }
    assert_eq!(0, user.wait(&job), "{:?}", user.run(&["explain", &job]));
    let to = tree.path("back");
    user.run(&["fetch", "--dir", to.to_str().unwrap(), &job]).well();
    for task in 0..TASKS {
        let tile = fs::read(to.join(format!("tile-{task}"))).unwrap();
        assert!(tile == [&scene[..], format!("{task}\n").as_bytes()].concat(), "tile {task}: {} bytes", tile.len());
    }
    for task in [0, TASKS / 2, TASKS - 1] {
        assert_eq!(format!("{task}\n"), user.run(&["logs", &format!("{job}[{task}]")]).well());
    }
}
