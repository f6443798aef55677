//! A real Grid Engine behind a real gateway, under a broker, as users and administrators have it; and one tree over all kinds of gateways. Payloads count their
//! own starts, in files outside of everything that is ours.

#[path = "faults/separate.rs"]
mod separate;
#[allow(dead_code)]
#[path = "gridengine_grid/site.rs"]
mod site;
#[allow(dead_code)]
#[path = "faults/tree.rs"]
mod tree;
#[allow(dead_code)]
#[path = "faults/user.rs"]
mod user;

#[path = "gridengine_grid/behind.rs"]
mod behind;
#[path = "gridengine_grid/ends.rs"]
mod ends;
#[path = "gridengine_grid/init.rs"]
mod init;
#[path = "gridengine_grid/killed.rs"]
mod killed;
#[path = "gridengine_grid/limits.rs"]
mod limits;
#[path = "gridengine_grid/machines.rs"]
mod machines;
#[path = "gridengine_grid/pace.rs"]
mod pace;
#[path = "gridengine_grid/pilots.rs"]
mod pilots;
#[path = "gridengine_grid/queues.rs"]
mod queues;
#[path = "gridengine_grid/three.rs"]
mod three;
#[path = "gridengine_grid/wide.rs"]
mod wide;
