//! `init gateway --backend slurm`: looks at the cluster and writes an identity and a configuration that offers what is there. `grid doctor` examines the
//! result. Nothing that exists is overwritten.

use std::io::Write;
use std::path::Path;

use intergrid_lrms::lrms::{Lrms, Queue};
use intergrid_lrms::slurm::sinfo::Controller;
use intergrid_lrms::slurm::{Slurm, SlurmConfig};
use intergrid_proto::net::identity::check_label;
use intergrid_proto::net::issue;
use intergrid_proto::{Refusal, RefusalKind, units};
use serde_json::json;

use crate::args::InitGatewayArgs;
use crate::out::Out;
use crate::stop::{Ending, Result, local};

/// Of a gateway's configuration.
const CONFIG: &str = "gateway.toml";
const IDENTITY: &str = "identity";

/// Look, write, and say what is next.
pub async fn init(args: InitGatewayArgs, out: &Out) -> Result<Ending> {
    let file = args.dir.join(CONFIG);
    if file.exists() {
        return Err(local(format!("{} exists already", file.display())).remedy("remove it, or name another directory").into());
    }
    check_label(&args.name)?;
    let slurm = Slurm::new(SlurmConfig { commands: args.commands.clone(), ..SlurmConfig::default() });
    let asked = |e: intergrid_lrms::command::CallFailure| {
        Refusal::new(RefusalKind::Unavailable, format!("slurm: {e}")).remedy("run this where sinfo and scontrol work, or give --commands DIR")
    };
    let controller = slurm.controller().await.map_err(asked)?;
    let queues = slurm.queues().await.map_err(asked)?;
    let commands = args.commands.as_deref().map(|dir| dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf()));
    let text = text(&args.name, &args.shared, commands.as_deref(), &controller, &queues)?;
    let identity = args.dir.join(IDENTITY);
    if !identity.exists() {
        issue::new_site(&identity, &args.name, &[])?;
    }
    std::fs::File::create_new(&file)
        .and_then(|mut f| f.write_all(text.as_bytes()))
        .map_err(|e| local(format!("{} can't be written: {e}", file.display())))?;
    let next = format!("grid doctor --config {0}, then grid gateway --config {0}", file.display());
    if out.json {
        out.object(json!({"made": "gateway", "name": args.name, "dir": args.dir, "config": file, "queues": queues.len()}))?;
    } else {
        out.line(format!("gateway {} in {}: {} partitions of slurm {}", args.name, file.display(), queues.len(), version(&controller)))?;
        out.next(format!("next: {next}"))?;
    }
    Ok(Ending::Well)
}

fn version(controller: &Controller) -> &str {
    controller.get("SLURM_VERSION").unwrap_or("of unknown version")
}

/// The configuration. Words of the cluster are quoted or commented out; what can't be offered is left out.
fn text(name: &str, shared: &Path, commands: Option<&Path>, controller: &Controller, queues: &[Queue]) -> Result<String, Refusal> {
    let offered: Vec<&Queue> = queues.iter().filter(|q| q.machine_slots > 0).collect();
    if offered.is_empty() {
        return Err(Refusal::invalid("slurm has no partition with machines").remedy("see `sinfo`"));
    }
    let quoted = |text: &str| toml::Value::String(text.to_string()).to_string();
    let path = |path: &Path| path.to_str().map(quoted).ok_or_else(|| Refusal::invalid(format!("{}: not UTF-8", path.display())));
    let names: Vec<String> = offered.iter().map(|q| quoted(&q.name)).collect();
    let seen: String = offered.iter().map(|q| format!("# {}: {}\n", plain(&q.name), described(q))).collect();
    let commands = commands.map(|dir| Ok::<_, Refusal>(format!("commands = {}\n", path(dir)?))).transpose()?.unwrap_or_default();
    let records = match jobcomp_records(controller) {
        Some(dir) => format!("records = {}\n", path(&dir)?),
        None if controller.get("AccountingStorageType") == Some("accounting_storage/slurmdbd") => {
            "accounting = true   # sacct is asked\n".to_string()
        }
        None => "# records = \"/var/lib/intergrid-slurm/records\"   # completion records, see deploy/slurm/jobcomp\n".to_string(),
    };
    Ok(format!(
        "\
# A gateway in front of Slurm {version}. Paths are relative to this file. `grid doctor --config gateway.toml` examines it.

name = {name}
listen = \"0.0.0.0:7411\"
state = \"state\"
identity = \"{IDENTITY}\"

[[trust]]
ca = \"{IDENTITY}/ca.pem\"
may = [\"user\", \"admin\"]

# The broker above, which places work here for its own users.
# [[trust]]
# ca = \"broker-ca.pem\"
# may = [\"delegate\"]
# on_behalf = [\"*\"]

{seen}[slurm]
partitions = [{names}]
directory = {directory}   # on the file system that all machines share
account = \"self\"   # all tasks run as the gateway's own account; see docs/slurm.md for [[map]]
{commands}{records}
# [slurm.limits]
# ceiling_percent = 50   # of each partition's slots
# time_max = \"24h\"
",
        version = plain(version(controller)),
        name = quoted(name),
        names = names.join(", "),
        directory = path(shared)?,
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
fn jobcomp_records(controller: &Controller) -> Option<std::path::PathBuf> {
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
        let text = text("campus", Path::new("/shared/a \"b\""), None, &controller, &queues).unwrap();
        let table: toml::Table = text.parse().unwrap();
        let names: Vec<_> = table["slurm"]["partitions"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        assert_eq!((vec!["batch", "odd\"name"], Some("/shared/a \"b\"")), (names, table["slurm"]["directory"].as_str()));
        assert!((20..=40).contains(&text.lines().count()), "{text}");
        assert!(super::text("campus", Path::new("/s"), None, &controller, &queues[2..]).is_err());
    }
}
