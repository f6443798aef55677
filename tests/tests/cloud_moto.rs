//! A gateway that rents at EC2, end to end: the real program, the real SDK, a real moto server, and machines that run what they are told: a real agent joins with
//! its token, and works. `grid` must be built with `--features intergrid-cli/ec2`.

#[allow(dead_code)]
#[path = "faults/tree.rs"]
mod tree;
#[allow(dead_code)]
#[path = "faults/user.rs"]
mod user;

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use intergrid_proto::net::Identity;
use intergrid_tests::ec2::{CREDENTIALS, Fault, Machines, Moto, Proxy};

use tree::{Tree, binary, until};
use user::User;

const PATIENCE: Duration = Duration::from_secs(60);
const PRICE: f64 = 0.096;

/// Fields are dropped in order: first who rents, then the machines, then what they were rented from.
struct World {
    tree: Tree,
    user: User,
    machines: Machines,
    proxy: Arc<Proxy>,
    moto: Arc<Moto>,
}

impl World {
    /// `burst` rents machines of one slot; `agent` says where these get their agent, and is empty where it is in the image. There `URL` is the proxy.
    fn new(environment: &[(&str, &str)], cloud: &str, agent: &str) -> World {
        let moto = Arc::new(Moto::start());
        let proxy = Proxy::to(&moto);
        let machines = Machines::of(&moto, Duration::from_millis(300), binary("grid-agent").parent().unwrap());
        let mut tree = Tree::new().with_environment(environment);
        let at = format!("127.0.0.1:{}", intergrid_tests::slurm::ports(1)[0]);
        tree.listen("burst", &at);
        proxy.serve_file(binary("grid-agent"));
        let agent = agent.replace("URL", &proxy.url());
        let config = format!(
            "\n[cloud]\nprovider = \"ec2\"\nidle = \"2s\"\ncurrency = \"USD\"\n{cloud}\n[cloud.ec2]\nregion = \"us-east-1\"\nendpoint_url = \"{}\"\ngateway = \"{at}\"\nami = \"{}\"\n{agent}\n\
             [[cloud.type]]\nname = \"t3.small\"\nslots = 1\nmemory = \"64M\"\nprice = \"{PRICE}\"\nbilling = \"second\"\nmin_seconds = 1\n",
            proxy.url(),
            moto.image()
        );
        tree.gateway("burst", None, &config);
        let user = tree.user("burst");
        World { tree, user, machines, proxy, moto }
    }

    fn submit(&self, tasks: u32, sleep: &str) -> String {
        let env = format!("DIR={}", self.tree.path("dir").display());
        let script = format!("echo \"$GRID_TASK_ID\" >> \"$DIR/starts\"; sleep {sleep}");
        self.user.submit(&["--yes", "-n", &tasks.to_string(), "--env", &env, "--", "/bin/sh", "-c", &script])
    }

    fn done(&self, job: &str) {
        assert_eq!(0, self.user.wait(job), "{:?}\n{}\n{:?}", self.user.run(&["explain", job]), self.tree.log("burst"), self.machines.logs());
    }

    /// No instance costs any more, and the gateway knows it.
    fn until_none(&self) {
        until("all machines are gone", PATIENCE, || match self.moto.running() {
            running if running.is_empty() => Ok(()),
            running => Err(format!("{running:?} are there; {}", self.user.run(&["machines"]).out)),
        });
    }

    fn per_hour(&self) -> f64 {
        let said = self.user.json(&["cost"]);
        said["budgets"][0]["per_hour"].as_str().and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{said}"))
    }
}

fn sha256(file: &std::path::Path) -> String {
    let said = Command::new("sha256sum").arg(file).output().unwrap();
    String::from_utf8(said.stdout).unwrap().split(' ').next().unwrap().to_string()
}

