//! Simulates a network that fails on request.

#![allow(clippy::pedantic, reason = "product code is held to these lints; a test may be short instead")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot continue fails")]

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

/// Time limit of a test that waits for a request.
const LONG: Duration = Duration::from_secs(60);

/// A proxy between the test and a server. It can cut connections and swallow data.
pub struct Network {
    broker: String,
    address: SocketAddr,
    wire: Arc<Wire>,
}

#[derive(Default)]
struct Wire {
    swallowing: AtomicBool,
    /// The connection is cut after the broker has sent this many more bytes.
    left: Mutex<Option<usize>>,
    /// The broker's answers are withheld after the broker has sent this many more bytes.
    before_hold: Mutex<Option<usize>>,
    released: Condvar,
    /// The delay of each answer.
    delay: Mutex<Duration>,
    /// Whether requests are delayed until released.
    is_holding: Mutex<bool>,
    let_through: Condvar,
    /// Requests that contain one of these byte strings wait. The number of waiting requests is counted.
    holds: Mutex<Vec<(Vec<u8>, usize)>>,
    hold_is_over: Condvar,
    arrived: Notify,
    /// If a request contains these bytes, its connection is closed.
    poison: Mutex<Option<Vec<u8>>>,
    streams: Mutex<Vec<TcpStream>>,
}

/// Host and port of a broker's URI.
pub fn host(uri: &str) -> String {
    uri.rsplit('@').next().unwrap().split('/').next().unwrap().to_owned()
}

impl Network {
    /// Creates a proxy to the broker at this URI.
    pub fn to(broker: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let wire = Arc::new(Wire::default());
        let network = Self { broker: broker.to_owned(), address, wire: wire.clone() };
        let broker = host(broker);
        std::thread::spawn(move || {
            for here in listener.incoming().map_while(Result::ok) {
                let there = TcpStream::connect(&broker).unwrap();
                let back = here.try_clone().unwrap();
                for (from, to, answers) in [(&here, &there, false), (&there, &here, true)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (wire, back) = (wire.clone(), back.try_clone().unwrap());
                    std::thread::spawn(move || {
                        wire.carry(from, to, back, answers);
                    });
                }
                wire.streams.lock().unwrap().extend([here, there]);
            }
        });
        network
    }

    /// Creates a proxy to the first MongoDB server. Returns it with the URI of the server through the proxy.
    pub fn to_mongodb(uri: &str) -> (Self, String) {
        let server = uri.trim_start_matches("mongodb://").split(['/', ',']).next().unwrap();
        let network = Self::to(&format!("mongodb://any@{server}/"));
        let uri = format!("mongodb://{}/?directConnection=true", network.address);
        (network, uri)
    }

    /// Returns the URI of the same broker through this proxy.
    pub fn uri(&self) -> String {
        self.broker.replace(&host(&self.broker), &self.address.to_string())
    }

    /// Number of connections made through this proxy.
    pub fn connections(&self) -> usize {
        self.wire.streams.lock().unwrap().len() / 2
    }

    /// Swallows everything that is sent from now on, without an error.
    pub fn swallow(&self, on: bool) {
        self.wire.swallowing.store(on, Ordering::SeqCst);
    }

    /// Delays every answer by this much from now on.
    pub fn delay(&self, by: Duration) {
        *self.wire.delay.lock().unwrap() = by;
    }

    pub fn cut_after(&self, bytes: usize) {
        *self.wire.left.lock().unwrap() = Some(bytes);
    }

    /// Withholds everything that the broker sends after this many more bytes, until the test releases it.
    pub fn hold_after(&self, bytes: usize) {
        *self.wire.before_hold.lock().unwrap() = Some(bytes);
    }

    pub fn release(&self) {
        self.wire.release();
    }

    /// Withholds everything that is sent to the broker, until the test releases it. Answers still pass.
    pub fn hold_requests(&self, hold: bool) {
        *self.wire.is_holding.lock().unwrap() = hold;
        self.wire.let_through.notify_all();
    }

    /// From now on, withholds every request that contains these bytes.
    pub fn hold_those_with(&self, bytes: &str) {
        self.wire.holds.lock().unwrap().push((bytes.into(), 0));
    }

    /// Waits until a request with these bytes is withheld.
    pub async fn holds_one_with(&self, bytes: &str) {
        let is_held = || {
            let holds = self.wire.holds.lock().unwrap();
            holds.iter().any(|(held, count)| held == bytes.as_bytes() && *count > 0)
        };
        let held = async {
            loop {
                let arrived = self.wire.arrived.notified();
                if is_held() {
                    return;
                }
                arrived.await;
            }
        };
        // The time limit is for the whole wait, because the driver's own requests keep arriving.
        let waited = tokio::time::timeout(LONG, held).await;
        waited.unwrap_or_else(|_| panic!("no request with {bytes} arrived"));
    }

