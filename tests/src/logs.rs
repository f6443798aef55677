//! What this process has logged, in memory. Tests of one process share it: look for names of your own.

use std::io::Write;
use std::sync::{Mutex, Once, PoisonError};

static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Memory;

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LINES.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// From now on.
pub fn keep() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing_subscriber::filter::LevelFilter::INFO).with_ansi(false);
        let _ = subscriber.with_writer(|| Memory).try_init();
    });
}

/// Lines that contain all of these.
pub fn lines(parts: &[&str]) -> Vec<String> {
    let all = String::from_utf8_lossy(&LINES.lock().unwrap_or_else(PoisonError::into_inner)).into_owned();
    all.lines().filter(|line| parts.iter().all(|p| line.contains(p))).map(str::to_string).collect()
}

/// Wait for a line that contains all of these.
pub async fn wait(parts: &[&str]) -> String {
    crate::until(&format!("a log line with {parts:?}"), async || lines(parts).pop().ok_or("none")).await
}
