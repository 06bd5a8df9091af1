//! Ownership of a stream: one rescuer owns it at a time, for as long as its lease lasts.
//!
//! ```text
//! document_outbox.leases
//! { _id: { stream: "default" }, kind: "stream",
//!   owner: "host/pid/..",
//!   epoch: 7,                             // increases by one each time the lease is taken
//!   since: Date, until: Date,             // server time; a released lease has no `until`
//!   term: { epoch: 7, lasts: 15000 },     // how long each renewal in epoch 7 lasts, in milliseconds
//!   able: { owner: "..", until: Date } }  // announces a standby that can send commands
//! ```
//!
//! # Flow
//! Standbys read the lease several times during its duration, and standbys that can send commands announce
//! this in the lease. A standby that finds the lease expired takes it, with an epoch above the epochs of the
//! lease and of the saved position; see `standby.rs` for the order among standbys. The owner renews the lease
//! three times per lease duration, and releases the lease when the owner stops.
//!
//! # Guarantees
//! - All dates are the server's (`$$NOW`). They are written and compared on the server, with
//!   majority concern. A rescuer's own clock only measures durations.
//! - An owner measures its lease from *before* its request, so it assumes a shorter lease than the server
//!   grants. An owner whose process was paused until after the lease's end detects this by its own clock
//!   alone, before it queues or saves anything.
//! - The server's clock may jump, for example when an administrator sets it. A released lease has no date, so
//!   a clock that is set back can't prolong it. If a standby has not seen a lease renewed for the lease's
//!   whole duration, it treats the lease as over, whatever the lease's date.
//! - A late write by a former owner is refused: a write only overwrites a position with the same or
//!   a lower epoch.
//!
//! # Caveats
//! If an owner is paused while it sends a command, the command is sent when the process wakes up, which is
//! harmless. If the server's clock is set ahead, an owner and its successor may both send commands until the
//! owner tries to renew its lease; duplicate commands are harmless too.
//!
//! # Versions
//! Rescuers of commit 2fcbd23 know neither `term` nor `able`. They leave both fields unchanged, and release a
//! lease by setting `until` instead of removing it. If the epoch in `term` differs from the lease's epoch, an
//! earlier owner wrote `term`, and it is ignored.

use std::time::{Duration, Instant};

use document_outbox::internal::error_codes::{self, Verdict};
use mongodb::{
    Collection,
    bson::{Bson, DateTime, Document, doc},
    error::Error,
    options::ReturnDocument,
};
use parking_lot::Mutex;

use crate::mongo::{LEASES, Mongo, POSITIONS, lasting};

/// The lease of one stream.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    collection: Collection<Document>,
    /// The positions of all streams, in the same database.
    positions: Collection<Document>,
    stream: String,
    owner: String,
    lasts: Duration,
}

/// A lease that was taken.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) epoch: i64,
    taken: Instant,
    until: Mutex<Instant>,
}

/// The lease as it is in the state database.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// The current or last owner.
    pub owner: String,
    /// A number that increases by one each time the lease is taken.
    pub epoch: i64,
    /// When the lease ends; `None` if it was released.
    pub until: Option<DateTime>,
    /// The remaining time by the server's clock.
    pub left: Duration,
    /// The duration that each renewal by its owner grants, if the lease records it.
    pub lasts: Option<Duration>,
    /// A standby that can send commands, if there is one.
    pub able: Option<AbleStandby>,
}

/// A standby that can send commands.
#[derive(Debug, Clone, PartialEq)]
pub struct AbleStandby {
    /// The name of the standby.
    pub owner: String,
    /// When the standby's announcement expires.
    pub until: DateTime,
    /// The remaining time by the server's clock.
    pub left: Duration,
}

/// The result of a renewal of the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewed {
    Done,
    /// Another rescuer has the lease, or the lease no longer exists.
    Lost,
}

impl Held {
    /// Whether the lease still lasts, by a clock that also advances while this process is paused.
    pub(crate) fn lasts(&self) -> bool {
        Instant::now() < self.until()
    }

    /// How long the lease has been held.
    pub(crate) fn age(&self) -> Duration {
        self.taken.elapsed()
    }

    pub(crate) fn until(&self) -> Instant {
        *self.until.lock()
    }

    pub(crate) fn extend(&self, until: Instant) {
        *self.until.lock() = until;
    }
}