#[test]
fn moto_machines_come_join_work_and_go() {
    let agent = format!("agent = {{ url = \"URL/file\", sha256 = \"{}\" }}", sha256(&binary("grid-agent")));
    let w = World::new(&CREDENTIALS, "slots_max = 2\nbudget = { hour = \"1\" }", &agent);
    w.user.until_slots(2, PATIENCE);
    assert!(w.moto.instances().is_empty(), "offered, and not there");
    let job = w.submit(3, "1");
    w.user.until_phase(&job, "running", 1);
    let there = w.user.json(&["machines"])["machines"].as_array().unwrap().clone();
    let launched: BTreeSet<String> = w.proxy.launched().into_iter().map(|l| l.id).collect();
    assert!(there.iter().all(|m| m["type"] == "t3.small") && (1..=2).contains(&there.len()), "{there:?}");
    assert!(launched.iter().any(|id| there.iter().any(|m| m.to_string().contains(id.as_str()))), "{launched:?}: {there:?}");
    w.done(&job);
    assert_eq!(3, fs::read_to_string(w.tree.path("dir").join("starts")).unwrap().lines().count());
    w.until_none();
    assert!((1..=2).contains(&w.proxy.launched().len()));
    until("the gateway knows it", PATIENCE, || match w.per_hour() {
        rate if rate < 1e-9 => Ok(()),
        rate => Err(rate.to_string()),
    });
    let log = w.tree.log("burst");
    for secret in ["PRIVATE KEY", CREDENTIALS[1].1] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    let kept = Command::new("grep").args(["-rlF", CREDENTIALS[1].1]).arg(w.tree.path("burst")).output().unwrap();
    assert_eq!("", String::from_utf8_lossy(&kept.stdout), "credentials are in no file of the gateway");
    for (id, log) in w.machines.logs() {
        assert!(!log.contains("PRIVATE KEY") && !log.contains("switches itself off"), "{id}: {log}");
    }
}

#[test]
fn moto_a_machine_that_is_not_as_it_should_be_switches_itself_off() {
    let agent = format!("agent = {{ url = \"URL/file\", sha256 = \"{}\" }}", "0".repeat(64));
    let w = World::new(&CREDENTIALS, "slots_max = 1\nbudget = { hour = \"1\" }", &agent);
    w.user.until_slots(1, PATIENCE);
    let job = w.submit(1, "0");
    until("the machine is off", PATIENCE, || {
        let off = w.moto.instances().iter().any(|(_, state)| state == "terminated");
        match w.machines.logs().values().any(|log| log.contains("is not what it should be")) && off {
            true => Ok(()),
            false => Err(format!("{:?}", w.machines.logs())),
        }
    });
    w.user.run(&["cancel", &job]).well();
    w.until_none();
}

/// A notice as EC2 gives it.
const NOTICE: &str = "{\"action\": \"terminate\", \"time\": \"2026-11-21T08:22:00Z\"}";
/// The same, as it is passed on.
const WORD: &str = "the provider takes this machine back: terminate at 2026-11-21T08:22:00Z";

#[test]
fn moto_a_spot_machine_that_is_taken_back_says_so_and_its_task_runs_elsewhere() {
    // Cheaper, and too small for the task.
    let nano = "[[cloud.type]]\nname = \"t3.nano\"\nslots = 1\nmemory = \"16M\"\nprice = \"0.01\"\nbilling = \"second\"\n";
    let w = World::new(&CREDENTIALS, "slots_max = 2\nbudget = { hour = \"1\" }", &format!("market = \"spot\"\nnotices = \"URL\"\n{nano}"));
    w.user.until_slots(2, PATIENCE);
    let starts = || fs::read_to_string(w.tree.path("dir").join("starts")).unwrap_or_default().lines().count();
    // Its first start ends with its machine only.
    let env = format!("DIR={}", w.tree.path("dir").display());
    let script = "echo \"$GRID_ATTEMPT\" >> \"$DIR/starts\"; [ \"$(wc -l < \"$DIR/starts\")\" -gt 1 ] || exec sleep 600";
    let job = w.user.submit(&["--yes", "--mem", "48M", "-t", "30m", "--env", &env, "--", "/bin/sh", "-c", script]);
    until("it runs", PATIENCE, || match starts() {
        1 => Ok(()),
        n => Err(format!("{n} starts; {:?}\n{:?}", w.user.run(&["explain", &job]), w.machines.logs())),
    });
    let first = w.moto.running();
    assert_eq!(1, first.len());
    w.proxy.notice(Some(NOTICE));
    until("it is said why nothing more is begun there", PATIENCE, || {
        let (host, machine) = (w.user.json(&["hosts"])["below"][0].clone(), w.user.json(&["machines"])["machines"][0].clone());
        let is_told = host["draining"]["text"] == WORD && machine["state"] == format!("takes no new work: {WORD}");
        if is_told { Ok(()) } else { Err(format!("{host}\n{machine}")) }
    });
    w.user.until_phase(&job, "running", 1);
    assert_eq!((1, first.clone()), (starts(), w.moto.running()), "what runs has its two minutes");
    // Then EC2 ends it, whatever runs; nobody says this to the next one.
    w.proxy.notice(None);
    w.moto.ask("TerminateInstances", &[("InstanceId.1", &first[0])]);
    w.done(&job);
    assert_eq!(2, starts());
    let types: Vec<String> = w.proxy.launched().into_iter().map(|l| l.fields["InstanceType"].clone()).collect();
    assert_eq!(vec!["t3.small"; 2], types, "it asks for what it asked for before");
    let attempts = w.user.json_lines(&["history", &job]);
    let lost: Vec<_> = attempts.iter().filter(|a| a["lost"] == true).collect();
    assert!(lost.len() == 1 && lost[0]["reason"]["text"].as_str().is_some_and(|text| text.contains(WORD)), "{attempts:?}");
    w.until_none();
    // What spot machines cost was asked for while they ran, and nothing else than the policy in deploy/ allows was called.
    let policy: serde_json::Value = serde_json::from_str(include_str!("../../deploy/ec2/iam-policy.json")).unwrap();
    let of = |s: &serde_json::Value| s["Action"].as_array().cloned().unwrap_or_else(|| vec![s["Action"].clone()]);
    let mut allowed: BTreeSet<String> =
        policy["Statement"].as_array().unwrap().iter().flat_map(of).map(|a| a.as_str().unwrap().to_string()).collect();
    // Tags are put on by the launch; sizes are in this configuration.
    ["ec2:CreateTags", "ec2:DescribeInstanceTypes"].iter().for_each(|of_a_launch| assert!(allowed.remove(*of_a_launch)));
    assert_eq!(allowed, w.proxy.actions().iter().map(|action| format!("ec2:{action}")).collect());
}

