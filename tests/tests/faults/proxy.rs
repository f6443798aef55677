//! A wire that can be cut: forwards TCP connections, until it is told to break them in one of the ways in which networks do.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// Nothing.
    None,
    /// Both halves are closed, and nobody is let in.
    Cut,
    /// What the dialling end sends does not arrive; it is not lost, as with packets that are sent again.
    HoleForth,
    /// What the other end sends does not arrive.
    HoleBack,
    /// The end that was dialled has lost the connection, the dialling one does not know.
    HalfOpen,
}

/// All that can be wrong.
pub const FAULTS: [Fault; 4] = [Fault::Cut, Fault::HoleForth, Fault::HoleBack, Fault::HalfOpen];

const LOOK: Duration = Duration::from_millis(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Wire {
    fault: AtomicU8,
    over: AtomicBool,
    /// Of the ends that were dialled, and of those that dial.
    far: Mutex<Vec<TcpStream>>,
    near: Mutex<Vec<TcpStream>>,
}

impl Wire {
    fn is(&self, fault: Fault) -> bool {
        self.fault.load(Ordering::SeqCst) == fault as u8
    }
}

/// A proxy in front of one endpoint.
pub struct Proxy {
    endpoint: String,
    wire: Arc<Wire>,
}

impl Proxy {
    /// Whoever dials it reaches this endpoint.
    pub fn to(target: String) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let wire = Arc::new(Wire::default());
        let inner = wire.clone();
        listener.set_nonblocking(true).unwrap();
        std::thread::spawn(move || {
            while !inner.over.load(Ordering::SeqCst) {
                match listener.accept() {
                    // Under a black hole it is dialled and nothing comes of it.
                    Ok((near, _)) if !inner.is(Fault::Cut) && !inner.is(Fault::HalfOpen) => connect(near, &target, &inner),
                    Ok(_) => {}
                    Err(_) => std::thread::sleep(LOOK),
                }
            }
        });
        Proxy { endpoint, wire }
    }

    /// Where to dial.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// From now on.
    pub fn set(&self, fault: Fault) {
        self.wire.fault.store(fault as u8, Ordering::SeqCst);
        let end = |list: &Mutex<Vec<TcpStream>>| list.lock().unwrap().drain(..).for_each(|s| _ = s.shutdown(Shutdown::Both));
        match fault {
            Fault::Cut => {
                end(&self.wire.far);
                end(&self.wire.near);
            }
            Fault::HalfOpen => end(&self.wire.far),
            Fault::None | Fault::HoleForth | Fault::HoleBack => {}
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Fault::Cut);
        self.wire.over.store(true, Ordering::SeqCst);
    }
}

fn connect(near: TcpStream, target: &str, wire: &Arc<Wire>) {
    let Ok(far) = TcpStream::connect_timeout(&target.parse().unwrap(), CONNECT_TIMEOUT) else { return };
    wire.near.lock().unwrap().push(near.try_clone().unwrap());
    wire.far.lock().unwrap().push(far.try_clone().unwrap());
    for (from, to, hole) in [(near.try_clone().unwrap(), far.try_clone().unwrap(), Fault::HoleForth), (far, near, Fault::HoleBack)] {
        let wire = wire.clone();
        std::thread::spawn(move || forward(from, to, &wire, hole));
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, wire: &Wire, hole: Fault) {
    from.set_nonblocking(false).unwrap();
    from.set_read_timeout(Some(LOOK)).unwrap();
    let mut bytes = [0; 64 << 10];
    while !wire.over.load(Ordering::SeqCst) {
        if wire.is(hole) {
            std::thread::sleep(LOOK);
            continue;
        }
        match from.read(&mut bytes) {
            Ok(0) => break,
            Ok(n) => {
                // It was on its way when the hole opened.
                while wire.is(hole) && !wire.over.load(Ordering::SeqCst) {
                    std::thread::sleep(LOOK);
                }
                if to.write_all(&bytes[..n]).is_err() {
                    break;
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    // The dialling end is to find out for itself, as long as that is the fault.
    while wire.is(Fault::HalfOpen) && !wire.over.load(Ordering::SeqCst) {
        std::thread::sleep(LOOK);
    }
    _ = from.shutdown(Shutdown::Both);
    _ = to.shutdown(Shutdown::Both);
}
