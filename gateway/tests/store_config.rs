//! Configurations: what is taken, and where a wrong one is said to be wrong.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use intergrid_gateway::config::{AccountsConfig, AgentsConfig, BrokerConfig, CloudProvider, GatewayConfig, LimitsConfig, LrmsKind, PeerConfig};
use intergrid_gateway::core::schedule::Burst;
use intergrid_proto::net::issue::{self, Validity};
use intergrid_proto::net::{CertRole, Role};

const GATEWAY: &str = r#"name = "campus"
listen = "127.0.0.1:0"
state = "state"
identity = "/etc/intergrid/campus"

[[trust]]
ca = "ca.pem"
may = ["user", "admin", "delegate"]
on_behalf = ["*"]

[limits]
blobs_bytes_max = "20G"

[agents]
provider = "process"
agents = 2
slots = 4
memory = "512M"
program = "bin/grid-agent"
"#;

const BROKER: &str = r#"name = "root"
listen = "[::1]:7411"
state = "state"
identity = "identity"

[parent]
endpoint = "top.example:7411"
ca = "parent.pem"

[[child]]
name = "campus"
endpoint = "campus.example:7411"
ca = "campus.pem"

[[child]]
name = "partner"
ca = "partner.pem"
"#;

fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("site.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

#[test]
fn a_gateway_is_read_with_paths_beside_the_file() {
    let (dir, path) = file(GATEWAY);
    let config = GatewayConfig::load(&path).unwrap();
    assert_eq!(("campus", "127.0.0.1:0"), (config.site.name.as_str(), config.site.listen.as_str()));
    assert_eq!((dir.path().join("state"), Path::new("/etc/intergrid/campus")), (config.site.state, config.site.identity.as_path()));
    let trust = &config.site.trust[0];
    assert_eq!((dir.path().join("ca.pem"), &vec!["*".to_string()]), (trust.ca.clone(), &trust.on_behalf));
    assert_eq!(BTreeSet::from([Role::User, Role::Admin, Role::Delegate]), trust.may);
    assert_eq!(LimitsConfig { blobs_bytes_max: 20 << 30, ..LimitsConfig::default() }, config.site.limits);
    let program = Some(dir.path().join("bin/grid-agent"));
    assert_eq!(AgentsConfig::Process { agents: 2, slots: Some(4), memory_bytes: Some(512 << 20), gpus: Some(0), program }, config.agents);
    let (_dir, path) = file(GATEWAY.split("[agents]").next().unwrap());
    assert_eq!(AgentsConfig::Static, GatewayConfig::load(path).unwrap().agents);
}

#[test]
fn a_broker_is_read() {
    let (dir, path) = file(BROKER);
    let config = BrokerConfig::load(&path).unwrap();
    assert_eq!(Some(PeerConfig { endpoint: "top.example:7411".into(), ca: dir.path().join("parent.pem") }), config.site.parent);
    let children: Vec<_> = config.children.iter().map(|c| (c.name.as_str(), c.endpoint.as_deref())).collect();
    assert_eq!(vec![("campus", Some("campus.example:7411")), ("partner", None)], children);
    assert_eq!(dir.path().join("partner.pem"), config.children[1].ca);
    assert_eq!(Burst::default(), config.burst);
    for (text, want) in [("after = \"2m\"", (120_000, None)), ("tasks = 9", (u64::MAX, Some(9))), ("after = \"1s\"\ntasks = 9", (1_000, Some(9)))] {
        let (_dir, path) = file(&format!("{BROKER}\n[burst]\n{text}\n"));
        assert_eq!(Burst { after_ms: want.0, tasks: want.1 }, BrokerConfig::load(path).unwrap().burst, "{text}");
    }
}

#[test]
fn a_wrong_file_is_refused_with_line_and_column() {
    let gateway = [
        ("listen =", "lisen =", "2:1: unknown field `lisen`, expected one of `name`, `listen`"),
        ("may = [", "mai = [", "8:1: unknown field `mai`"),
        ("\"campus\"", "7", "1:8: invalid type: integer `7`, expected a string"),
        ("\"campus\"", "\"a b\"", "1:8: the label \"a b\" is not allowed"),
        ("\"campus\"", "\"\"", "1:8: the label"),
        ("\"campus\"", "\"campus", "1:"),
        ("127.0.0.1:0", "127.0.0.1", "2:10: \"127.0.0.1\" is not host:port"),
        ("127.0.0.1:0", ":7411", "2:10: "),
        ("127.0.0.1:0", "a:70000", "2:10: "),
        ("\"admin\"", "\"root\"", "8:16: unknown variant `root`, expected one of `user`"),
        ("[\"user\", \"admin\", \"delegate\"]", "[]", "8:7: `may` is empty"),
        ("\"20G\"", "20", "12:19: invalid type: integer `20`, expected a string"),
        ("\"20G\"", "\"20\"", "12:19: size \"20\" is not a whole number with a unit; write it like 512M"),
        ("agents = 2", "agents = 0", "16:10: agents must be 1 to 1024, not 0"),
        ("agents = 2", "agents = -1", "16:10: invalid value: integer `-1`"),
        ("agents = 2", "agents = 1025", "16:10: agents must be"),
        ("agents = 2\n", "", "14:1: provider \"process\" needs `agents`"),
        ("slots = 4", "slots = 65537", "17:9: slots must be 1 to 65536"),
        ("\"512M\"", "\"0M\"", "18:10: memory (bytes) must be 1 to"),
        ("\"process\"", "\"static\"", "14:1: provider \"static\" takes no other key"),
        ("\"process\"", "\"ec3\"", "15:12: unknown variant `ec3`"),
        ("state = \"state\"\n", "", ":1:1: missing field `state`"),
        ("[agents]", "[[child]]\nname = \"x\"\nca = \"x\"\n[agents]", "14:1: `child` belongs to a broker's"),
    ];
    for (old, new, want) in gateway {
        assert!(GATEWAY.contains(old), "{old}");
        let (_dir, path) = file(&GATEWAY.replacen(old, new, 1));
        let refused = GatewayConfig::load(&path).expect_err(new).to_string();
        assert!(refused.starts_with(&format!("{}:", path.display())) && refused.contains(want), "{old} -> {new}: {refused}");
    }
    let broker = [
        ("\"partner\"", "\"campus\"", "15:1: a second child \"campus\""),
        ("campus.example:7411", "campus.example:0", "12:12: endpoint \"campus.example:0\" has port 0"),
        ("[parent]", "[agents]\nprovider = \"static\"\n[parent]", "6:1: `agents` belongs to a gateway's"),
        ("[parent]", "[burst]\ntasks = 0\n[parent]", "7:9: tasks must be 1 to 18446744073709551615, not 0"),
        ("[parent]\nendpoint = \"top.example:7411\"\nca = \"parent.pem\"", "", ": neither a [[trust]] nor a [parent]"),
    ];
    for (old, new, want) in broker {
        let (_dir, path) = file(&BROKER.replacen(old, new, 1));
        let refused = BrokerConfig::load(&path).expect_err(new).to_string();
        assert!(refused.contains(want), "{old} -> {new}: {refused}");
    }
    let absent = GatewayConfig::load("/nowhere/gateway.toml").unwrap_err().to_string();
    assert!(absent.starts_with("configuration /nowhere/gateway.toml: No such file"), "{absent}");
}

const CLOUD: &str = r#"[cloud]
provider = "process"
slots_max = 5
currency = "USD"
budget = { hour = "10", day = "100.50" }

[[cloud.type]]
name = "m1.small"
slots = 1
memory = "1740M"
price = "0.085"
billing = "hour"

[[cloud.owner]]
name = "ann"
hour = "1"
"#;

#[test]
fn what_is_rented_is_read_and_a_wrong_word_is_named() {
    let before = GATEWAY.split("[agents]").next().unwrap();
    let (_dir, path) = file(&format!("{before}{CLOUD}"));
    let cloud = GatewayConfig::load(&path).unwrap().cloud.unwrap();
    let (root, ann) = (&cloud.budget.nodes()[0], &cloud.budget.nodes()[1]);
    assert_eq!(("10.00", "100.50"), (root.caps.hour.unwrap().to_string().as_str(), root.caps.day.unwrap().to_string().as_str()));
    assert_eq!(("ann", Some(0)), (ann.name.as_str(), ann.above));
    assert_eq!((5, "0.085"), (cloud.settings.slots_max, cloud.catalogue.offers[0].price.unwrap().rate.to_string().as_str()));
    assert_eq!(1_740 << 20, cloud.catalogue.types["m1.small"].memory_bytes);
    let more = |names: &[&str]| {
        let one = |name: &&str| format!("[[cloud.type]]\nname = \"{name}\"\nslots = 1\nmemory = \"1G\"\nprice = \"0.1\"\nbilling = \"second\"\n");
        names.iter().map(one).collect::<String>() + "[[cloud.owner]]"
    };
    let (twice, alike) = (more(&["m1.small"]), more(&["a/1", "a-1"]));
    let cases = [
        ("hour = \"10\", day = \"100.50\"", "", "14:1: [cloud] budget has no cap"),
        ("\"10\"", "10", "18:19: invalid type: integer `10`"),
        ("\"10\"", "\"ten\"", "`ten` is not an amount"),
        ("\"10\"", "\"18446744073709.551615\"", "`18446744073709.551615` is too large: at most 1000000000000.00"),
        ("slots_max = 5", "slots_max = 0", "14:1: [cloud] slots_max = 0"),
        ("\"10\"", "\"0\"", "14:1: [cloud] budget.hour = 0: nothing could ever be rented"),
        ("\"100.50\"", "\"0.00\"", "14:1: [cloud] budget.day = 0"),
        ("slots = 1\n", "slots = 6\n", "no type has at most slots_max = 5 slots"),
        ("slots_max = 5", "slots_max = 5\nmachines_max = 0", "14:1: [cloud] machines_max = 0"),
        ("slots_max = 5", "slots_max = 5\nbooting_max = 0", "14:1: [cloud] booting_max = 0"),
        ("\"hour\"\n", "\"hour\"\nmachines_max = 0\n", "20:1: type \"m1.small\": machines_max = 0"),
        ("\"USD\"", "\"dollars\"", "currency = \"dollars\""),
        ("\"hour\"\n", "\"hour\"\nmin_seconds = 60\n", "20:1: type \"m1.small\": min_seconds belongs to"),
        ("\"hour\"\n", "\"second\"\nmin_seconds = 86401\n", "20:1: type \"m1.small\": min_seconds = 86401: at most 86400"),
        ("\"hour\"\n", "\"year\"\n", "unknown variant `year`"),
        ("slots = 1\n", "slots = 0\n", "20:1: type \"m1.small\": slots must be"),
        ("price = \"0.085\"\n", "", "missing field `price`"),
        ("[[cloud.owner]]", twice.as_str(), "27:1: type \"m1.small\": names are unique"),
        ("[[cloud.owner]]", alike.as_str(), "33:1: type \"a-1\": its share would have the name of that of \"a/1\", `a-1-rented`"),
        ("hour = \"1\"\n", "of = \"lab\"\n", "27:1: [[cloud.owner]] budget of `ann`: it is below `lab`, and there is none"),
        ("\"ann\"\n", "\"bob\"\n[[cloud.owner]]\nname = \"bob\"\n", "29:1: [[cloud.owner]] budget of `bob`: there are two"),
        ("\"ann\"", "\"\"", "27:1: [[cloud.owner]] name = \"\": write a principal"),
        ("[[cloud.type]]", "[[cloud.kind]]", "unknown field `kind`"),
    ];
    for (old, new, want) in cases {
        assert!(CLOUD.contains(old), "{old}");
        let (_dir, path) = file(&format!("{before}{}", CLOUD.replacen(old, new, 1)));
        let refused = GatewayConfig::load(&path).expect_err(new).to_string();
        assert!(refused.starts_with(&format!("{}:", path.display())) && refused.contains(want), "{old} -> {new}: {refused}");
    }
    let (_dir, path) = file(&format!("{GATEWAY}{CLOUD}"));
    assert!(GatewayConfig::load(path).unwrap_err().to_string().contains("14:1: [agents] beside [cloud]"));
    let (_dir, path) = file(&format!("{BROKER}{CLOUD}"));
    assert!(BrokerConfig::load(path).unwrap_err().to_string().contains("`cloud` belongs to a gateway"));
}

const EC2: &str = r#"[cloud]
provider = "ec2"
slots_max = 8
currency = "USD"
budget = { hour = "1" }

[cloud.ec2]
region = "eu-central-1"
gateway = "grid.example.org:7411"
ami = "ami-0123456789abcdef0"
subnets = ["subnet-0aa", "subnet-0bb"]
security_groups = ["sg-0cc"]
market = "spot"
notices = "http://10.0.0.1:8080"
tags = { project = "x" }
agent = { url = "https://example.org/grid-agent", sha256 = "0000000000000000000000000000000000000000000000000000000000000000" }

[[cloud.type]]
name = "m5.large"
price = "0.05"
billing = "second"

[[cloud.type]]
name = "m5.xlarge"
slots = 4
memory = "15G"
price = "0.10"
billing = "second"
"#;

#[test]
fn an_account_at_ec2_is_read_and_a_wrong_word_is_named() {
    let before = GATEWAY.split("[agents]").next().unwrap();
    let (_dir, path) = file(&format!("{before}{EC2}"));
    let cloud = GatewayConfig::load(&path).unwrap().cloud.unwrap();
    let CloudProvider::Ec2(ec2) = cloud.provider else { panic!("{:?}", cloud.provider) };
    assert_eq!(("eu-central-1", "grid.example.org:7411", None), (ec2.region.as_str(), ec2.gateway.as_str(), ec2.launch_template.as_deref()));
    assert_eq!((vec!["m5.large"], Some("http://10.0.0.1:8080")), (ec2.measure.iter().map(String::as_str).collect(), ec2.notices.as_deref()));
    let offers: Vec<String> = cloud.catalogue.offers.iter().map(|o| o.key.to_string()).collect();
    let of = |kind: &str| ["aa", "bb"].map(|subnet| format!("{kind} in subnet-0{subnet} (spot)"));
    assert_eq!([of("m5.large"), of("m5.xlarge")].concat(), offers, "each subnet is an offer");
    let cases = [
        ("provider = \"ec2\"", "provider = \"process\"", "[cloud.ec2] belongs to provider = \"ec2\""),
        ("slots_max", "program = \"x\"\nslots_max", "program belongs to provider = \"process\""),
        ("region = \"eu-central-1\"", "region = \"\"", "21:10: [cloud.ec2] region: \"\" is none"),
        ("region = \"eu-central-1\"\n", "", "missing field `region`"),
        ("region =", "regoin =", "unknown field `regoin`"),
        ("ami = \"ami-0123456789abcdef0\"\n", "", "neither `ami` nor `launch_template`"),
        ("\"ami-0123456789abcdef0\"", "\"debian\"", "23:7: [cloud.ec2] ami: \"debian\" is not an id"),
        ("\"subnet-0bb\"", "\"subnet-0aa\"", "subnets: at most 16, each once"),
        ("\"sg-0cc\"", "\"default\"", "25:20: [cloud.ec2] security_groups: \"default\" is not an id"),
        ("grid.example.org:7411", "grid.example.org", "22:11: \"grid.example.org\" is not host:port"),
        ("grid.example.org:7411", "$(reboot):7411", "22:11: \"$(reboot):7411\" is not host:port"),
        ("grid.example.org:7411", "127.0.0.1:7411", "[cloud.ec2] gateway: \"127.0.0.1:7411\" is each machine itself"),
        ("grid.example.org:7411", "[::1]:7411", "gateway: \"[::1]:7411\" is each machine itself"),
        ("grid.example.org:7411", "localhost:7411", "gateway: \"localhost:7411\" is each machine itself"),
        ("\"spot\"", "\"auction\"", "unknown variant `auction`"),
        ("\"USD\"", "\"EUR\"", "bids are in USD"),
        ("http://10.0.0.1:8080", "10.0.0.1:8080", "notices: \"10.0.0.1:8080\" is not the address of a service"),
        ("http://10.0.0.1:8080", "http://$(reboot)", "notices: \"http://$(reboot)\" is not the address"),
        ("project = \"x\"", "\"intergrid:number\" = \"1\"", "tags: \"intergrid:number\""),
        ("https://example.org", "s3://example.org", "is not a URL"),
        ("https://example.org", "https://example.org/'; reboot; '", "is not a URL"),
        ("sha256 = \"00", "sha256 = \"0G", "sha256 has 64 digits"),
        ("slots = 4\n", "", "type \"m5.xlarge\": give `slots` and `memory` (and `gpus`), or none of them"),
    ];
    for (old, new, want) in cases {
        assert!(EC2.contains(old), "{old}");
        let (_dir, path) = file(&format!("{before}{}", EC2.replacen(old, new, 1)));
        let refused = GatewayConfig::load(&path).expect_err(new).to_string();
        assert!(refused.starts_with(&format!("{}:", path.display())) && refused.contains(want), "{old} -> {new}: {refused}");
    }
    let local = EC2.replace("grid.example.org", "localhost").replace("ami =", "endpoint_url = \"http://localhost:5000\"\nami =");
    let (_dir, path) = file(&format!("{before}{local}"));
    GatewayConfig::load(path).unwrap();
    let (_dir, path) = file(&format!("{before}{}", CLOUD.replacen("slots = 1\n", "", 1)));
    assert!(GatewayConfig::load(path).unwrap_err().to_string().contains("needs `slots` and `memory`"));
}

#[test]
fn check_looks_at_what_the_file_names() {
    let (dir, path) = file(&GATEWAY.replace("/etc/intergrid/campus", "identity").replace("\"ca.pem\"", "\"identity/ca.pem\""));
    let check = || GatewayConfig::load(&path).unwrap().check().map_err(|e| e.to_string());
    let refused = |what: &str| assert!(check().is_err_and(|e| e.contains(what)), "{what}: {:?}", check());
    let at = |name: &str| dir.path().join(name);
    refused("identity/cert.pem");
    issue::new_site(at("identity"), "campus", &[]).unwrap();
    refused("the agent's program");
    std::fs::create_dir(at("bin")).unwrap();
    std::fs::write(at("bin/grid-agent"), "").unwrap();
    let mode = |mode: u32| std::fs::set_permissions(at("bin/grid-agent"), std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    refused("bin/grid-agent, can't be executed");
    refused("chmod +x");
    mode(0o755);
    assert_eq!(Ok(()), check());
    assert!(!at("state").exists(), "a check makes nothing");
    std::fs::write(at("state"), "").unwrap();
    refused("the state must be a directory");
    std::fs::remove_file(at("state")).unwrap();

    let ca = std::fs::read(at("identity/ca.pem")).unwrap();
    std::fs::write(at("identity/ca.pem"), "no certificate").unwrap();
    refused("certificate");
    std::fs::remove_file(at("identity/ca.pem")).unwrap();
    refused("identity/ca.pem: No such file");
    std::fs::write(at("identity/ca.pem"), ca).unwrap();
    assert_eq!(Ok(()), check());

    issue::issue(at("identity"), CertRole::User, "ann", at("ann"), Validity::days(1)).unwrap();
    std::fs::write(&path, std::fs::read_to_string(&path).unwrap().replace("\"identity\"", "\"ann\"")).unwrap();
    refused("a site needs one of a site");

    let (dir, path) = file(&BROKER.replace("parent.pem", "identity/ca.pem").replace("campus.pem", "identity/ca.pem"));
    issue::new_site(dir.path().join("identity"), "root", &[]).unwrap();
    let refused = BrokerConfig::load(&path).unwrap().check().unwrap_err().to_string();
    assert!(refused.contains("partner.pem: No such file"), "{refused}");
}

#[test]
fn who_rents_can_give_certificates_and_lets_in_whom_he_gave_them() {
    let before = GATEWAY.split("[agents]").next().unwrap().replace("/etc/intergrid/campus", "identity").replace("\"ca.pem\"", "\"identity/ca.pem\"");
    let (dir, path) = file(&format!("{before}{CLOUD}"));
    let check = || GatewayConfig::load(&path).unwrap().check().map_err(|e| e.to_string());
    let at = |name: &str| dir.path().join(name);
    issue::new_site(at("identity"), "campus", &[]).unwrap();
    // Where the section is written, and what is missing.
    let lets_none_in = |section: &str| {
        let text = std::fs::read_to_string(&path).unwrap();
        let line = 1 + text.lines().position(|l| l == section).unwrap();
        let refused = check().unwrap_err();
        let place = format!("{}:{line}:1: {section} no [[trust]] of this site's own CA", path.display());
        assert!([place.as_str(), "identity/ca.pem", "\"agent\" into `may`"].iter().all(|w| refused.contains(w)), "{refused}");
    };
    lets_none_in("[cloud]");
    // Another CA's agents are not those that are rented.
    issue::new_site(at("other"), "other", &[]).unwrap();
    let other = "[[trust]]\nca = \"other/ca.pem\"\nmay = [\"agent\"]\n";
    let with = |trust: &str| std::fs::write(&path, format!("{}{CLOUD}", before.replace("[limits]", &format!("{trust}[limits]")))).unwrap();
    with(other);
    lets_none_in("[cloud]");
    with(&other.replace("other", "identity"));
    assert_eq!(Ok(()), check());
    let ours = CLOUD.replacen("provider = \"process\"", "provider = \"process\"\nprogram = \"agent\"", 1);
    let whole = before.replace("[limits]", &format!("{}[limits]", other.replace("other", "identity")));
    std::fs::write(&path, format!("{whole}{ours}")).unwrap();
    assert!(check().is_err_and(|e| e.contains("agent, is not there")));
    std::fs::write(at("agent"), "").unwrap();
    std::fs::set_permissions(at("agent"), std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(check().is_err_and(|e| e.contains("agent, can't be executed")));
    std::fs::set_permissions(at("agent"), std::fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(Ok(()), check());
    with(&other.replace("other", "identity"));
    let key = std::fs::read(at("identity/ca.key")).unwrap();
    std::fs::copy(at("other/ca.key"), at("identity/ca.key")).unwrap();
    let is_other = |refused: String| refused.contains("identity/ca.key: not the key of the CA in") && refused.contains("identity/ca.pem");
    assert!(check().is_err_and(is_other));
    // Also where the agents are processes of this machine, and where they are jobs of a cluster.
    let cluster = SLURM.split("[slurm]").nth(1).and_then(|s| s.split("[[map]]").next()).unwrap().replace("/home/{account}", "/shared");
    let cluster = format!("[slurm]{}{PILOTS}", cluster.replace("accounting = true", "account = \"self\""));
    let processes = "[agents]\nprovider = \"process\"\nagents = 1\n";
    for backend in [processes, cluster.as_str()] {
        std::fs::write(&path, format!("{whole}{backend}")).unwrap();
        assert!(check().is_err_and(is_other), "{backend}: {:?}", check());
        std::fs::write(at("identity/ca.key"), &key).unwrap();
        assert_eq!(Ok(()), check(), "{backend}");
        std::fs::copy(at("other/ca.key"), at("identity/ca.key")).unwrap();
    }
    std::fs::write(at("identity/ca.key"), &key).unwrap();
    std::fs::write(&path, format!("{before}{cluster}")).unwrap();
    lets_none_in("[pilots]");
    with(&other.replace("other", "identity"));
    std::fs::remove_file(at("identity/ca.key")).unwrap();
    let refused = check().unwrap_err();
    assert!(refused.contains("identity/ca.key: No such file") && refused.contains("put the CA's key back"), "{refused}");
}

const SLURM: &str = r#"name = "campus"
listen = "127.0.0.1:0"
state = "state"
identity = "id"

[[trust]]
ca = "ca.pem"
may = ["user"]

[slurm]
partitions = ["batch", "debug"]
directory = "/home/{account}/.intergrid"
conf = "slurm.conf"
accounting = true

[slurm.limits]
tasks_max = 500
time_max = "2h"
wait_max = "30m"
ceiling_percent = 20

[[map]]
principal = "alice"
account = "alice"

[[map]]
principal = "phys-*"
pool = ["grid1", "grid2"]
"#;

#[test]
fn grid_engine_has_settings_of_its_own_and_none_of_slurms() {
    let text = SLURM
        .replace("slurm", "gridengine")
        .replace("accounting = true", "parallel_environment = \"smp\"\nmemory = \"h_vmem\"\ngpu_complex = \"gpu\"");
    let (_dir, path) = file(&text);
    let lrms = GatewayConfig::load(&path).unwrap().lrms.unwrap();
    assert_eq!((LrmsKind::GridEngine, vec!["batch".to_string(), "debug".to_string()]), (lrms.kind, lrms.queues));
    assert_eq!((Some("smp"), Some("h_vmem")), (lrms.parallel_environment.as_deref(), lrms.memory.as_deref()));
    assert_eq!(Some("gpu"), lrms.gpu_complex.as_deref());
    for (old, new, want) in [
        ("memory = \"h_vmem\"", "accounting = true", "[gridengine] accounting is none of its settings"),
        ("\"h_vmem\"", "\"h_vmem=1,x\"", "memory must be a name"),
        ("\"smp\"", "\"-q\"", "parallel_environment must be a name"),
        ("\"gpu\"", "\"gpu=2\"", "gpu_complex must be a name"),
        ("[gridengine]", "[slurm]", "[slurm] parallel_environment is none of its settings"),
    ] {
        let (_dir, path) =
            file(&text.replacen(old, new, 1).replace("[gridengine.limits]", if new == "[slurm]" { "[slurm.limits]" } else { "[gridengine.limits]" }));
        let refused = GatewayConfig::load(&path).expect_err(new).to_string();
        assert!(refused.contains(want), "{old} -> {new}: {refused}");
    }
}

#[test]
fn a_cluster_behind_a_gateway_is_read_and_a_wrong_one_names_its_place() {
    let (dir, path) = file(SLURM);
    let lrms = GatewayConfig::load(&path).unwrap().lrms.unwrap();
    assert_eq!((LrmsKind::Slurm, Some(dir.path().join("slurm.conf"))), (lrms.kind, lrms.conf));
    assert_eq!((Some(7_200_000), 20, Some(500)), (lrms.limits.time_max_ms, lrms.limits.ceiling_percent, lrms.limits.tasks_max));
    assert_eq!(Some(1_800_000), lrms.limits.wait_max_ms);
    assert!(lrms.accounting && matches!(&lrms.accounts, AccountsConfig::Map(rules) if rules.len() == 2 && rules[1].pool.len() == 2));
    let own = SLURM.split("[[map]]").next().unwrap().replace("accounting = true", "account = \"self\"");
    let (_dir, path) = file(&own);
    assert_eq!(AccountsConfig::Own, GatewayConfig::load(&path).unwrap().lrms.unwrap().accounts);
    let wrong = [
        ("accounting = true", "account = \"root\"", "10:1: [slurm] account = \"root\": only \"self\""),
        ("accounting = true", "account = \"self\"", "22:1: a [[map]] beside account"),
        ("/home/{account}/.intergrid", "/shared", "10:1: [slurm] directory needs {account}"),
        ("\"batch\", \"debug\"", "\"batch\", \"batch\"", "names the queue \"batch\" twice"),
        ("\"batch\", \"debug\"", "\"-p\"", "can't be the name of a queue"),
        ("\"batch\", \"debug\"", "", "offers 0 queues"),
        ("ceiling_percent = 20", "ceiling_percent = 0", "limits.ceiling_percent must be 1 to 100"),
        ("tasks_max = 500", "tasks_max = 0", "10:1: [slurm] limits.tasks_max = 0: nothing could ever run"),
        ("tasks_max = 500", "slots_max = 0", "limits.slots_max = 0: nothing"),
        ("tasks_max = 500", "slots_per_principal_max = 0", "limits.slots_per_principal_max = 0: nothing"),
        ("tasks_max = 500", "tasks_per_principal_max = 0", "limits.tasks_per_principal_max = 0: nothing"),
        ("time_max = \"2h\"", "time_max = \"2\"", "18:12: "),
        ("tasks_max = 500", "task_max = 500", "17:1: unknown field `task_max`"),
        ("pool = [\"grid1\", \"grid2\"]", "", "a [[map]] needs `principal`"),
        ("account = \"alice\"", "account = \"grid2\"", "26:1: the pool of \"phys-*\" has \"grid2\", which the [[map]] at 22:1 gives to"),
        ("[slurm]\n", "[agents]\nprovider = \"static\"\n[slurm]\n", "10:1: [agents] beside"),
        ("[[map]]", "[gridengine]\nqueues = [\"q\"]\ndirectory = \"/x\"\n[[map]]", "one gateway"),
    ];
    for (old, new, want) in wrong {
        assert!(SLURM.contains(old), "{old}");
        let (_dir, path) = file(&SLURM.replacen(old, new, 1));
        let refused = GatewayConfig::load(&path).expect_err(new).to_string();
        assert!(refused.starts_with(&format!("{}:", path.display())) && refused.contains(want), "{old} -> {new}: {refused}");
    }
    let (_dir, path) = file(&GATEWAY.replace("[limits]", "[[map]]\nprincipal = \"a\"\naccount = \"a\"\n[limits]"));
    assert!(GatewayConfig::load(&path).unwrap_err().to_string().contains("a [[map]] without [slurm]"));
}

const PILOTS: &str = r#"
[pilots]
slots = 4
memory = "8G"
time = "4h"
pilots_max = 10
"#;

#[test]
fn pilots_are_jobs_of_a_cluster_under_one_account() {
    let alone = SLURM.split("[[map]]").next().unwrap().replace("/home/{account}", "/shared").replace("accounting = true", "account = \"self\"");
    let whole = format!("{alone}{PILOTS}");
    let (_dir, path) = file(&whole);
    let p = GatewayConfig::load(&path).unwrap().pilots.unwrap();
    assert_eq!((14_400_000, 3_600_000, 900_000, 40, 10), (p.time_ms, p.task_time_ms, p.alone_ms, p.settings.slots_max, p.settings.machines_max));
    assert_eq!(vec!["batch", "debug"], p.catalogue.types.keys().collect::<Vec<_>>());
    let refused = |text: &str, want: &str| {
        let (_dir, path) = file(text);
        let refused = GatewayConfig::load(&path).expect_err(want).to_string();
        assert!(refused.starts_with(&format!("{}:", path.display())) && refused.contains(want), "{refused}");
    };
    for (old, new, want) in [
        ("time = \"4h\"\n", "", "missing field `time`"),
        ("time = \"4h\"", "time = \"1m\"", "[pilots] time must be 120 s or more"),
        ("time = \"4h\"", "time = \"4h\"\ntask_time = \"4h\"", "task_time must be less than time"),
        ("pilots_max = 10", "pilots_max = 0", "there would never be one"),
        ("slots = 4", "slots = 0", "[pilots] slots must be 1 to"),
    ] {
        assert!(whole.contains(old), "{old}");
        refused(&whole.replacen(old, new, 1), want);
    }
    let modes = |modes: &str| whole.replace("account = \"self\"", &format!("account = \"self\"\n{modes}"));
    let (_dir, path) = file(&modes("mode.debug = \"direct\""));
    let mixed = GatewayConfig::load(&path).unwrap();
    let (lrms, p) = (mixed.lrms.unwrap(), mixed.pilots.unwrap());
    assert_eq!((vec!["debug".to_string()], vec!["batch"]), (lrms.direct(), p.catalogue.types.keys().map(String::as_str).collect()));
    assert_eq!(vec!["batch", "debug"], lrms.queues);
    refused(&modes("mode.fast = \"pilot\""), "15:13: [slurm] mode.fast: \"fast\" is not offered here; these are: batch, debug");
    refused(&modes("mode.debug = \"job\""), "15:14: unknown variant `job`, expected `direct` or `pilot`");
    refused(&modes("mode.debug = \"direct\"\nmode.batch = \"direct\""), "[pilots] without a queue");
    let jobs = modes("mode.batch = \"pilot\"").replace(PILOTS, "");
    refused(&jobs, "15:14: [slurm] mode.batch = \"pilot\" without [pilots]");
    let (_dir, path) = file(&jobs.replace("\"pilot\"", "\"direct\""));
    assert_eq!(vec!["batch", "debug"], GatewayConfig::load(&path).unwrap().lrms.unwrap().direct());
    refused(&format!("{SLURM}{PILOTS}"), "[pilots] need `account = \"self\"`");
    refused(&format!("{}{PILOTS}", GATEWAY.split("[agents]").next().unwrap()), "[pilots] without [slurm] or [gridengine]");
}