    /// Releases requests with these bytes.
    pub fn let_those_pass_with(&self, bytes: &str) {
        self.wire.holds.lock().unwrap().retain(|(held, _)| held != bytes.as_bytes());
        self.wire.hold_is_over.notify_all();
    }

    /// From now on, the connection of a request that contains these bytes is closed with 501 before the request
    /// arrives. RabbitMQ does the same for a frame that it can't read.
    pub fn poison(&self, bytes: &[u8]) {
        *self.wire.poison.lock().unwrap() = Some(bytes.to_vec());
    }

    pub fn cut(&self) {
        self.wire.cut();
        self.wire.release();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.wire.release();
        self.wire.holds.lock().unwrap().clear();
        self.wire.hold_is_over.notify_all();
        self.hold_requests(false);
    }
}

impl Wire {
    fn carry(&self, mut from: TcpStream, mut to: TcpStream, mut back: TcpStream, answers: bool) {
        let mut bytes = [0; 65536];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if !answers && self.is_poisoned(&bytes[..count]) {
                let _ = back.write_all(&connection_close());
                // The client closes the connection once it has read the frame.
                while matches!(from.read(&mut bytes), Ok(1..)) {}
                break;
            }
            if !answers {
                let is_holding = self.is_holding.lock().unwrap();
                drop(self.let_through.wait_while(is_holding, |holding| *holding).unwrap());
            }
            if !answers {
                self.hold_matching(&bytes[..count]);
            }
            let mut count = count;
            let mut cut = false;
            if answers && let Some(left) = self.left.lock().unwrap().as_mut() {
                cut = count >= *left;
                count = count.min(*left);
                *left -= count;
            }
            if answers {
                let delay = *self.delay.lock().unwrap();
                std::thread::sleep(delay);
            }
            let passed = if answers { self.pass_before_hold(&bytes[..count], &mut to) } else { 0 };
            if !self.swallowing.load(Ordering::SeqCst) && to.write_all(&bytes[passed..count]).is_err() {
                break;
            }
            if cut {
                *self.left.lock().unwrap() = None;
                self.cut();
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    }

    fn is_poisoned(&self, bytes: &[u8]) -> bool {
        let poison = self.poison.lock().unwrap();
        poison.as_ref().is_some_and(|poison| bytes.windows(poison.len()).any(|window| window == poison))
    }

    /// Waits while this request must be withheld.
    fn hold_matching(&self, bytes: &[u8]) {
        let is_in = |held: &[u8]| bytes.windows(held.len()).any(|window| window == held);
        let mut holds = self.holds.lock().unwrap();
        for (_, count) in holds.iter_mut().filter(|(held, _)| is_in(held)) {
            *count += 1;
        }
        self.arrived.notify_waiters();
        let waited = self.hold_is_over.wait_while(holds, |holds| holds.iter().any(|(held, _)| is_in(held)));
        drop(waited.unwrap());
    }

    /// Writes the bytes up to the place where a hold begins, and waits there until the hold is released.
    /// Returns the number of bytes written.
    fn pass_before_hold(&self, bytes: &[u8], to: &mut TcpStream) -> usize {
        let mut passed = 0;
        let mut before_hold = self.before_hold.lock().unwrap();
        while let Some(left) = before_hold.as_mut() {
            let passing = (*left).min(bytes.len() - passed);
            let _ = to.write_all(&bytes[passed..passed + passing]);
            *left -= passing;
            passed += passing;
            if passed == bytes.len() {
                break;
            }
            before_hold = self.released.wait(before_hold).unwrap();
        }
        passed
    }

    fn release(&self) {
        *self.before_hold.lock().unwrap() = None;
        self.released.notify_all();
    }

    fn cut(&self) {
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// The frame of `connection.close` with 501 FRAME_ERROR.
fn connection_close() -> Vec<u8> {
    let text = b"FRAME_ERROR - as a test asked for";
    let mut method = [0, 10, 0, 50].to_vec();
    method.extend(501u16.to_be_bytes());
    method.push(u8::try_from(text.len()).unwrap());
    method.extend(text);
    method.extend([0, 60, 0, 40]);

    let mut frame = vec![1, 0, 0];
    frame.extend(u32::try_from(method.len()).unwrap().to_be_bytes());
    frame.extend(method);
    frame.push(0xCE);
    frame
}
