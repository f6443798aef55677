//! `init gateway --backend slurm|gridengine`: looks at the cluster and writes an identity and a configuration that offers what is there. `grid doctor` examines
//! the result. Nothing that exists is overwritten.

use std::io::Write;
use std::path::{Path, PathBuf};

use intergrid_lrms::command::{Account, CallFailure};
use intergrid_lrms::gridengine::settings::Settings;
use intergrid_lrms::gridengine::{self, GridEngine, GridEngineConfig};
use intergrid_lrms::lrms::{Lrms, Queue};
use intergrid_lrms::slurm::sinfo::Controller;
use intergrid_lrms::slurm::{Slurm, SlurmConfig};
use intergrid_proto::net::identity::check_label;
use intergrid_proto::net::issue;
use intergrid_proto::{Refusal, RefusalKind, units};
use serde_json::json;

use crate::args::{Cluster, InitGatewayArgs};
use crate::out::Out;
use crate::stop::{Ending, Result, local};

/// Of a gateway's configuration.
const CONFIG: &str = "gateway.toml";
const IDENTITY: &str = "identity";

/// What was seen of a cluster.
#[derive(Default)]
struct Seen {
    /// With its version, where it says so.
    name: String,
    /// As the section is called.
    section: &'static str,
    /// As queues are called there.
    queues_are: &'static str,
    queues: Vec<Queue>,
    /// Further lines of the section.
    lines: String,
}

/// Look, write, and say what is next.
pub async fn init(args: InitGatewayArgs, out: &Out) -> Result<Ending> {
    let file = args.dir.join(CONFIG);
    if file.exists() {
        return Err(local(format!("{} exists already", file.display())).remedy("remove it, or name another directory").into());
    }
    check_label(&args.name)?;
    let seen = match args.backend {
        Cluster::Slurm => of_slurm(&args).await?,
        Cluster::GridEngine => of_grid_engine(&args).await?,
    };
    let text = text(&args.name, &args.shared, &seen)?;
    let identity = args.dir.join(IDENTITY);
    if !identity.exists() {
        issue::new_site(&identity, &args.name, &[])?;
    }
    std::fs::File::create_new(&file)
        .and_then(|mut f| f.write_all(text.as_bytes()))
        .map_err(|e| local(format!("{} can't be written: {e}", file.display())))?;
    let next = format!("grid doctor --config {0}, then grid gateway --config {0}", file.display());
    let queues = seen.queues.len();
    if out.json {
        out.object(json!({"made": "gateway", "name": args.name, "dir": args.dir, "config": file, "queues": queues}))?;
    } else {
        out.line(format!("gateway {} in {}: {queues} {} of {}", args.name, file.display(), seen.queues_are, plain(&seen.name)))?;
        out.next(format!("next: {next}"))?;
    }
    Ok(Ending::Well)
}

async fn of_slurm(args: &InitGatewayArgs) -> Result<Seen, Refusal> {
    let slurm = Slurm::new(SlurmConfig { commands: args.commands.clone(), conf: args.conf.clone(), ..SlurmConfig::default() });
    let asked = |e: CallFailure| {
        Refusal::new(RefusalKind::Unavailable, format!("slurm: {e}")).remedy("run this where sinfo and scontrol work, or give --commands DIR")
    };
    let controller = slurm.controller().await.map_err(asked)?;
    let queues = slurm.queues().await.map_err(asked)?;
    slurm_seen(&controller, queues, &paths(args)?)
}

fn slurm_seen(controller: &Controller, queues: Vec<Queue>, paths: &str) -> Result<Seen, Refusal> {
    let records = match jobcomp_records(controller) {
        Some(dir) => format!("records = {}\n", path(&dir)?),
        None if controller.get("AccountingStorageType") == Some("accounting_storage/slurmdbd") => {
            "accounting = true   # sacct is asked\n".to_string()
        }
        None => "# records = \"/var/lib/intergrid-slurm/records\"   # completion records, see deploy/slurm/jobcomp\n".to_string(),
    };
    let name = format!("Slurm {}", controller.get("SLURM_VERSION").unwrap_or("of unknown version"));
    Ok(Seen { name, section: "slurm", queues_are: "partitions", queues, lines: format!("{paths}{records}") })
}

