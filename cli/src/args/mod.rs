//! The command line as clap takes it apart. Each verb parses its words once more, into types that cannot be wrong, before anything is sent.

mod admin;
mod own;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use self::admin::*;
pub use self::own::*;

/// Runs work on a grid of grids.
#[derive(Parser, Debug)]
#[command(name = "grid", version, arg_required_else_help = true, disable_help_subcommand = true, after_help = AFTER_HELP)]
pub struct Cli {
    /// Where to ask, as HOST:PORT, instead of INTERGRID_ENDPOINT or the home's config.toml.
    #[arg(long, global = true, value_name = "HOST:PORT", help_heading = GLOBAL)]
    pub endpoint: Option<String>,
    /// JSON objects for scripts: one, or one per line.
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// Heading of what every verb takes.
const GLOBAL: &str = "Global options";

const AFTER_HELP: &str = "\
Environment:
  INTERGRID_HOME      holds config.toml, ca.pem, cert.pem and key.pem
                      [default: ~/.config/intergrid]
  INTERGRID_ENDPOINT  where to ask, as HOST:PORT
  INTERGRID_LOG       what the roles log, like info or intergrid_gateway=debug
  TRACEPARENT         the W3C trace that a submission belongs to [default: a new one]
  NO_COLOR            no colour

Exit codes:
  0 well   1 the job failed or was cancelled   2 usage, or refused
  3 not authorised   4 not found   5 over a limit   6 timed out waiting
  7 endpoint unreachable; `grid run` has its own, see `grid run --help`";

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Send a job: a command, run once or as an array of tasks.
    Submit(SubmitArgs),
    /// Submit a command, print what its tasks write, and exit as it did.
    Run(RunArgs),
    /// List jobs, newest first.
    Ls(LsArgs),
    /// Show one job, or some of its tasks.
    Show(ShowArgs),
    /// Wait until jobs, or some of their tasks, have ended; exit 0 if all tasks are done, 1 if one failed or was cancelled, 6 after --timeout.
    Wait(WaitArgs),
    /// Cancel jobs, or some of their tasks.
    Cancel(CancelArgs),
    /// Put tasks that have not started on hold.
    Hold(JobsArgs),
    /// Let held tasks go on.
    Release(JobsArgs),
    /// So many tasks of an array at a time.
    Throttle(ThrottleArgs),
    /// Print what tasks have written to stdout or stderr; with -f while they run.
    Logs(LogsArgs),
    /// Bring back the outputs of all done tasks.
    Fetch(FetchArgs),
    /// Every attempt of a job's tasks: where, when, what it used, how it ended.
    History(JobArgs),
    /// Why tasks wait or failed, asked through every site below.
    Explain(JobArgs),
    /// The sites and agents of this grid.
    Hosts(HostsArgs),
    /// Machines that are rented below: what each is, costs and does.
    Machines(WatchArgs),
    /// What rented machines cost, against the caps.
    Cost(CostArgs),
    /// No new work for a site, an agent, or a site below; what runs goes on to its end.
    Drain(DrainArgs),
    /// New work again for what was drained.
    Resume(ResumeArgs),
    /// Run a whole grid of grids on this machine, render a picture on it, and stop it.
    Demo(DemoArgs),
    /// Make identities: a site's, a user's, an agent's, or this user's home.
    Init(InitArgs),
    /// A token, with which a machine can join a gateway: once, within its time.
    Token(TokenArgs),
    /// Examine a gateway's configuration, and the cluster behind it: what is wrong, and what would help.
    Doctor(DoctorArgs),
    /// Be a gateway: one domain's machines as one resource.
    Gateway(RoleArgs),
    /// Be a broker: gateways and brokers as one resource.
    Broker(RoleArgs),
    /// Be an agent: run tasks on this machine; or give one up for lost.
    Agent(AgentArgs),
    /// A script that completes this command line in a shell.
    Completion(CompletionArgs),
    /// Write the manual pages.
    Man(ManArgs),
    #[command(hide = true)]
    DemoTile(TileArgs),
    // What a gateway runs by sudo, as the account that a task runs as.
    #[command(hide = true)]
    LrmsHand(HandArgs),
}

