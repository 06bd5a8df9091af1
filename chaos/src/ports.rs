//! Chooses ports for servers that are stopped and started again.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Result, bail};

/// The range from `FIRST` to `LAST` is below the ports that the operating system gives to outgoing connections. Otherwise an
/// outgoing connection could take the port of a server that is down for a moment. A client that connects to such a port can even
/// reach itself.
const FIRST: u16 = 21_000;
const LAST: u16 = 31_999;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// Returns a port that is free now, and that this process has not returned recently.
pub(crate) fn free_port() -> Result<u16> {
    let ports = LAST - FIRST;
    // Each process of the harness begins at a different port, so that two such processes rarely try the same ports.
    let begin = u16::try_from(std::process::id() % u32::from(ports)).unwrap_or_default();
    for _ in 0..ports {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed) % ports;
        let port = FIRST + (begin + turn) % ports;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port is free from {FIRST} to {LAST}")
}
