//! Runs a MongoDB for one test.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A `mongod` that is removed when this value is dropped or the process ends.
pub(crate) struct PrivateMongod {
    pub(crate) directory: PathBuf,
    pub(crate) port: u16,
    guard: Child,
}

impl PrivateMongod {
    /// Starts `mongod` on a free port, with these arguments in addition to the usual ones. Returns before `mongod`
    /// answers.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        crate::isolation::assert_in("outage");
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let checkout = manifest.ancestors().find(|folder| folder.join("scripts/services").exists()).unwrap();
        let found = Command::new(checkout.join("scripts/services")).arg("mongod").output().unwrap();
        let mongod = String::from_utf8(found.stdout).unwrap().trim().to_owned();
        assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));

        let name = format!("mongod-{}", uuid::Uuid::now_v7().simple());
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();

        // The script waits for the end of its input, which closes when this process ends for any reason.
        let script = r#"
            mongod=$1 port=$2
            shift 2
            "$mongod" --port "$port" --dbpath "$0" --logpath "$0/log" --bind_ip 127.0.0.1 --nounixsocket --quiet \
                --wiredTigerCacheSizeGB 0.25 "$@" &
            cat; kill -9 $!; wait; rm -rf "$0""#;
        let guard = Command::new("sh")
            .args(["-c", script])
            .arg(&directory)
            .args([&mongod, &port.to_string()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { directory, port, guard }
    }
}

impl Drop for PrivateMongod {
    fn drop(&mut self) {
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}