impl Command {
    /// Serves many at once, until it is stopped.
    pub fn is_site(&self) -> bool {
        matches!(self, Command::Gateway(_) | Command::Broker(_))
    }
}

// What a job is; a doc comment here would become the help of the verbs.
#[derive(Args, Debug, Default)]
pub struct SpecArgs {
    /// Tasks of the array.
    #[arg(short = 'n', long = "tasks", value_name = "N", default_value_t = 1, value_parser = whole)]
    pub tasks: u32,
    /// The same as indices, and how many at a time: 0-63, or 0-63%8.
    #[arg(long, value_name = "0-N[%M]", conflicts_with = "tasks")]
    pub array: Option<String>,
    /// A name for people.
    #[arg(short = 'J', long = "name", value_name = "NAME")]
    pub name: Option<String>,
    /// Slots of one machine for each task.
    #[arg(short = 'c', long = "slots", value_name = "SLOTS", default_value_t = 1, value_parser = whole)]
    pub slots: u32,
    /// Memory of each task, on each of its machines, with its unit: 512M, 4G.
    #[arg(long, value_name = "SIZE")]
    pub mem: Option<String>,
    /// GPUs of each task, on each of its machines.
    #[arg(short = 'G', long, value_name = "GPUS", default_value_t = 0, value_parser = whole)]
    pub gpus: u32,
    /// Machines of each task, each with these slots, memory and GPUs: it is started on the first of them, inside of what the cluster allocated.
    #[arg(short = 'N', long, value_name = "MACHINES", default_value_t = 1, value_parser = whole)]
    pub nodes: u32,
    /// Time limit of each task, with its unit: 90s, 10m, 1h30m.
    #[arg(short = 't', long = "time", value_name = "TIME")]
    pub time: Option<String>,
    /// A variable of the tasks' environment; may be repeated.
    #[arg(long, value_name = "K=V")]
    pub env: Vec<String>,
    /// A file to have in each task's directory; may be repeated.
    #[arg(long = "in", value_name = "FILE[=NAME]")]
    pub inputs: Vec<String>,
    /// A file to bring back from each task's directory; may be repeated.
    #[arg(long = "out", value_name = "NAME")]
    pub outputs: Vec<String>,
    /// Stage the program although it is not written as ./prog.
    #[arg(long)]
    pub stage: bool,
    /// Your own key: the same key and job, sent again, are the same job [default: a random one].
    #[arg(long)]
    pub key: Option<String>,
    /// Start each task at most once: a task whose site is lost waits for it instead of running elsewhere.
    #[arg(long)]
    pub no_requeue: bool,
    /// Contact lost for longer than this counts as lost [default: 300s].
    #[arg(long, value_name = "TIME")]
    pub disconnect_timeout: Option<String>,
    /// What all tasks and attempts together may cost, with the currency: 12.50USD. It takes a time limit; 0USD: only what costs nothing.
    #[arg(long, value_name = "AMOUNT")]
    pub max_cost: Option<String>,
    /// Do not ask, even if it may cost money; what it may cost is still shown.
    #[arg(short, long)]
    pub yes: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Args, Debug, Default)]
#[command(after_help = "\
./prog is staged: sent along, once, by its content. prog and /bin/prog belong
to the site that runs the task. {i} in an argument, an environment value or an
output's name is the task index, from 0; it is also GRID_TASK_ID.
--array 0-63%8 is -n 64 with at most 8 tasks placed or running at a time.

  grid submit -- hostname
  grid submit -n 100 -c 2 --mem 4G -t 10m --in scene.dat \\
      --out 'tile-{i}.png' -- ./render --tile {i}")]
pub struct SubmitArgs {
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Do not start it before `grid release`.
    #[arg(long)]
    pub hold: bool,
    /// Wait for its end, as `grid wait` does.
    #[arg(long, conflicts_with = "hold")]
    pub wait: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "\
What a task writes to stdout and stderr is printed as it comes, of an array with
the task's index before each line, at most 16 tasks at a time; the rest when they
have ended. Ctrl-C cancels the job. What is piped into grid run stays there: a
task's stdin is empty, and what it has to read is a file, given with --in.

Exit code: the command's own; 128+n where signal n ended it; 127 where there is
no such program there, 126 where it can't be executed; of an array that of the
first task that failed; 125 where it is not the command that failed.

