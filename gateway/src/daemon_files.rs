//! What a daemon has to do with the world around it: its port, its ready file, and when to end.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use intergrid_proto::{Refusal, RefusalKind, SiteId};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::durable::{io_refusal, write_atomic};

/// The port of the process before may be held a moment longer.
const PORT_WAIT_MS: u64 = 3_000;
const PORT_RETRY_MS: u64 = 50;

/// What a ready file says, as one line of JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Ready {
    /// `host:port`.
    pub endpoint: String,
    /// Process id.
    pub pid: u32,
    /// Site id in hex.
    pub site: String,
    /// The site's label.
    pub name: String,
}

impl Ready {
    /// Of this process.
    pub fn new(endpoint: impl Into<String>, site: SiteId, name: impl Into<String>) -> Self {
        Ready { endpoint: endpoint.into(), pid: std::process::id(), site: site.to_string(), name: name.into() }
    }

    /// Write it as a whole.
    pub fn write(&self, path: &Path) -> Result<(), Refusal> {
        let mut line = serde_json::to_vec(self).map_err(|e| Refusal::new(RefusalKind::Internal, format!("ready file: {e}")))?;
        line.push(b'\n');
        write_atomic(path, &line).map_err(|e| io_refusal("write the ready file", path, e))
    }
}

/// Listen, and say where: `host:port`, fit for a client on this machine. With port 0 the system chooses at the first start; the file `port` in the state
/// directory remembers it, because peers do.
pub async fn bind(listen: &str, state: &Path) -> Result<(TcpListener, String), Refusal> {
    let remembered = match listen.strip_suffix(":0") {
        None => None,
        Some(host) => remembered_port(&state.join("port"))?.map(|port| format!("{host}:{port}")),
    };
    let wanted = remembered.as_deref().unwrap_or(listen);
    let patience = tokio::time::Instant::now() + Duration::from_millis(PORT_WAIT_MS);
    let listener = loop {
        match TcpListener::bind(wanted).await {
            Ok(listener) => break listener,
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse && tokio::time::Instant::now() < patience => {
                tokio::time::sleep(Duration::from_millis(PORT_RETRY_MS)).await;
            }
            Err(e) => return Err(cannot_listen(wanted, remembered.is_some().then(|| state.join("port")).as_deref(), &e)),
        }
    };
    let address = listener.local_addr().map_err(|e| cannot_listen(wanted, None, &e))?;
    if listen.ends_with(":0") && remembered.is_none() {
        let file = state.join("port");
        write_atomic(&file, format!("{}\n", address.port()).as_bytes()).map_err(|e| io_refusal("write", &file, e))?;
    }
    Ok((listener, reachable(address).to_string()))
}

/// A wildcard address is no place to call; this machine is.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn remembered_port(file: &Path) -> Result<Option<u16>, Refusal> {
    match std::fs::read_to_string(file) {
        Ok(text) => match text.trim().parse() {
            Ok(port) if port > 0 => Ok(Some(port)),
            _ => Err(Refusal::invalid(format!("{} does not hold a port", file.display())).remedy("remove it to take a new port")),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_refusal("read", file, e)),
    }
}

fn cannot_listen(on: &str, remembered_in: Option<&Path>, e: &std::io::Error) -> Refusal {
    let refusal = Refusal::new(RefusalKind::Unavailable, format!("cannot listen on {on}: {e}"));
    match remembered_in {
        Some(file) => refusal.remedy(format!("it is the port that this site had before; free it, or remove {} to take a new one", file.display())),
        None => refusal.remedy("free it, or change `listen`"),
    }
}

/// Why a daemon ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// SIGTERM.
    Terminated,
    /// SIGINT.
    Interrupted,
    /// The process at the other end of stdin has gone.
    ParentGone,
}

/// Resolves when this process should end. From the moment of the call on, the signals no longer end it by themselves; a second one does, at once.
pub fn stop(die_with_parent: bool) -> Result<impl Future<Output = Stop> + Send + 'static, Refusal> {
    let listen = |kind| signal(kind).map_err(|e| Refusal::new(RefusalKind::Internal, format!("signals: {e}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let parent = die_with_parent.then(stdin_ended);
    Ok(async move {
        let parent = async {
            match parent {
                Some(ended) => drop(ended.await),
                None => std::future::pending().await,
            }
        };
        let why = tokio::select! {
            _ = terminate.recv() => Stop::Terminated,
            _ = interrupt.recv() => Stop::Interrupted,
            () = parent => Stop::ParentGone,
        };
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            std::process::exit(EXIT_FORCED);
        });
        why
    })
}

/// Of a process that was told twice, or did not end in time.
const EXIT_FORCED: i32 = 130;

/// End this process by force unless it has ended by itself by then.
pub fn end_by_force_after(patience: Duration) {
    // A thread, so that it fires also where the runtime hangs.
    std::thread::spawn(move || {
        std::thread::sleep(patience);
        std::process::exit(EXIT_FORCED);
    });
}

/// A thread of its own, because tokio's stdin would hold up the end of the runtime until somebody writes to it.
fn stdin_ended() -> oneshot::Receiver<()> {
    let (ended, receiver) = oneshot::channel();
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut bytes = [0; 256];
        loop {
            match stdin.read(&mut bytes) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        // Nobody may be waiting any more.
        let _ = ended.send(());
    });
    receiver
}
