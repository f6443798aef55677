//! The command line of administrators: who takes no new work, what is lost.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::RoleArgs;

#[derive(Args, Debug)]
#[command(after_help = "\
What runs goes on to its end; what waits goes to others, or waits with this
reason in `grid explain`. It holds over restarts, until `grid resume`.

  grid drain campus-3 --reason 'new disk, back at 14:00'
  grid hosts --tree
  grid resume campus-3")]
pub struct DrainArgs {
    /// The site asked, or an agent or site attached to it: a name, or an id.
    pub site: String,
    /// Why, for those whose work waits.
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
}

#[derive(Args, Debug)]
pub struct ResumeArgs {
    /// The site asked, or an agent or site attached to it: a name, or an id.
    pub site: String,
}

#[derive(Args, Debug)]
pub struct ThrottleArgs {
    /// A job: its id, a unique prefix of it, or `last`.
    pub job: String,
    /// Tasks that may be placed or running at a time; 0: as many as there is room for.
    #[arg(value_name = "N", value_parser = super::whole)]
    pub tasks: u32,
}

// With a configuration it is the role; a verb of its own is for those who administer agents.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    subcommand_value_name = "WHAT",
    subcommand_help_heading = "For administrators"
)]
pub struct AgentArgs {
    #[command(flatten)]
    pub role: Option<AgentRoleArgs>,
    #[command(subcommand)]
    pub what: Option<AgentWhat>,
}

#[derive(Args, Debug)]
pub struct AgentRoleArgs {
    /// Its configuration, in TOML.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Read and check the configuration, and end.
    #[arg(long)]
    pub check_config: bool,
    /// Write pid and name there, atomically, once it runs.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// End when stdin ends: the parent holds the other end of the pipe.
    #[arg(long)]
    pub die_with_parent: bool,
}

impl From<AgentRoleArgs> for RoleArgs {
    fn from(a: AgentRoleArgs) -> Self {
        RoleArgs { config: a.config, check_config: a.check_config, ready_file: a.ready_file, die_with_parent: a.die_with_parent }
    }
}

#[derive(Subcommand, Debug)]
pub enum AgentWhat {
    /// Say that an agent, or a site below, will not come back with what it runs: its tasks run elsewhere; those submitted with --no-requeue have failed.
    DeclareLost(DeclareLostArgs),
}

#[derive(Args, Debug)]
pub struct DeclareLostArgs {
    /// An agent or a site attached to the site asked, or once attached: a name, or an id.
    pub agent: String,
    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}
