//! Habits that need not be remembered, because they are tests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use intergrid_agent::config::AgentConfig;
use intergrid_gateway::config::{BrokerConfig, GatewayConfig};

/// Lines of a source file.
const FILE_LINES_MAX: usize = 600;

/// The simulator's oracle, all of it: what judges has to be small enough to be read.
const ORACLE: &str = "tests/src/sim/oracle";
/// Its lines.
const ORACLE_LINES_MAX: usize = 999;

/// Our packages, where they are, and what each may import. A new one is added here on purpose.
const MAY_IMPORT: &[(&str, &str, &[&str])] = &[
    ("proto", "intergrid-proto", &[]),
    ("gateway", "intergrid-gateway", &["intergrid-proto", "intergrid-provision", "intergrid-agent"]),
    ("gateway/ec2", "intergrid-ec2", &["intergrid-proto", "intergrid-gateway", "intergrid-provision"]),
    ("gateway/lrms", "intergrid-lrms", &["intergrid-proto", "intergrid-provision", "intergrid-gateway", "intergrid-agent"]),
    ("gateway/provision", "intergrid-provision", &["intergrid-proto"]),
    ("broker", "intergrid-broker", &["intergrid-proto", "intergrid-gateway"]),
    ("agent/sys", "intergrid-agent-sys", &[]),
    ("agent", "intergrid-agent", &["intergrid-proto", "intergrid-agent-sys"]),
    (
        "cli",
        "intergrid-cli",
        &["intergrid-proto", "intergrid-gateway", "intergrid-ec2", "intergrid-lrms", "intergrid-broker", "intergrid-agent", "intergrid-agent-sys"],
    ),
    (
        "tests",
        "intergrid-tests",
        &["intergrid-proto", "intergrid-gateway", "intergrid-lrms", "intergrid-broker", "intergrid-agent", "intergrid-agent-sys", "intergrid-cli"],
    ),
];
/// The one package that may use unsafe code.
const UNSAFE_ALLOWED: &str = "agent/sys";

/// Asked at run time, so that one build can look at another copy.
fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR; run this with cargo");
    Path::new(&package).parent().unwrap().to_path_buf()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn toml(path: &Path) -> toml::Table {
    read(path).parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All our files with one of these extensions ("" for none), relative to the root; build directories and what begins with a dot left out, but for
/// `.ci` and `.config`.
fn files(extensions: &[&str]) -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            if name == "target" || (name.starts_with('.') && name != ".ci" && name != ".config") {
                continue;
            }
            match entry.file_type().unwrap() {
                t if t.is_dir() => walk(&entry.path(), found),
                t if t.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), &mut found);
    found.retain(|path| extensions.contains(&path.extension().map_or("", |e| e.to_str().unwrap())));
    found.sort();
    assert!(!found.is_empty(), "no file with {extensions:?}");
    found.into_iter().map(|path| path.strip_prefix(root()).unwrap().to_path_buf()).collect()
}

/// Fails with all findings at once.
fn none(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n  {}", findings.join("\n  "));
}

#[test]
fn imports_point_one_way() {
    let members: BTreeSet<String> =
        toml(&root().join("Cargo.toml"))["workspace"]["members"].as_array().unwrap().iter().map(|m| m.as_str().unwrap().into()).collect();
    let known: BTreeSet<String> = MAY_IMPORT.iter().map(|(dir, ..)| dir.to_string()).collect();
    assert_eq!(known, members, "MAY_IMPORT in tidy.rs and the members of the workspace");
    let mut findings = Vec::new();
    for (dir, name, allowed) in MAY_IMPORT {
        let manifest = toml(&root().join(dir).join("Cargo.toml"));
        assert_eq!(*name, manifest["package"]["name"].as_str().unwrap());
        let mut tables: Vec<&toml::Table> = ["dependencies", "build-dependencies"].iter().filter_map(|key| manifest.get(*key)?.as_table()).collect();
        let targets = manifest.get("target").and_then(|t| t.as_table());
        tables.extend(targets.into_iter().flat_map(|t| t.values()).filter_map(|t| t.get("dependencies")?.as_table()));
        let ours = tables.into_iter().flat_map(|t| t.keys()).filter(|key| key.starts_with("intergrid-"));
        findings.extend(ours.filter(|key| !allowed.contains(&key.as_str())).map(|key| format!("{dir}/Cargo.toml: {name} may not import {key}")));
    }
    none(findings);
}

