//! Measures whether memory, descriptors and tasks stay flat under a fixed rate of saves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use document_outbox::{Loaded, Mode, Store, store::Saved};
use mongodb::{
    Collection,
    bson::{Document, doc},
};
use tokio::time::{MissedTickBehavior, interval};

use super::{
    backlog::{fresh_entry, is_burnt_down},
    finding::Finding,
    received::Received,
    services::{Services, arrived},
    watched::{Course, Watched},
};
use crate::{
    bed::{Bed, id},
    order::Order,
    result::Result,
};

const LIMIT: &str = "soak";
const SAVERS: usize = 16;
const DOCUMENTS_OF_A_SAVER: usize = 50;
const SAVES_PER_SECOND: u64 = 200;
/// Messages per second that no inline dispatcher delivers, so that rescuer and dispatcher have work too.
const LEFT_PER_SECOND: u64 = 10;
const SAMPLE_EVERY: Duration = Duration::from_secs(5);

pub(crate) async fn measure(bed: &Bed, minutes: u64) -> Result<Vec<Finding>> {
    let time = Duration::from_mins(minutes);
    let described = format!(
        "{SAVES_PER_SECOND} saves a second and {LEFT_PER_SECOND} messages left behind, for {minutes} minutes"
    );
    eprintln!("{LIMIT}: {described}");

    let inline = bed.inline(Mode::Background);
    let store = bed.orders(&inline, "saved", SAVERS * DOCUMENTS_OF_A_SAVER, 2_000).await?;
    let left = bed.raw_orders("left", 1_000, 200).await?.clone_with_type::<Document>();
    left.create_indexes(document_outbox::store::indexes()).await?;
    let received = Received::start(bed, (SAVES_PER_SECOND + LEFT_PER_SECOND) * (time.as_secs() + 60)).await?;
    let services = Services::start(bed, bed.name())?;

    let mut watched = vec![
        Watched::new("application", "self")?,
        Watched::new("rescuer", services.rescuer.pid()?)?,
        Watched::new("dispatcher", services.dispatcher.pid()?)?,
    ];
    let numbers = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let savers = save_all(bed, &store, &numbers, began + time);
    let leaving = leave_all(&left, &numbers, began + time);
    let watching = watch(&mut watched, began + time);
    futures::future::try_join3(savers, leaving, watching).await?;
    let sent = numbers.load(Ordering::Relaxed);

    let ended = Instant::now();
    let collections = [store.collection().clone_with_type(), left];
    let drained = is_burnt_down(bed, &received, sent, &collections, ended).await?;

    let mut findings = vec![Finding::figure(
        LIMIT,
        described,
        format!("{sent} messages, {:.0} a second", sent as f64 / time.as_secs_f64()),
    )];
    findings.push(arrived(LIMIT, &received, sent));
    let drained = format!("{:.1} s", drained.as_secs_f64());
    findings.push(Finding::figure(LIMIT, "from the last save until all have arrived", drained));
    for process in &watched {
        findings.extend(judged(process, sent)?);
    }
    services.stop().await?;
    Ok(findings)
}

/// What a process used, each with the bound that makes it flat.
fn judged(process: &Watched, sent: u64) -> Result<Vec<Finding>> {
    let name = process.name;
    let arrow = |Course { middle, last }: &Course, unit: &str| format!("{middle:.1} → {last:.1}{unit}");

    let memory = process.memory();
    let flat = memory.last - memory.middle <= (memory.middle * 0.05).max(2.0);
    let mut findings = vec![
        Finding::figure(
            LIMIT,
            format!("memory of the {name}, median of the second → last third"),
            arrow(&memory, " MiB"),
        )
        .bound("+5 %, or +2 MiB", flat),
    ];
    let descriptors = process.descriptors();
    findings.push(
        Finding::figure(LIMIT, format!("descriptors of the {name}"), arrow(&descriptors, ""))
            .bound("+2", descriptors.last <= descriptors.middle + 2.0),
    );
    let (what, tasks) =
        (if process.is_this_process() { "tasks" } else { "threads" }, process.threads_or_tasks());
    findings.push(
        Finding::figure(LIMIT, format!("{what} of the {name}"), arrow(&tasks, ""))
            .bound("+10 %, or +4", tasks.last - tasks.middle <= (tasks.middle * 0.1).max(4.0)),
    );
    let cpu = process.cpu_seconds()? / sent as f64 * 1e3;
    findings.push(Finding::figure(
        LIMIT,
        format!("processor time of the {name}"),
        format!("{cpu:.3} ms a message of all"),
    ));
    Ok(findings)
}

async fn watch(watched: &mut [Watched], until: Instant) -> Result<()> {
    let mut ticks = interval(SAMPLE_EVERY);
    while Instant::now() < until {
        ticks.tick().await;
        for process in watched.iter_mut() {
            process.sample()?;
        }
    }
    Ok(())
}

/// Saves at the fixed rate, shared between savers with documents of their own.
async fn save_all(bed: &Bed, store: &Store<Order>, numbers: &Arc<AtomicU64>, until: Instant) -> Result<()> {
    let mut loaded = bed.load(store, SAVERS * DOCUMENTS_OF_A_SAVER).await?.into_iter();
    let savers = (0..SAVERS).map(|_| {
        let documents = loaded.by_ref().take(DOCUMENTS_OF_A_SAVER).collect();
        tokio::spawn(save_in_turn(store.clone(), documents, numbers.clone(), until))
    });
    for saver in savers.collect::<Vec<_>>() {
        saver.await??;
    }
    Ok(())
}

async fn save_in_turn(
    store: Store<Order>,
    mut documents: Vec<Loaded<Order>>,
    numbers: Arc<AtomicU64>,
    until: Instant,
) -> Result<()> {
    let mut ticks = interval(Duration::from_secs_f64(SAVERS as f64 / SAVES_PER_SECOND as f64));
    // A late save is made up for, so that the rate stays what it is.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut next = 0;
    while Instant::now() < until {
        ticks.tick().await;
        next = (next + 1) % documents.len();
        let document = &mut documents[next];
        document.send(i64::try_from(numbers.fetch_add(1, Ordering::Relaxed))?, 1);
        match store.save(document).await? {
            Saved::Applied(_) => {}
            other => return Err(format!("a save ended as {other:?}").into()),
        }
    }
    Ok(())
}

/// Pushes messages as a program does that has no inline dispatcher.
async fn leave_all(left: &Collection<Document>, numbers: &Arc<AtomicU64>, until: Instant) -> Result<()> {
    let mut ticks = interval(Duration::from_secs_f64(1.0 / LEFT_PER_SECOND as f64));
    let mut next = 0;
    while Instant::now() < until {
        ticks.tick().await;
        let entry = fresh_entry(numbers.fetch_add(1, Ordering::Relaxed), 120)?;
        left.update_one(doc! { "_id": id(next) }, doc! { "$push": { "outbox": entry } }).await?;
        next = (next + 1) % 1_000;
    }
    Ok(())
}