  grid run -- hostname
  grid run -c 4 --in scene.dat -- ./render --scene scene.dat")]
pub struct RunArgs {
    #[command(flatten)]
    pub spec: SpecArgs,
}

#[derive(Args, Debug)]
pub struct LsArgs {
    /// At most so many.
    #[arg(short = 'n', long, value_name = "LIMIT", default_value_t = 20, value_parser = whole)]
    pub limit: u32,
    /// Again every second, until it is stopped.
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Args, Debug)]
pub struct ShowArgs {
    /// A job: its id, a unique prefix of it, or `last`; tasks of it as JOB[3] or JOB[0-9,12].
    pub job: String,
    /// Again every second, until it has ended.
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Args, Debug)]
pub struct JobArgs {
    /// A job: its id, a unique prefix of it, or `last`; tasks of it as JOB[3] or JOB[0-9,12].
    pub job: String,
}

#[derive(Args, Debug)]
pub struct JobsArgs {
    /// Jobs: ids, unique prefixes, or `last`; tasks as JOB[3] or JOB[0-9,12].
    #[arg(required = true, value_name = "JOB")]
    pub jobs: Vec<String>,
}

#[derive(Args, Debug)]
pub struct CancelArgs {
    /// Jobs: ids, unique prefixes, or `last`; tasks as JOB[3] or JOB[0-9,12].
    #[arg(required = true, value_name = "JOB")]
    pub jobs: Vec<String>,
    /// End them here at once, also those at sites that can't be reached: what may still run there is stopped when they are back.
    #[arg(long)]
    pub force: bool,
}

#[derive(Args, Debug)]
pub struct WaitArgs {
    /// Jobs: ids, unique prefixes, or `last`; tasks as JOB[3] or JOB[0-9,12].
    #[arg(required = true, value_name = "JOB")]
    pub jobs: Vec<String>,
    /// Wait no longer than this: 30s, 10m.
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,
}

#[derive(Args, Debug)]
pub struct LogsArgs {
    /// A job, and tasks of it as JOB[3], JOB.3 or JOB[0-9,12]; without any: task 0. Of several, each line begins with its task.
    pub job: String,
    /// Follow tasks that have not ended: what they print as they do, the first 16 that run at a time.
    #[arg(short, long)]
    pub follow: bool,
    /// Its stderr instead of its stdout.
    #[arg(long)]
    pub stderr: bool,
}

#[derive(Args, Debug)]
pub struct FetchArgs {
    /// A job: its id, a unique prefix of it, or `last`; tasks of it as JOB[3] or JOB[0-9,12].
    pub job: String,
    /// Where to put them.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// Of this task only.
    #[arg(long, value_name = "INDEX")]
    pub task: Option<u32>,
}

#[derive(Args, Debug)]
pub struct HostsArgs {
    /// As a tree.
    #[arg(long)]
    pub tree: bool,
    /// Again every second, until it is stopped.
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Args, Debug)]
pub struct WatchArgs {
    /// Again every second, until it is stopped.
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Args, Debug)]
pub struct CostArgs {
    /// Again every second, until it is stopped.
    #[arg(short, long, visible_alias = "watch")]
    pub live: bool,
}

/// A number of tasks, slots or jobs; how many there may be is said where it is used.
fn whole(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| match !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        true => "that is too many".to_owned(),
        false => "write a whole number, like 100".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_keeps_its_own_options() {
        let cli = Cli::try_parse_from(["grid", "submit", "-n", "4", "--json", "--", "./render", "--json", "-n", "{i}"]).unwrap();
        let Command::Submit(submit) = cli.command else { panic!("not submit") };
        assert_eq!(
            (4, true, vec!["./render", "--json", "-n", "{i}"]),
            (submit.spec.tasks, cli.json, submit.spec.command.iter().map(String::as_str).collect())
        );
        assert!(Cli::try_parse_from(["grid", "submit", "hostname"]).is_err(), "a command without -- might be a mistyped option");
    }
}
