//! A real Slurm behind a real gateway, under a broker, as users and administrators have it. Payloads count their own starts, in files outside of everything
//! that is ours.

#[path = "faults/separate.rs"]
mod separate;
#[allow(dead_code)]
#[path = "slurm_grid/site.rs"]
mod site;
#[allow(dead_code)]
#[path = "faults/tree.rs"]
mod tree;
#[allow(dead_code)]
#[path = "faults/user.rs"]
mod user;

#[path = "slurm_grid/accounts.rs"]
mod accounts;
#[path = "slurm_grid/behind.rs"]
mod behind;
#[path = "slurm_grid/ends.rs"]
mod ends;
#[path = "slurm_grid/init.rs"]
mod init;
#[path = "slurm_grid/killed.rs"]
mod killed;
#[path = "slurm_grid/limits.rs"]
mod limits;
#[path = "slurm_grid/orders.rs"]
mod orders;
#[path = "slurm_grid/pace.rs"]
mod pace;
#[path = "slurm_grid/pilots.rs"]
mod pilots;
#[path = "slurm_grid/wide.rs"]
mod wide;
