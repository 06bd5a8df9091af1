//! A proxy between one process and one MongoDB member, or between one process and the first RabbitMQ node that answers.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use memchr::memmem::find;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::sleep,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    amqp::Follower,
    frames::Protocol,
    points::{Moment, Point},
    traffic::Traffic,
};

/// A reply of MongoDB that has this many bytes or more is not searched for the names of members, because the replies that contain
/// such names are shorter.
const LONGEST_HELLO: usize = 16 << 10;
/// How long a server may take to accept a connection.
const DIAL: Duration = Duration::from_secs(2);

/// The process and the servers that a link connects.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub(crate) process: String,
    pub(crate) is_amqp: bool,
    /// The servers that a link tries in turn, beginning with the one that answered last.
    pub(crate) servers: Vec<SocketAddr>,
}

/// A listener for one process, which forwards the connections of that process to a server. All these connections end when the
/// last clone of the link is dropped.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    _guard: Arc<DropGuard>,
}

/// The state that all connections of a link share.
struct Shared {
    route: Route,
    protocol: Protocol,
    seen: Traffic,
    /// The id of the process that uses the link, for a kill at a named point.
    pid: Arc<AtomicI32>,
    state: watch::Sender<LinkState>,
    /// The names of servers that are replaced in replies. Each pair holds a name and its replacement, which has the same length.
    renamed: Mutex<Vec<(Vec<u8>, Vec<u8>)>>,
    /// Cancelling this token ends all current connections.
    cut: Mutex<CancellationToken>,
    cuts_mid_frame: AtomicBool,
    deadly: Mutex<Option<(Point, Moment)>>,
    connections: AtomicU64,
    last_server: AtomicUsize,
    /// The number of chunks of data that a fault has held or delayed.
    hindered: AtomicU64,
    end: CancellationToken,
}

/// How a link treats the data that passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    Open,
    /// The link holds all data, without an error for either side.
    BlackHole,
    /// The link delays every chunk by this duration.
    Slow(Duration),
}

impl Link {
    /// Begins to listen on a free port.
    pub(crate) async fn open(route: Route, seen: Traffic, pid: Arc<AtomicI32>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let end = CancellationToken::new();
        let shared = Arc::new(Shared {
            protocol: if route.is_amqp { Protocol::Amqp } else { Protocol::Mongo },
            route,
            seen,
            pid,
            state: watch::Sender::new(LinkState::Open),
            renamed: Mutex::default(),
            cut: Mutex::new(end.child_token()),
            cuts_mid_frame: AtomicBool::default(),
            deadly: Mutex::default(),
            connections: AtomicU64::default(),
            last_server: AtomicUsize::default(),
            hindered: AtomicU64::default(),
            end: end.clone(),
        });
        tokio::spawn(accept(listener, shared.clone()));
        Ok(Self { address, shared, _guard: Arc::new(end.drop_guard()) })
    }

    /// Replaces the first address of each pair by the second one in MongoDB's replies, so that a driver connects through the links.
    pub(crate) fn rename(&self, members: &[(SocketAddr, SocketAddr)]) {
        let text = |address: &SocketAddr| address.to_string().into_bytes();
        *self.shared.renamed.lock() = members.iter().map(|(from, to)| (text(from), text(to))).collect();
    }

    pub(crate) fn black_hole(&self) {
        self.shared.state.send_replace(LinkState::BlackHole);
    }

    pub(crate) fn slow(&self, by: Duration) {
        self.shared.state.send_replace(LinkState::Slow(by));
    }

    /// Lets all data pass again, and cancels a cut or a kill that has not happened yet.
    pub(crate) fn heal(&self) {
        self.shared.state.send_replace(LinkState::Open);
        self.shared.cuts_mid_frame.store(false, Ordering::SeqCst);
        *self.shared.deadly.lock() = None;
    }

    /// Ends all current connections of the link.
    pub(crate) fn cut(&self) {
        let fresh = self.shared.end.child_token();
        std::mem::replace(&mut *self.shared.cut.lock(), fresh).cancel();
    }

    /// Forwards only the first half of the next frame, and then ends all connections.
    pub(crate) fn cut_mid_frame(&self) {
        self.shared.cuts_mid_frame.store(true, Ordering::SeqCst);
    }

    /// Whether the link still waits for a frame to cut.
    pub(crate) fn is_about_to_cut(&self) -> bool {
        self.shared.cuts_mid_frame.load(Ordering::SeqCst)
    }

    /// Kills the process before or after (`moment`) the next frame of the kind `point`.
    pub(crate) fn kill_at(&self, point: Point, moment: Moment) {
        *self.shared.deadly.lock() = Some((point, moment));
    }

    /// Whether the link still waits for the process to reach the point of its kill.
    pub(crate) fn is_deadly(&self) -> bool {
        self.shared.deadly.lock().is_some()
    }

