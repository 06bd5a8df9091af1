//! Ports for servers that are stopped and started again.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
};

use anyhow::{Result, bail};

/// Below those that the system gives to connections: one of them could take the port of a server that is down for a moment, and
/// a client that dials such a port can even connect to itself.
const FIRST: u16 = 21_000;
const LAST: u16 = 31_999;

static NEXT: AtomicU16 = AtomicU16::new(0);

/// A port that is free now, and that this process has not given out lately.
pub(crate) fn free_port() -> Result<u16> {
    let ports = LAST - FIRST;
    // Two concurrent harnesses begin at different places.
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
