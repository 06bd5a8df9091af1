//! A network that fails when told to.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

/// A network between us and a broker that can be cut and can swallow everything.
pub struct Network {
    broker: String,
    address: SocketAddr,
    wire: Arc<Wire>,
}

#[derive(Default)]
struct Wire {
    swallowing: AtomicBool,
    /// Cut when the broker has sent so many bytes more.
    left: Mutex<Option<usize>>,
    streams: Mutex<Vec<TcpStream>>,
}

/// Host and port of a broker's URI.
pub fn host(uri: &str) -> String {
    uri.rsplit('@').next().unwrap().split('/').next().unwrap().to_owned()
}

impl Network {
    /// To the broker at this URI, from now on.
    pub fn to(broker: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let wire = Arc::new(Wire::default());
        let network = Self { broker: broker.to_owned(), address, wire: wire.clone() };
        let broker = host(broker);
        std::thread::spawn(move || {
            for here in listener.incoming().map_while(Result::ok) {
                let there = TcpStream::connect(&broker).unwrap();
                for (from, to, answers) in [(&here, &there, false), (&there, &here, true)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let wire = wire.clone();
                    std::thread::spawn(move || wire.carry(from, to, answers));
                }
                wire.streams.lock().unwrap().extend([here, there]);
            }
        });
        network
    }

    /// The same broker, by way of this network.
    pub fn uri(&self) -> String {
        self.broker.replace(&host(&self.broker), &self.address.to_string())
    }

    /// Everything sent from now on vanishes, without an error for anybody.
    pub fn swallow(&self, on: bool) {
        self.wire.swallowing.store(on, Ordering::SeqCst);
    }

    pub fn cut_after(&self, bytes: usize) {
        *self.wire.left.lock().unwrap() = Some(bytes);
    }

    pub fn cut(&self) {
        self.wire.cut();
    }
}

impl Wire {
    fn carry(&self, mut from: TcpStream, mut to: TcpStream, answers: bool) {
        let mut bytes = [0; 65536];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            let mut count = count;
            let mut cut = false;
            if answers && let Some(left) = self.left.lock().unwrap().as_mut() {
                cut = count >= *left;
                count = count.min(*left);
                *left -= count;
            }
            if !self.swallowing.load(Ordering::SeqCst) && to.write_all(&bytes[..count]).is_err() {
                break;
            }
            if cut {
                *self.left.lock().unwrap() = None;
                self.cut();
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }

    fn cut(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}