#[test]
fn moto_without_credentials_nothing_is_launched_and_it_is_said() {
    let w = World::new(&CREDENTIALS[2..], "slots_max = 1\nbudget = { hour = \"1\" }", "");
    let job = until("it takes a job", PATIENCE, || Ok::<_, String>(w.submit(1, "0")));
    let said = until("what is missing is named", PATIENCE, || match w.user.run(&["explain", &job]).well() {
        said if said.contains("no credentials") => Ok(said),
        said => Err(said),
    });
    assert!(said.contains("~/.aws"), "{said}");
    assert_eq!((0, 0), (w.proxy.calls("RunInstances"), w.moto.instances().len()));
    assert_eq!(0.0, w.per_hour());
}

#[test]
fn moto_is_examined_before_it_is_needed() {
    let w = World::new(&CREDENTIALS, "slots_max = 1\nbudget = { hour = \"1\" }", "");
    let config = w.tree.config("burst");
    let doctor = |credentials: &[(&str, &str)]| {
        let mut grid = user::grid(&["doctor", "--config", config.to_str().unwrap()]);
        let said = grid.env_clear().envs(credentials.iter().copied()).output().unwrap();
        (said.status.code(), String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr))
    };
    let (code, said) = doctor(&CREDENTIALS);
    assert!(code == Some(0) && said.contains("would be launched, at 0.096 USD an hour at most"), "{code:?}: {said}");
    let (code, said) = doctor(&CREDENTIALS[2..]);
    assert!(code == Some(1) && said.contains("no credentials"), "{code:?}: {said}");
    w.proxy.next("RunInstances", Fault::Refuse(400, "InvalidAMIID.NotFound"));
    let (code, said) = doctor(&CREDENTIALS);
    assert!(code == Some(1) && said.contains("correct `ami`"), "{code:?}: {said}");
    assert!(w.moto.instances().is_empty(), "nothing was launched");
}

#[test]
fn moto_machines_end_by_themselves_when_nobody_is_left() {
    let mut w = World::new(&CREDENTIALS, "slots_max = 2\nalone = \"3s\"\nbudget = { hour = \"1\" }", "");
    w.user.until_slots(2, PATIENCE);
    let job = w.submit(2, "4");
    w.user.until_phase(&job, "running", 2);
    w.tree.kill("burst");
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(2, w.moto.running().len(), "their work goes on");
    until("all machines are gone", PATIENCE, || match w.moto.running() {
        running if running.is_empty() => Ok(()),
        running => Err(format!("{running:?} are there: {:?}", w.machines.logs())),
    });
    assert_eq!(2, fs::read_to_string(w.tree.path("dir").join("starts")).unwrap().lines().count());
}

