//! Writes copies of tested files. The broken ones lack one rule each, and a test expects the schedules to find that.

#![allow(clippy::expect_used, reason = "a build that cannot continue ends")]

use std::{env, fs, path::Path};

/// A copy of a file under `src/` of the library, with texts that are replaced in it.
struct Copy {
    file: &'static str,
    name: &'static str,
    replaced: &'static [(&'static str, &'static str)],
}

/// The shuttle has no such function.
const RECV_MANY: (&str, &str) =
    ("queue.recv_many(&mut taken, most).await", "crate::recv_many(&mut queue, &mut taken, most).await");

const COPIES: [Copy; 7] = [
    Copy { file: "mongo/batching.rs", name: "batching_as_is", replaced: &[RECV_MANY] },
    // A batch that ends wakes no task.
    Copy {
        file: "mongo/batching.rs",
        name: "batching",
        replaced: &[RECV_MANY, ("        self.batches.freed.notify_one();\n", "")],
    },
    // Clears are forgotten when the save that took them fails.
    Copy {
        file: "dispatch/deferred_clears.rs",
        name: "deferred_clears",
        replaced: &[(
            "            state.go_number(self.number);
            state.closed",
            "            state.forget(self.number);
            state.closed",
        )],
    },
    // A flush begins to wait after it has read the state.
    Copy {
        file: "dispatch/deferred_clears.rs",
        name: "late_flush",
        replaced: &[(
            "            let went = self.went.notified();
            if is_gone(&self.lock()) {
                return;
            }
            went.await;",
            "            if is_gone(&self.lock()) {
                return;
            }
            self.went.notified().await;",
        )],
    },
    // A task leaves its work to one that is at work already, and not to one that waits.
    Copy {
        file: "dispatch/document_locks.rs",
        name: "document_locks",
        replaced: &[("if place.waiting > 0 && if_one_waits", "if place.users > 0 && if_one_waits")],
    },
    // The scheduler doesn't know tokio-util's types. The added line is where another task may run.
    Copy {
        file: "dispatch/seats.rs",
        name: "seats_as_is",
        replaced: &[(
            "        if self.closing.is_cancelled() {",
            "        shuttle::thread::yield_now();
        if self.closing.is_cancelled() {",
        )],
    },
    // A save is counted after it has read that the dispatcher is not closing.
    Copy {
        file: "dispatch/seats.rs",
        name: "seats",
        replaced: &[(
            "        let save = self.saves.token();
        if self.closing.is_cancelled() {
            return Err(Shed::Stopped);
        }",
            "        if self.closing.is_cancelled() {
            return Err(Shed::Stopped);
        }
        shuttle::thread::yield_now();
        let save = self.saves.token();",
        )],
    },
];

fn main() {
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    for Copy { file, name, replaced } in COPIES {
        let path = format!("../src/{file}");
        println!("cargo::rerun-if-changed={path}");
        let mut text = fs::read_to_string(&path).expect("the file is there");
        for (rule, other) in replaced {
            assert_eq!(
                text.matches(rule).count(),
                1,
                "{path} must have this text once, for its copy:\n{rule}"
            );
            text = text.replace(rule, other);
        }

        // A file that is included has no documentation of its own.
        let lines = text.lines().skip_while(|line| line.starts_with("//!"));
        let text: String = lines.flat_map(|line| [line, "\n"]).collect();
        fs::write(Path::new(&out).join(format!("{name}.rs")), text).expect("the copy can be written");
    }
}