impl Lease {
    pub(crate) fn new(
        mongo: &Mongo,
        state_database: &str,
        stream: &str,
        owner: &str,
        lasts: Duration,
    ) -> Self {
        let database = mongo.database(state_database);
        Self {
            collection: database.collection_with_options(LEASES, lasting()),
            positions: database.collection_with_options(POSITIONS, lasting()),
            stream: stream.into(),
            owner: owner.into(),
            lasts,
        }
    }

    pub(crate) fn stream(&self) -> &str {
        &self.stream
    }

    pub(crate) fn owner(&self) -> &str {
        &self.owner
    }

    pub(crate) fn lasts(&self) -> Duration {
        self.lasts
    }

    /// Reads the lease; `None` if it was never taken.
    pub(crate) async fn read(&self) -> Result<Option<Seen>, Error> {
        let fields = doc! {
            "owner": 1, "epoch": 1, "until": 1, "term": 1, "able": 1,
            "left": left("$until"), "able_left": left("$able.until"),
        };
        let found = self.collection.find_one(self.id()).projection(fields).await?;
        Ok(found.map(|found| seen(&found)))
    }

    /// The epoch of the stream's position, if there is one. The epoch of a new owner must be higher;
    /// otherwise the new owner couldn't write its position. The epoch must be higher even if the lease was
    /// deleted.
    pub(crate) async fn position_epoch(&self) -> Result<i64, Error> {
        let filter = doc! { "_id": &self.stream };
        let found = self.positions.find_one(filter).projection(doc! { "epoch": 1 }).await?;
        Ok(found.and_then(|found| found.get_i64("epoch").ok()).unwrap_or(0))
    }

    /// Takes the lease if it is free, with an epoch above `floor`; returns `None` if another
    /// rescuer was faster. If the lease's date is still equal to `stale`, the lease counts as
    /// expired.
    pub(crate) async fn take(&self, floor: i64, stale: Option<DateTime>) -> Result<Option<Held>, Error> {
        let asked = Instant::now();
        let taken = self
            .collection
            .find_one_and_update(self.id(), self.taking(floor, stale))
            .upsert(true)
            .return_document(ReturnDocument::After)
            .await;
        let taken = match taken {
            Err(error) if error_codes::verdict(&error) == Verdict::Duplicate => return Ok(None),
            taken => taken?.unwrap_or_default(),
        };

        if taken.get_str("owner").ok() != Some(self.owner.as_str()) {
            return Ok(None);
        }
        let Ok(epoch) = taken.get_i64("epoch") else {
            return Ok(None);
        };
        // The lease is measured from before the request, so it ends earlier here than on the
        // server.
        let until = asked + self.lasts;
        Ok(Some(Held { epoch, taken: Instant::now(), until: Mutex::new(until) }))
    }

    /// The update that takes the lease if it is free, and leaves it unchanged otherwise.
    fn taking(&self, floor: i64, stale: Option<DateTime>) -> Vec<Document> {
        let me = || doc! { "$literal": &self.owner };
        let mut free = vec![
            doc! { "$not": [is_date("$until")] },
            doc! { "$lte": ["$until", "$$NOW"] },
            // An earlier lease of this process counts as free too. It gets a new epoch when it is taken, so
            // that late writes of the earlier term are refused.
            doc! { "$eq": ["$owner", me()] },
        ];
        if let Some(stale) = stale {
            free.push(doc! { "$eq": ["$until", { "$literal": stale }] });
        }

        let known =
            doc! { "$convert": { "input": "$epoch", "to": "long", "onError": 0_i64, "onNull": 0_i64 } };
        let epoch = doc! { "$add": [{ "$max": [known, floor] }, 1_i64] };
        vec![
            doc! { "$set": { "free": { "$or": free } } },
            doc! { "$set": {
                "kind": "stream",
                "owner": if_free(me().into(), "$owner"),
                "epoch": if_free(epoch.clone().into(), "$epoch"),
                "term": if_free(doc! { "epoch": epoch, "lasts": self.millis() }.into(), "$term"),
                // The new owner is no longer a standby.
                "able": { "$cond": [
                    { "$and": ["$free", { "$eq": ["$able.owner", me()] }] }, "$$REMOVE", "$able",
                ] },
                "since": if_free("$$NOW".into(), "$since"),
                "until": if_free(self.until().into(), "$until"),
            } },
            doc! { "$unset": "free" },
        ]
    }

    pub(crate) async fn renew(&self, epoch: i64) -> Result<Renewed, Error> {
        let update = vec![doc! { "$set": { "until": self.until() } }];
        let renewed = self.collection.update_one(self.mine(epoch), update).await?;
        Ok(if renewed.matched_count == 1 { Renewed::Done } else { Renewed::Lost })
    }