async fn of_grid_engine(args: &InitGatewayArgs) -> Result<Seen, Refusal> {
    let asked = |e: CallFailure| {
        let remedy = "run this where qhost and qconf work, after `. $SGE_ROOT/$SGE_CELL/common/settings.sh`, or give --commands DIR and --conf FILE";
        Refusal::new(RefusalKind::Unavailable, format!("gridengine: {e}")).remedy(remedy)
    };
    let settings = match &args.conf {
        Some(conf) => Settings::read(conf)?,
        None => Settings::of_environment(|name| std::env::var(name).ok()),
    };
    // What a gateway is started with later may be another environment.
    let conf = args.conf.clone().or_else(|| Some(settings.accounting().with_file_name("settings.sh")).filter(|file| file.is_file()));
    let mut config = GridEngineConfig { commands: args.commands.clone(), accounting: settings.accounting(), settings, ..GridEngineConfig::default() };
    let queues = GridEngine::new(config.clone()).queues().await.map_err(asked)?;
    config.queues = queues.into_iter().map(|q| q.name).collect();
    config.terms.environment = gridengine::doctor::environment_on_one_machine(&GridEngine::new(config.clone())).await.map_err(asked)?;
    let engine = GridEngine::new(config.clone());
    let mut queues = engine.queues().await.map_err(asked)?;
    // Of lists that can't be read nothing is known; the doctor says so.
    for denied in gridengine::access::of(&engine, &[Account::Own]).await.unwrap_or_default() {
        queues.iter_mut().filter(|q| q.name == denied.queue).for_each(|q| (q.machine_slots, q.closed) = (0, Some(denied.why.clone())));
    }
    let slots = match &config.terms.environment {
        Some(name) => format!("parallel_environment = {}   # for tasks with several slots\n", quoted(name)),
        None => "# parallel_environment = \"smp\"   # for tasks with several slots: one whose allocation_rule is $pe_slots\n".to_string(),
    };
    let gpus = match gridengine::doctor::gpu_complex(&config).await.map_err(asked)? {
        Some(name) => format!("gpu_complex = {}   # counts GPUs\n", quoted(&name)),
        None => "# gpu_complex = \"gpu\"   # the consumable complex that counts GPUs here\n".to_string(),
    };
    let memory = "# memory = \"h_vmem\"   # the resource that bounds memory here\n";
    let paths = paths(&InitGatewayArgs { conf, ..args.clone() })?;
    Ok(Seen { name: "Grid Engine".into(), section: "gridengine", queues_are: "queues", queues, lines: format!("{paths}{slots}{memory}{gpus}") })
}

/// Where its commands and its configuration are, where that was said.
fn paths(args: &InitGatewayArgs) -> Result<String, Refusal> {
    let mut lines = String::new();
    for (name, said) in [("commands", &args.commands), ("conf", &args.conf)] {
        if let Some(said) = said {
            lines += &format!("{name} = {}\n", path(&said.canonicalize().unwrap_or_else(|_| PathBuf::from(said)))?);
        }
    }
    Ok(lines)
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_string()).to_string()
}

fn path(path: &Path) -> Result<String, Refusal> {
    path.to_str().map(quoted).ok_or_else(|| Refusal::invalid(format!("{}: not UTF-8", path.display())))
}

