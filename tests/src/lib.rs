//! What the end-to-end tests share: [`grid`] makes real sites in this process, over loopback TCP and mTLS, and clients that call them; [`logs`] keeps
//! what they log. They hold no assertions of their own but time-outs: what is right, each test says itself. [`sim`] is a world of its own: cores in virtual
//! time, from a seed. [`slurm`] and [`gridengine`] are real clusters, [`ec2`] is a cloud, and [`starts`] are what payloads say of themselves there.

pub mod client;
pub mod ec2;
pub mod grid;
pub mod gridengine;
pub mod logs;
pub mod sim;
pub mod slurm;
pub mod starts;

use std::time::Duration;

use tokio::time::Instant;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// Look until it is there. Panics, naming what was awaited and what was seen last, where it does not come within [`PATIENCE`].
pub async fn until<T, S: std::fmt::Debug>(what: &str, mut look: impl AsyncFnMut() -> Result<T, S>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = match tokio::time::timeout_at(deadline, look()).await {
            Ok(Ok(there)) => return there,
            Ok(Err(seen)) => format!("{seen:?}"),
            Err(_) => "no answer".to_string(),
        };
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}; last seen: {seen}");
        tokio::time::sleep(LOOK).await;
    }
}

/// Look for a while: it must hold at every look.
pub async fn always(time: Duration, mut holds: impl AsyncFnMut() -> Result<(), String>) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        holds().await.unwrap_or_else(|why| panic!("{why}"));
        tokio::time::sleep(LOOK).await;
    }
}
