//! Faults of a real tree in the middle of arrays: root broker, middle broker, gateway, two agents of two slots; each a process of its own. [`matrix`] has them
//! all, singly and in pairs, at random points; the others have one thing each.
//!
//! Starts are counted by the payload itself: each appends a line to a file of its task, outside of everything that is ours.

#[allow(dead_code)]
#[path = "faults/tree.rs"]
mod tree;
#[allow(dead_code)]
#[path = "faults/user.rs"]
mod user;

#[path = "faults/adopted.rs"]
mod adopted;
#[path = "faults/away.rs"]
mod away;
#[path = "faults/dialling.rs"]
mod dialling;
#[path = "faults/full.rs"]
mod full;
#[path = "faults/killed.rs"]
mod killed;
#[path = "faults/matrix.rs"]
mod matrix;
#[path = "faults/proxy.rs"]
mod proxy;
#[path = "faults/recovered.rs"]
mod recovered;
#[path = "faults/staged.rs"]
mod staged;
#[path = "faults/undisturbed.rs"]
mod undisturbed;
