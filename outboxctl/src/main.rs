//! `outboxctl`: a shell around the library of the same name.

use std::process::ExitCode;

fn main() -> ExitCode {
    outboxctl::main()
}
