//! What everybody runs first.

use std::path::Path;

use serde_json::Value;

use super::user::{Running, User, grid};

/// In a directory of its own, without a home.
fn demo(dir: &Path, words: &[&str]) -> Value {
    let mut command = grid(&[&["demo", "--json"][..], words].concat());
    command.env("PATH", "/usr/bin:/bin").env("TMPDIR", dir).current_dir(dir);
    Running::spawn(command).end().json()
}

fn pids(said: &Value) -> Vec<u64> {
    said["sites"].as_array().unwrap().iter().map(|s| s["pid"].as_u64().unwrap()).collect()
}

fn is_alive(pid: &u64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c.contains("--ready-file"))
}

#[test]
fn the_demo_renders_its_picture_on_three_sites_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let said = demo(dir.path(), &[]);
    let tasks = said["tasks"].as_array().unwrap();
    let sites: std::collections::BTreeSet<&str> = tasks.iter().map(|t| t["site"].as_str().unwrap()).collect();
    assert_eq!((64, vec!["burst", "campus", "partner"]), (tasks.len(), sites.into_iter().collect()), "{said}");
    let picture = dir.path().join("demo.png");
    assert_eq!(picture.to_str(), said["picture"].as_str());
    let mut reader = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(picture).unwrap())).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    reader.next_frame(&mut pixels).unwrap();
    pixels.sort_unstable();
    pixels.dedup();
    assert!(pixels.len() > 64, "{} different values are no picture", pixels.len());
    assert_eq!((10, Vec::<u64>::new()), (pids(&said).len(), pids(&said).into_iter().filter(is_alive).collect()));
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(vec!["demo.png"], left);
}

#[test]
fn a_demo_that_is_kept_can_be_used_and_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    let said = demo(dir.path(), &["--keep", "--dir", kept.to_str().unwrap()]);
    assert!(pids(&said).iter().all(is_alive), "{said}");
    let user = User::new(said["home"].as_str().unwrap().into(), dir.path().into());
    assert_eq!("task 0\ntask 1\n", {
        let mut lines: Vec<String> =
            user.run(&["run", "-n", "2", "--", "/bin/echo", "task", "{i}"]).well().lines().map(|l| format!("{l}\n")).collect();
        lines.sort();
        lines.concat().replace("[0] ", "").replace("[1] ", "")
    });
    demo(dir.path(), &["--stop", kept.to_str().unwrap()]);
    assert_eq!(Vec::<u64>::new(), pids(&said).into_iter().filter(is_alive).collect::<Vec<_>>());
}