#[test]
fn moto_what_nobody_knows_is_ended_and_what_is_not_ours_is_left() {
    let mut w = World::new(&CREDENTIALS, "slots_max = 1\nbudget = { hour = \"1\" }", "");
    w.tree.kill("burst");
    let me = Identity::load(w.tree.identity("burst")).unwrap().id().to_string();
    let stranger = |gateway: &str| {
        let tag = [("TagSpecification.1.Tag.1.Key", "intergrid:gateway"), ("TagSpecification.1.Tag.1.Value", gateway)];
        let more = [
            ("TagSpecification.1.Tag.2.Key", "intergrid:number"),
            ("TagSpecification.1.Tag.2.Value", "777"),
            ("TagSpecification.1.ResourceType", "instance"),
        ];
        let image = w.moto.image();
        let call = [("ImageId", image.as_str()), ("MinCount", "1"), ("MaxCount", "1")];
        let said = w.moto.ask("RunInstances", &[&call[..], &tag, &more].concat());
        intergrid_tests::ec2::first(&said, "instanceId").unwrap()
    };
    let (ours, other) = (stranger(&me), stranger("0f".repeat(16).as_str()));
    w.tree.start("burst");
    until("what bears our tag, and no intent made, is ended", 2 * PATIENCE, || match w.moto.running() {
        running if !running.contains(&ours) => Ok(()),
        running => Err(format!("{running:?}")),
    });
    assert_eq!(vec![other], w.moto.running());
}

/// When the gateway is killed, as seen from its next launch.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The token is written, the call is about to be made.
    Before,
    /// The call has arrived.
    During,
    /// It is done.
    After,
    /// The machine boots.
    Booting,
}

/// kill -9 at every step of a launch, where EC2 behaves like this: no orphan, nothing beyond the demand, and nothing beyond the cap.
fn killed_while(faults: [Fault; 2]) {
    const CAP: usize = 3;
    let mut w = World::new(&CREDENTIALS, &format!("slots_max = 9\nbudget = {{ hour = \"{:.3}\" }}", CAP as f64 * PRICE), "");
    w.user.until_slots(CAP as u64, PATIENCE);
    let tokens = w.tree.path("burst").join("state/tokens");
    let mut ran = 0;
    // The demand is the limit, or the cap is.
    for (step, tasks) in [(Step::Before, 2), (Step::During, 2), (Step::After, 6), (Step::Booting, 2)] {
        let (launched, calls) = (w.proxy.launched().len(), w.proxy.calls("RunInstances"));
        faults.iter().for_each(|fault| w.proxy.next("RunInstances", *fault));
        let has_tokens = fs::read_dir(&tokens).map_or(0, Iterator::count);
        let job = w.submit(tasks, "0.5");
        until(&format!("{step:?}"), PATIENCE, || {
            let there = match step {
                Step::Before => fs::read_dir(&tokens).map_or(0, Iterator::count) > has_tokens,
                Step::During => w.proxy.calls("RunInstances") > calls,
                Step::After => w.proxy.launched().len() > launched,
                Step::Booting => w.machines.logs().len() > launched,
            };
            if there { Ok(()) } else { Err("not there".into()) }
        });
        w.tree.kill("burst");
        w.tree.start("burst");
        assert!(w.per_hour() <= CAP as f64 * PRICE + 1e-9, "{step:?}: more than the cap is reserved");
        w.done(&job);
        ran += tasks as usize;
        assert!(w.per_hour() <= CAP as f64 * PRICE + 1e-9, "{step:?}: more than the cap is reserved");
        w.until_none();
        w.proxy.forget();
        let new = w.proxy.launched().len() - launched;
        assert!((1..=CAP.min(tasks as usize)).contains(&new), "{step:?}: {new} were launched for {tasks} tasks\n{}", w.tree.log("burst"));
        assert_eq!(
            w.proxy.launched().len(),
            w.moto.instances().len(),
            "{step:?}: what was launched was launched through the proxy, once for each intent"
        );
    }
    let starts = fs::read_to_string(w.tree.path("dir").join("starts")).unwrap();
    assert_eq!(ran, starts.lines().count(), "each task once");
}

#[test]
fn moto_killed_at_every_step_where_it_comes_late() {
    killed_while([Fault::LateAnswer(Duration::from_secs(2)), Fault::LateArrival(Duration::from_secs(3))]);
}

#[test]
fn moto_killed_at_every_step_where_it_comes_twice() {
    killed_while([Fault::Twice, Fault::Twice]);
}

#[test]
fn moto_killed_at_every_step_where_success_is_a_500() {
    killed_while([Fault::Then500, Fault::ThenCut]);
}
