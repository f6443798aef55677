//! Valid certificates, hostile behaviour: each test lets one peer misbehave in every way that its role allows, and asks of the site that it lives, that it
//! refuses in words, that its memory stays bounded, and that an honest user beside it is served.

#[path = "hostile/side.rs"]
mod side;

#[path = "hostile/agent.rs"]
mod agent;
#[path = "hostile/child.rs"]
mod child;
#[path = "hostile/decode.rs"]
mod decode;
#[path = "hostile/parent.rs"]
mod parent;
#[path = "hostile/user.rs"]
mod user;
#[path = "hostile/wire.rs"]
mod wire;