    /// Returns how many chunks a fault has held or delayed so far.
    pub(crate) fn hindered(&self) -> u64 {
        self.shared.hindered.load(Ordering::SeqCst)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.end.cancelled() => return,
        };
        match accepted {
            Ok((client, _)) => {
                tokio::spawn(connect(client, shared.clone()));
            }
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

/// Forwards one connection until it ends.
async fn connect(client: TcpStream, shared: Arc<Shared>) {
    // A client that connects during a black hole gets no answer.
    let cut = shared.cut.lock().clone();
    tokio::select! {
        () = shared.passage(0) => {}
        () = cut.cancelled() => return,
    }
    let Some(server) = shared.dial().await else { return };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);

    let number = shared.connections.fetch_add(1, Ordering::Relaxed);
    let follower = (shared.protocol == Protocol::Amqp)
        .then(|| Arc::new(Mutex::new(Follower::new(shared.seen.clone(), &shared.route.process, number))));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let requests = Direction { shared: &shared, follower: follower.clone(), to_server: true };
    let replies = Direction { shared: &shared, follower, to_server: false };

    tokio::select! {
        () = requests.carry(from_client, to_server) => {}
        () = replies.carry(from_server, to_client) => {}
        () = cut.cancelled() => {}
    }
}

impl Shared {
    async fn dial(&self) -> Option<TcpStream> {
        let servers = &self.route.servers;
        let first = self.last_server.load(Ordering::Relaxed);
        for turn in 0..servers.len() {
            let place = (first + turn) % servers.len();
            let dialed = tokio::time::timeout(DIAL, TcpStream::connect(servers[place])).await;
            if let Ok(Ok(server)) = dialed {
                self.last_server.store(place, Ordering::Relaxed);
                return Some(server);
            }
        }
        None
    }

    /// Waits until this number of bytes may pass.
    async fn passage(&self, bytes: usize) {
        let mut state = self.state.subscribe();
        let now = *state.borrow_and_update();
        if now != LinkState::Open && bytes > 0 {
            self.hindered.fetch_add(1, Ordering::SeqCst);
        }
        match now {
            LinkState::Open => {}
            LinkState::Slow(by) => sleep(by).await,
            LinkState::BlackHole => {
                let _ = state.wait_for(|state| *state != LinkState::BlackHole).await;
            }
        }
    }

    /// Kills the process if a kill is planned for this frame and this moment. Returns whether the process was killed.
    fn kill_if_due(&self, frame: &[u8], to_server: bool, moment: Moment) -> bool {
        let mut deadly = self.deadly.lock();
        let Some((point, when)) = *deadly else { return false };
        if when != moment || !point.is_at(self.protocol, to_server, frame) {
            return false;
        }
        *deadly = None;
        crate::process::kill_now(&self.pid);
        true
    }
}

/// One direction of one connection.
struct Direction<'a> {
    shared: &'a Shared,
    follower: Option<Arc<Mutex<Follower>>>,
    to_server: bool,
}

impl Direction<'_> {
    async fn carry(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut bytes: Vec<u8> = Vec::with_capacity(64 << 10);
        while let Ok(1..) = from.read_buf(&mut bytes).await {
            let mut whole = 0;
            while let Some(length) = self.shared.protocol.first_frame(&bytes[whole..]) {
                whole += length;
            }
            if whole == 0 {
                continue;
            }

            self.shared.passage(whole).await;
            let mut passing = bytes.drain(..whole).collect::<Vec<_>>();
            if self.pass(&mut passing, &mut to).await.is_none() {
                return;
            }
        }
    }

    /// Forwards whole frames; returns `None` when the connection has ended.
    async fn pass(&self, frames: &mut [u8], to: &mut OwnedWriteHalf) -> Option<()> {
        let mut at = 0;
        while let Some(length) = self.shared.protocol.first_frame(&frames[at..]) {
            let frame = &mut frames[at..at + length];
            at += length;
            self.note(frame);

            if self.shared.kill_if_due(frame, self.to_server, Moment::Before) {
                return None;
            }
            if self.shared.cuts_mid_frame.swap(false, Ordering::SeqCst) {
                let _ = to.write_all(&frame[..length.div_ceil(2)]).await;
                self.cut_all();
                return None;
            }
            to.write_all(frame).await.ok()?;
            if self.shared.kill_if_due(frame, self.to_server, Moment::After) {
                return None;
            }
        }
        Some(())
    }

    fn note(&self, frame: &mut [u8]) {
        if let Some(follower) = &self.follower {
            follower.lock().follow(frame, self.to_server);
        }
        if self.shared.protocol == Protocol::Mongo && !self.to_server && frame.len() < LONGEST_HELLO {
            for (from, to) in &*self.shared.renamed.lock() {
                while let Some(place) = find(frame, from) {
                    frame[place..place + from.len()].copy_from_slice(to);
                }
            }
        }
    }

    fn cut_all(&self) {
        let fresh = self.shared.end.child_token();
        std::mem::replace(&mut *self.shared.cut.lock(), fresh).cancel();
    }
}