    /// Releases the lease, so that another rescuer can take it at once. A released lease has no
    /// date, because a date could lie in the future after the server's clock is set back.
    pub(crate) async fn release(&self, epoch: i64) -> Result<(), Error> {
        let update = doc! { "$unset": { "until": "" } };
        self.collection.update_one(self.mine(epoch), update).await.map(drop)
    }

    /// Releases the lease if this process has it. Used after an attempt to take the lease got no
    /// answer.
    pub(crate) async fn release_any(&self) -> Result<(), Error> {
        let mut mine = self.id();
        mine.insert("owner", &self.owner);
        let update = doc! { "$unset": { "until": "" } };
        self.collection.update_one(mine, update).await.map(drop)
    }

    /// Announces this process as a standby that can send commands, for the duration of a lease.
    pub(crate) async fn announce(&self) -> Result<(), Error> {
        let mut others = self.id();
        others.insert("owner", doc! { "$ne": &self.owner });
        let able = doc! { "owner": { "$literal": &self.owner }, "until": self.until() };
        // The old value is replaced as a whole, because no field can be set in an old value that isn't a document.
        let update = vec![doc! { "$unset": "able" }, doc! { "$set": { "able": able } }];
        self.collection.update_one(others, update).await.map(drop)
    }

    /// Withdraws the announcement that this process can send commands.
    pub(crate) async fn withdraw(&self) -> Result<(), Error> {
        let mut mine = self.id();
        mine.insert("able.owner", &self.owner);
        self.collection.update_one(mine, doc! { "$unset": { "able": "" } }).await.map(drop)
    }

    fn id(&self) -> Document {
        doc! { "_id": { "stream": &self.stream } }
    }

    fn mine(&self, epoch: i64) -> Document {
        let mut filter = self.id();
        filter.extend(doc! { "owner": &self.owner, "epoch": epoch });
        filter
    }

    fn until(&self) -> Document {
        doc! { "$add": ["$$NOW", self.millis()] }
    }

    fn millis(&self) -> i64 {
        i64::try_from(self.lasts.as_millis()).unwrap_or(i64::MAX)
    }
}

/// Parses a stored lease and tolerates invalid fields.
fn seen(found: &Document) -> Seen {
    let epoch = found.get_i64("epoch").unwrap_or(0);
    Seen {
        owner: found.get_str("owner").unwrap_or("an unknown rescuer").to_owned(),
        epoch,
        until: found.get_datetime("until").ok().copied(),
        left: millis(found, "left"),
        lasts: lasts_at_a_time(found, epoch),
        able: able(found),
    }
}

/// The duration that each renewal by the owner grants. A `term` with another epoch was left by an
/// earlier owner and is ignored.
fn lasts_at_a_time(found: &Document, epoch: i64) -> Option<Duration> {
    let term = found.get_document("term").ok()?;
    if term.get_i64("epoch").ok() != Some(epoch) {
        return None;
    }
    Some(millis(term, "lasts")).filter(|lasts| !lasts.is_zero())
}

fn able(found: &Document) -> Option<AbleStandby> {
    let able = found.get_document("able").ok()?;
    let owner = able.get_str("owner").ok()?.to_owned();
    let until = *able.get_datetime("until").ok()?;
    Some(AbleStandby { owner, until, left: millis(found, "able_left") })
}

/// A duration, from a field in milliseconds; zero if the field is not a valid number.
fn millis(document: &Document, name: &str) -> Duration {
    let millis = document.get_i64(name).ok().and_then(|millis| u64::try_from(millis).ok());
    Duration::from_millis(millis.unwrap_or(0))
}

fn if_free(new: Bson, old: &str) -> Document {
    doc! { "$cond": ["$free", new, old] }
}

/// An expression for the milliseconds until a date; 0 if the field is not a date.
fn left(date: &str) -> Document {
    doc! { "$cond": [is_date(date), { "$subtract": [date, "$$NOW"] }, 0_i64] }
}

fn is_date(value: &str) -> Document {
    doc! { "$eq": [{ "$type": value }, "date"] }
}

/// The name of this process in leases and positions.
pub(crate) fn owner() -> String {
    let unique = uuid::Uuid::new_v4().simple().to_string();
    format!("{}/{}/{}", outbox_service::host_name(), std::process::id(), &unique[..8])
}