#[test]
fn unsafe_code_is_forbidden_but_in_one_place() {
    let workspace = toml(&root().join("Cargo.toml"));
    assert_eq!(Some("forbid"), workspace["workspace"]["lints"]["rust"]["unsafe_code"].as_str());
    let mut findings = Vec::new();
    for (dir, ..) in MAY_IMPORT.iter().filter(|(dir, ..)| *dir != UNSAFE_ALLOWED) {
        let manifest = toml(&root().join(dir).join("Cargo.toml"));
        let inherits = manifest.get("lints").and_then(|l| l.get("workspace")).and_then(|w| w.as_bool());
        if inherits != Some(true) {
            findings.push(format!("{dir}/Cargo.toml: needs `[lints] workspace = true`"));
        }
    }
    none(findings);
}

#[test]
fn nothing_is_left_to_do() {
    // Put together here, so that this file is not a finding itself.
    let words =
        [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("db", "g!("), concat!("to", "do!("), concat!("unimpl", "emented!(")];
    let mut findings = Vec::new();
    for path in files(&["rs", "proto", "toml", "md", ""]) {
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else { continue };
        for (n, line) in text.lines().enumerate() {
            findings.extend(words.iter().filter(|w| has_word(line, w)).map(|w| format!("{}:{}: {w}", path.display(), n + 1)));
        }
    }
    none(findings);
}

/// The word, and not as a part of another one.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
        !part(line[..at].chars().next_back()) && (word.ends_with('(') || !part(line[at + word.len()..].chars().next()))
    })
}

#[test]
fn no_file_is_too_long() {
    let long = files(&["rs"]).into_iter().map(|path| (read(&root().join(&path)).lines().count(), path));
    none(
        long.filter(|(lines, _)| *lines > FILE_LINES_MAX)
            .map(|(lines, path)| format!("{}: {lines} lines, at most {FILE_LINES_MAX}; split it", path.display()))
            .collect(),
    );
}

#[test]
fn the_oracle_is_small() {
    let lines: usize = files(&["rs"]).iter().filter(|p| p.starts_with(ORACLE)).map(|p| read(&root().join(p)).lines().count()).sum();
    assert!(
        (1..=ORACLE_LINES_MAX).contains(&lines),
        "{ORACLE}: {lines} lines, at most {ORACLE_LINES_MAX}; what judges nothing belongs to the record"
    );
}

#[test]
fn no_file_is_an_orphan() {
    let sources: BTreeSet<PathBuf> = files(&["rs"]).into_iter().collect();
    let mut reached = BTreeSet::new();
    let mut next: Vec<(PathBuf, bool)> = sources.iter().filter(|path| is_target(path)).map(|path| (path.clone(), true)).collect();
    while let Some((path, is_root)) = next.pop() {
        if !reached.insert(path.clone()) {
            continue;
        }
        let dir = match is_root || path.ends_with("mod.rs") {
            true => path.parent().unwrap().to_path_buf(),
            false => path.with_extension(""),
        };
        let text = read(&root().join(&path));
        let beside = |p: &str| path.parent().unwrap().join(p);
        next.extend(paths(&text).map(beside).filter(|p| sources.contains(p)).map(|p| (p, false)));
        for name in modules(&text) {
            let found = [dir.join(format!("{name}.rs")), dir.join(&name).join("mod.rs")].into_iter().find(|p| sources.contains(p));
            next.extend(found.map(|p| (p, false)));
        }
    }
    none(sources.difference(&reached).map(|path| format!("{}: no `mod` leads to it", path.display())).collect());
}

