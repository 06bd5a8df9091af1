//! Who owns a stream: one rescuer at a time, for as long as its lease lasts.
//!
//! ```text
//! document_outbox.leases
//! { _id: { stream: "default" }, kind: "stream",
//!   owner: "host/pid/..", epoch: 7,      // one more with every taking
//!   since: Date, until: Date }           // server time
//! ```
//!
//! # Flow
//! Those who stand by look at the lease several times while it lasts. Whoever finds it over takes it, with an epoch above
//! that of the lease and of the position. The owner renews it three times while it lasts, and gives it back when it ends.
//!
//! # Guarantees
//! - All dates are the server's (`$$NOW`), written and compared where they are stored, by the majority. No clock of a
//!   rescuer is asked what time it is, only how long something took.
//! - An owner counts its lease from *before* it asked for it, so it believes less than the server grants. One that was
//!   paused for longer finds out by that count alone, before it queues or saves anything.
//! - Whatever an owner writes late all the same is refused: positions are written only over the same or a lower epoch.
//!
//! # Caveats
//! A command that is on its way while an owner is paused is sent when it wakes up. That is a hint too many, and harmless.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use document_outbox::codes::{self, Verdict};
use mongodb::{
    Client, Collection,
    bson::{Bson, Document, doc},
    error::Error,
    options::ReturnDocument,
};

use crate::context::lasting;

/// The lease of one stream.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    collection: Collection<Document>,
    id: Document,
    owner: String,
    lasts: Duration,
}

/// A lease that was taken.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) epoch: i64,
    until: Mutex<Instant>,
}

/// The lease as another holds it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Others {
    pub(crate) owner: String,
    pub(crate) epoch: i64,
    pub(crate) left: Duration,
}

impl Held {
    /// Whether it lasts still, by the clock that runs while this process is paused.
    pub(crate) fn lasts(&self) -> bool {
        Instant::now() < self.until()
    }

    pub(crate) fn until(&self) -> Instant {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn extend(&self, until: Instant) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

impl Lease {
    pub(crate) fn new(
        client: &Client,
        state_database: &str,
        stream: &str,
        owner: &str,
        lasts: Duration,
    ) -> Self {
        let collection = client.database(state_database).collection_with_options("leases", lasting());
        Self { collection, id: doc! { "_id": { "stream": stream } }, owner: owner.into(), lasts }
    }

    pub(crate) fn lasts(&self) -> Duration {
        self.lasts
    }

    /// Who holds it; `None` where it can be taken.
    pub(crate) async fn look(&self) -> Result<Option<Others>, Error> {
        let left = doc! { "$cond": [is_date(), { "$subtract": ["$until", "$$NOW"] }, 0] };
        let fields = doc! { "owner": 1, "epoch": 1, "left": left };
        let found = self.collection.find_one(self.id.clone()).projection(fields).await?;
        Ok(found.and_then(|found| self.others(&found)))
    }

    /// Takes it where it can be taken, with an epoch above `floor`; `None` where another was faster.
    pub(crate) async fn take(&self, floor: i64) -> Result<Option<Held>, Error> {
        let asked = Instant::now();
        let me = || doc! { "$literal": &self.owner };
        let free = doc! { "$or": [
            { "$not": [is_date()] },
            { "$lte": ["$until", "$$NOW"] },
            // Its own of before: with a new epoch, so that what is still under way from then is refused.
            { "$eq": ["$owner", me()] },
        ] };
        let if_free = |new: Bson, old: &str| doc! { "$cond": ["$free", new, old] };
        let known =
            doc! { "$convert": { "input": "$epoch", "to": "long", "onError": 0_i64, "onNull": 0_i64 } };
        let epoch = doc! { "$add": [{ "$max": [known, floor] }, 1_i64] };
        let update = vec![
            doc! { "$set": { "free": free } },
            doc! { "$set": {
                "kind": "stream",
                "owner": if_free(me().into(), "$owner"),
                "epoch": if_free(epoch.into(), "$epoch"),
                "since": if_free("$$NOW".into(), "$since"),
                "until": if_free(self.until().into(), "$until"),
            } },
            doc! { "$unset": "free" },
        ];
        let taken = self
            .collection
            .find_one_and_update(self.id.clone(), update)
            .upsert(true)
            .return_document(ReturnDocument::After)
            .await;
        let taken = match taken {
            Err(error) if codes::verdict(&error) == Verdict::Duplicate => return Ok(None),
            taken => taken?.unwrap_or_default(),
        };
        let mine = taken.get_str("owner").is_ok_and(|owner| owner == self.owner);
        let held = |epoch| Held { epoch, until: Mutex::new(asked + self.lasts) };
        Ok(taken.get_i64("epoch").ok().filter(|_| mine).map(held))
    }

    /// Renews it; false where it is another's, or gone.
    pub(crate) async fn renew(&self, epoch: i64) -> Result<bool, Error> {
        let update = vec![doc! { "$set": { "until": self.until() } }];
        Ok(self.collection.update_one(self.mine(epoch), update).await?.matched_count == 1)
    }

    /// Gives it back, so that another can take it at once.
    pub(crate) async fn release(&self, epoch: i64) -> Result<(), Error> {
        let update = vec![doc! { "$set": { "until": "$$NOW" } }];
        self.collection.update_one(self.mine(epoch), update).await.map(drop)
    }

    fn mine(&self, epoch: i64) -> Document {
        let mut filter = self.id.clone();
        filter.extend(doc! { "owner": &self.owner, "epoch": epoch });
        filter
    }

    fn until(&self) -> Document {
        doc! { "$add": ["$$NOW", i64::try_from(self.lasts.as_millis()).unwrap_or(i64::MAX)] }
    }

    fn others(&self, found: &Document) -> Option<Others> {
        let owner = found.get_str("owner").unwrap_or("an unknown rescuer");
        let left = found.get_i64("left").ok().and_then(|left| u64::try_from(left).ok()).unwrap_or(0);
        let epoch = found.get_i64("epoch").unwrap_or(0);
        let others = Others { owner: owner.into(), epoch, left: Duration::from_millis(left) };
        (left > 0 && owner != self.owner).then_some(others)
    }
}

fn is_date() -> Document {
    doc! { "$eq": [{ "$type": "$until" }, "date"] }
}

/// What this process is called in leases and positions.
pub(crate) fn owner() -> String {
    let host = std::env::var("HOSTNAME").or_else(|_| std::fs::read_to_string("/proc/sys/kernel/hostname"));
    let host = host.map(|host| host.trim().to_owned()).ok().filter(|host| !host.is_empty());
    let unique = uuid::Uuid::new_v4().simple().to_string();
    format!("{}/{}/{}", host.as_deref().unwrap_or("rescuer"), std::process::id(), &unique[..8])
}