/// The configuration. Words of the cluster are quoted or commented out; what can't be offered is left out.
fn text(name: &str, shared: &Path, cluster: &Seen) -> Result<String, Refusal> {
    let Seen { section, queues_are, .. } = cluster;
    let offered: Vec<&Queue> = cluster.queues.iter().filter(|q| q.machine_slots > 0).collect();
    if offered.is_empty() {
        return Err(Refusal::invalid(format!("{section} has no {queues_are} with machines")).remedy("see `sinfo`, or `qhost -q`"));
    }
    let names: Vec<String> = offered.iter().map(|q| quoted(&q.name)).collect();
    let left = cluster.queues.iter().filter(|q| q.machine_slots == 0);
    let left = left.filter_map(|q| Some(format!("# {} is left out: {}\n", plain(&q.name), plain(q.closed.as_deref()?))));
    let seen: String = offered.iter().map(|q| format!("# {}: {}\n", plain(&q.name), described(q))).chain(left).collect();
    Ok(format!(
        "\
# A gateway in front of {version}. Paths are relative to this file. `grid doctor --config gateway.toml` examines it.

name = {name}
listen = \"0.0.0.0:7411\"
state = \"state\"
identity = \"{IDENTITY}\"

[[trust]]
ca = \"{IDENTITY}/ca.pem\"
may = [\"user\", \"admin\"]   # and \"agent\", which [pilots] need

# The broker above, which places work here for its own users.
# [[trust]]
# ca = \"broker-ca.pem\"
# may = [\"delegate\"]
# on_behalf = [\"*\"]

{seen}[{section}]
{queues_are} = [{names}]
directory = {directory}   # on the file system that all machines share
account = \"self\"   # all tasks run as the gateway's own account; see docs/{section}.md for [[map]]
{lines}
# [{section}.limits]
# ceiling_percent = 50   # of the slots of each
# time_max = \"24h\"
",
        version = plain(&cluster.name),
        name = quoted(name),
        names = names.join(", "),
        directory = path(shared)?,
        lines = cluster.lines,
    ))
}

/// On one line of a comment.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

fn described(q: &Queue) -> String {
    let longest = q.time_max_ms.map_or("tasks of any length".to_string(), |ms| format!("tasks of up to {}", units::format_duration(ms)));
    let closed = q.closed.as_deref().map(|why| format!("; {}", plain(why))).unwrap_or_default();
    format!("{} slots on {} machines of up to {}, {longest}{closed}", q.slots_total, q.machines, q.machine_slots)
}

/// Of our completion program, where the controller runs it and we can read what it writes.
fn jobcomp_records(controller: &Controller) -> Option<PathBuf> {
    let program = controller.get("JobCompLoc").filter(|_| controller.get("JobCompType") == Some("jobcomp/script"))?;
    let dir = Path::new(program).parent()?.join("records");
    std::fs::read_dir(&dir).is_ok().then_some(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_toml_of_about_thirty_lines() {
        let queue = |name: &str, slots| Queue { name: name.into(), machine_slots: slots, machines: 4, slots_total: 16, ..Queue::default() };
        let controller = Controller::parse("SLURM_VERSION = 22.05.8\nJobCompType = jobcomp/none\n");
        let queues = [queue("batch", 4), queue("odd\"name", 4), queue("empty", 0)];
        let seen = |queues: &[Queue]| slurm_seen(&controller, queues.to_vec(), "").unwrap();
        let text = text("campus", Path::new("/shared/a \"b\""), &seen(&queues)).unwrap();
        let table: toml::Table = text.parse().unwrap();
        let names: Vec<_> = table["slurm"]["partitions"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        assert!(text.contains("\"agent\", which [pilots] need"), "{text}");
        assert_eq!((vec!["batch", "odd\"name"], Some("/shared/a \"b\"")), (names, table["slurm"]["directory"].as_str()));
        assert!((20..=40).contains(&text.lines().count()), "{text}");
        assert!(super::text("campus", Path::new("/s"), &seen(&queues[2..])).is_err());
        let refused = Queue { closed: Some("ann is in\nnone of its user_lists: physics".into()), ..queue("physics", 0) };
        let text = super::text("campus", Path::new("/s"), &seen(&[queue("batch", 4), refused])).unwrap();
        assert!(text.contains("\n# physics is left out: ann is innone of its user_lists: physics\n"), "{text}");
        assert!(text.contains("\npartitions = [\"batch\"]\n"), "{text}");
    }
}
