//! The command line of what runs on this machine: the demo, identities, the roles, and help for shells and readers.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Leave it running and print what to try next.
    #[arg(long)]
    pub keep: bool,
    /// Put everything there [default: a temporary directory].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Tasks, which is tiles of the picture; at least 64.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub tasks: u32,
    /// Stop a demo that was left running there.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["keep", "dir", "tasks"])]
    pub stop: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct TileArgs {
    /// Which tile.
    #[arg(long)]
    pub tile: u32,
    /// Of how many.
    #[arg(long)]
    pub of: u32,
    /// Where to put it.
    #[arg(long)]
    pub out: PathBuf,
}

#[derive(Args, Debug)]
pub struct HandArgs {
    /// The account's directory.
    pub base: PathBuf,
}

#[derive(Args, Debug)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct InitArgs {
    #[command(subcommand)]
    pub what: InitWhat,
}

#[derive(Subcommand, Debug)]
pub enum InitWhat {
    /// A site's identity: its certificate authority and its certificate.
    Site {
        /// Where to put it; must not hold an identity yet.
        dir: PathBuf,
        /// The site's label, unique within one federation.
        #[arg(long)]
        name: String,
    },
    /// A certificate for another year, with the same key and label: a site's own, or one that it has made.
    Renew {
        /// The directory of its cert.pem and key.pem.
        dir: PathBuf,
        /// The identity directory of the site that made it [default: DIR, which is a site's own].
        #[arg(long, value_name = "DIR")]
        site: Option<PathBuf>,
    },
    /// A gateway in front of a cluster: looks at the cluster, and writes an identity and a configuration that offers what is there.
    Gateway(InitGatewayArgs),
    /// A user's certificate: may submit and see own jobs.
    User(IssueArgs),
    /// An administrator's certificate: may see and change all jobs of the site.
    Admin(IssueArgs),
    /// An agent's certificate: may attach to the site and run tasks.
    Agent(IssueArgs),
    /// This user's home (INTERGRID_HOME): the endpoint of --endpoint, and a certificate of its site.
    Home {
        /// The site's identity directory, made by `grid init site`.
        #[arg(long, value_name = "DIR")]
        site: PathBuf,
        /// The name in the certificate.
        #[arg(long, default_value = "me")]
        name: String,
        /// What the certificate may.
        #[arg(long, value_enum, default_value_t = HomeRole::Admin)]
        role: HomeRole,
    },
}

#[derive(Args, Debug)]
#[command(after_help = "\
Copy the file to the machine, name it as `token` in its agent's configuration.
The agent makes its key itself, and the token is worth nothing any more once it
has a certificate. Until then it is secret.

  grid token rack1-07 --site /etc/intergrid/campus --out rack1-07.token")]
pub struct TokenArgs {
    /// The machine's name, as in its agent's configuration.
    pub name: String,
    /// The gateway's identity directory, with its CA's key.
    #[arg(long, value_name = "DIR")]
    pub site: PathBuf,
    /// The file to write; must not exist yet.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// How long it is good for, as 10m, 1h or 2d; at most 7d.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub valid: String,
}

#[derive(Args, Debug)]
#[command(after_help = "\
It reads what a start would read, asks the cluster what a gateway would ask,
and runs a small task as each account. Exit code 1: something is bad.

  grid doctor --config /etc/intergrid/gateway.toml")]
pub struct DoctorArgs {
    /// The gateway's configuration, in TOML.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Args, Clone, Debug)]
pub struct InitGatewayArgs {
    /// Where to put gateway.toml and identity/; what exists stays.
    pub dir: PathBuf,
    /// The site's label, unique within one federation.
    #[arg(long)]
    pub name: String,
    /// What runs tasks there.
    #[arg(long, value_enum)]
    pub backend: Cluster,
    /// A directory for tasks, on the file system that all machines share.
    #[arg(long, value_name = "DIR")]
    pub shared: PathBuf,
    /// Directory of the cluster's commands [default: they are on the usual path].
    #[arg(long, value_name = "DIR")]
    pub commands: Option<PathBuf>,
    /// The cluster's slurm.conf, or the settings.sh of its cell [default: the usual one].
    #[arg(long, value_name = "FILE")]
    pub conf: Option<PathBuf>,
}

/// A local resource manager.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Cluster {
    /// Slurm.
    Slurm,
    /// Grid Engine.
    #[value(name = "gridengine")]
    GridEngine,
}

/// What a home's certificate may.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum HomeRole {
    /// Own jobs.
    User,
    /// All jobs of the site.
    Admin,
}

#[derive(Args, Debug)]
pub struct IssueArgs {
    /// The label in the certificate.
    pub name: String,
    /// The site's identity directory, made by `grid init site`.
    #[arg(long, value_name = "DIR")]
    pub site: PathBuf,
    /// Where to put ca.pem, cert.pem and key.pem.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

#[derive(Args, Debug)]
pub struct RoleArgs {
    /// Its configuration, in TOML.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Read and check the configuration, and end.
    #[arg(long)]
    pub check_config: bool,
    /// Write endpoint, pid and site there, atomically, once it serves.
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// End when stdin ends: the parent holds the other end of the pipe.
    #[arg(long)]
    pub die_with_parent: bool,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Where each shell looks for it:
  bash:  grid completion bash > ~/.local/share/bash-completion/completions/grid
  zsh:   grid completion zsh > \"${fpath[1]}/_grid\"
  fish:  grid completion fish > ~/.config/fish/completions/grid.fish")]
pub struct CompletionArgs {
    /// Whose.
    #[arg(value_enum)]
    pub shell: Shell,
}

/// A shell that completes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Shell {
    /// GNU's.
    Bash,
    /// The Z shell.
    Zsh,
    /// The friendly one.
    Fish,
}

#[derive(Args, Debug)]
pub struct ManArgs {
    /// Where to put grid.1, grid-submit.1 and so on; made if it is not there.
    pub dir: PathBuf,
}
