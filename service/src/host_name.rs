//! The name of this machine.

use std::{env, fs};

/// The name of this machine, by which operators distinguish processes in containers; `unknown` if the
/// machine has no name.
pub fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| env::var("HOSTNAME"));
    let name = name.unwrap_or_default();

    match name.trim() {
        "" => "unknown".to_owned(),
        name => name.to_owned(),
    }
}