/// A file that cargo compiles by itself.
fn is_target(path: &Path) -> bool {
    MAY_IMPORT.iter().filter_map(|(dir, ..)| path.strip_prefix(dir).ok()).any(|inside| {
        let parts: Vec<&str> = inside.iter().map(|p| p.to_str().unwrap()).collect();
        matches!(
            parts.as_slice(),
            ["build.rs"]
                | ["src", "lib.rs" | "main.rs"]
                | ["tests" | "examples" | "benches", _]
                | ["src", "bin", _]
                | ["tests" | "examples" | "benches", _, "main.rs"]
                | ["src", "bin", _, "main.rs"]
        )
    })
}

/// Files that a file names as modules: `#[path = "..."]`, relative to itself.
fn paths(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.trim().strip_prefix("#[path = \"")?.strip_suffix("\"]"))
}

/// Names of the modules that a file declares as files.
fn modules(text: &str) -> Vec<String> {
    let declared = |line: &str| {
        let name = line.trim().strip_suffix(';')?.rsplit_once("mod ").filter(|(before, _)| before.is_empty() || before.starts_with("pub"))?.1;
        Some(name.trim().to_string())
    };
    text.lines().filter_map(declared).collect()
}

#[test]
fn example_configurations_are_good() {
    let dir = root().join("deploy/examples");
    let gateway = GatewayConfig::load(dir.join("gateway.toml")).unwrap();
    let broker = BrokerConfig::load(dir.join("broker.toml")).unwrap();
    assert_eq!(("campus", "consortium"), (gateway.site.name.as_str(), broker.site.name.as_str()));
    let agent = AgentConfig::load(dir.join("agent.toml")).unwrap();
    assert_eq!("rack1-07", agent.name);
    let slurm = GatewayConfig::load(dir.join("slurm.toml")).unwrap().lrms.unwrap();
    assert_eq!(("slurm", 2, Some(5_000)), (slurm.kind.name(), slurm.queues.len(), slurm.limits.tasks_max));
    let engine = GatewayConfig::load(dir.join("gridengine.toml")).unwrap().lrms.unwrap();
    assert_eq!(("gridengine", 2, Some("smp")), (engine.kind.name(), engine.queues.len(), engine.parallel_environment.as_deref()));
    let cloud = GatewayConfig::load(dir.join("cloud.toml")).unwrap().cloud.unwrap();
    assert_eq!((2, 64, 2), (cloud.catalogue.offers.len(), cloud.settings.slots_max, cloud.budget.nodes().len()));
    let ec2 = GatewayConfig::load(dir.join("ec2.toml")).unwrap().cloud.unwrap();
    assert_eq!((4, 64), (ec2.catalogue.offers.len(), ec2.settings.slots_max), "two types in two subnets");
    let loaded = ["cloud.toml", "ec2.toml", "gateway.toml", "broker.toml", "agent.toml", "slurm.toml", "gridengine.toml"];
    let there: Vec<_> =
        files(&["toml"]).into_iter().filter(|p| p.starts_with("deploy/examples")).map(|p| p.file_name().unwrap().to_os_string()).collect();
    none(
        there
            .iter()
            .filter(|name| !loaded.iter().any(|l| l == name))
            .map(|name| format!("deploy/examples/{}: loaded by no test", name.display()))
            .collect(),
    );
}

#[test]
fn links_between_our_pages_lead_somewhere() {
    let mut findings = Vec::new();
    let mut links = Vec::new();
    for path in files(&["md"]) {
        let text = read(&root().join(&path));
        let mut in_code = false;
        for (n, line) in text.lines().enumerate() {
            in_code ^= line.trim_start().starts_with("```");
            for target in line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ', '#']).next()).filter(|t| !in_code && !t.is_empty()) {
                if !target.contains("://") && !target.starts_with("mailto:") {
                    links.push((path.clone(), n + 1, target.to_string()));
                }
            }
        }
    }
    for (path, line, target) in links {
        if !root().join(path.parent().unwrap()).join(&target).exists() {
            findings.push(format!("{}:{line}: {target} is not there", path.display()));
        }
    }
    none(findings);
}
