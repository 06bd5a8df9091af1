//! Writes altered copies of files under test. In each broken copy the code breaks one rule, and a test expects the schedules of
//! the copy to fail.

#![allow(clippy::expect_used, reason = "a build that cannot continue ends")]

use std::{env, fs, path::Path};

/// A copy of a file under the library's `src/`, in which some texts are replaced.
struct Copy {
    file: &'static str,
    name: &'static str,
    replaced: &'static [(&'static str, &'static str)],
}

/// Replaces a call of `recv_many`, which shuttle's channel lacks, with a call of this crate's function `recv_many`.
const RECV_MANY: (&str, &str) =
    ("queue.recv_many(&mut taken, most).await", "crate::recv_many(&mut queue, &mut taken, most).await");

const COPIES: [Copy; 7] = [
    Copy { file: "mongo/batching.rs", name: "batching_as_is", replaced: &[RECV_MANY] },
    // This copy breaks a rule: when a batch ends, no waiting task is woken.
    Copy {
        file: "mongo/batching.rs",
        name: "batching",
        replaced: &[RECV_MANY, ("        self.batches.freed.notify_one();\n", "")],
    },
    // This copy breaks a rule: clears are forgotten when the save that took them fails.
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
    // This copy breaks a rule: a flush asks to be notified only after it has read the state, so it can miss a notification.
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
    // This copy breaks a rule: a task leaves its work to any task that uses the lock, even to a task that is already at work.
    Copy {
        file: "dispatch/document_locks.rs",
        name: "document_locks",
        replaced: &[("if place.waiting > 0 && if_one_waits", "if place.users > 0 && if_one_waits")],
    },
    // This copy breaks no rule. The scheduler ignores tokio-util's types, so the added line lets another task run.
    Copy {
        file: "dispatch/seats.rs",
        name: "seats_as_is",
        replaced: &[(
            "        if self.closing.is_cancelled() {",
            "        shuttle::thread::yield_now();
        if self.closing.is_cancelled() {",
        )],
    },
    // This copy breaks a rule: a save is counted only after it has read that the dispatcher is not closing.
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

        // An included file must not begin with a module comment, so the copy leaves that comment out.
        let lines = text.lines().skip_while(|line| line.starts_with("//!"));
        let text: String = lines.flat_map(|line| [line, "\n"]).collect();
        fs::write(Path::new(&out).join(format!("{name}.rs")), text).expect("the copy can be written");
    }
}
