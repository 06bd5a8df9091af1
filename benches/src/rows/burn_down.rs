//! Measures how fast the dispatcher delivers documents that were left undelivered.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use document_outbox::{
    CommandSender, DocumentRef,
    amqp::{AmqpSettings, Publisher, TopologyMode},
    command::{ProcessDocumentMessages, Reason},
    dispatch::{Processor, ProcessorSettings},
};
use mongodb::{
    Collection, Namespace,
    bson::{Document, Uuid, doc},
};
use outbox_dispatcher::{Dispatcher, DispatcherSettings};

use crate::{
    baseline::{BatchedLoop, CarefulLoop, Confirmed, FedLoop},
    bed::{Bed, id},
    counters::Counters,
    figure::Figure,
    report::{Goal, Report, Row},
    result::Result,
    stats::{percentile, ratios},
};

pub(crate) async fn measure(bed: &Bed, report: &mut Report) -> Result<()> {
    let mut figure = Figure::new("burn-down", "Documents left behind, delivered a second", "/s");
    let mut rates = Vec::new();
    for (name, count) in [("10k", bed.scale.pick(1_000, 10_000)), ("100k", bed.scale.pick(5_000, 100_000))] {
        let [ours, fed, careful, unchecked] = burn(bed, report, count).await?;
        let row = |id: &str, theirs: &[f64], way: Way| {
            let measured = format!("dispatcher burn-down of {count} documents");
            let detail = format!("{:.0}/s to {:.0}/s", percentile(&ours, 50.0), percentile(theirs, 50.0));
            Row::new(format!("{id}-{name}"), measured, way.name())
                .values("×", &ratios(&ours, theirs))
                .detail(detail)
        };
        report.add(row("burn-down-as-safe", &fed, Way::Fed).goal(Goal::AtLeast(0.85)));
        report.add(row("burn-down", &careful, Way::Careful).goal(Goal::AtLeast(0.85)));
        report.add(row("burn-down-ceiling", &unchecked, Way::Unchecked));

        figure = figure
            .ours(format!("{count} documents"), &ours)
            .theirs(format!("{count} documents, {}", Way::Fed.name()), &fed)
            .theirs(format!("{count} documents, {}", Way::Careful.name()), &careful)
            .theirs(format!("{count} documents, {}", Way::Unchecked.name()), &unchecked);
        rates.push(ours);
    }
    report.draw(figure);

    let row = Row::new("burn-down-scale", "the rate of the second burn-down", "that of the first");
    report.add(row.goal(Goal::AtLeast(0.95)).values("×", &ratios(&rates[1], &rates[0])));
    Ok(())
}

/// The program that delivers the backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Dispatcher,
    Fed,
    Careful,
    Unchecked,
}

impl Way {
    const ALL: [Self; 4] = [Self::Dispatcher, Self::Fed, Self::Careful, Self::Unchecked];

    fn name(self) -> &'static str {
        match self {
            Self::Dispatcher => "dispatcher",
            Self::Fed => "loop by hand, as safe, fed by commands",
            Self::Careful => "loop by hand with claims, 4 workers",
            Self::Unchecked => "batched loop by hand, unchecked",
        }
    }
}

/// Returns the documents per second for each program, with one value for each block.
async fn burn(bed: &Bed, report: &mut Report, count: usize) -> Result<[Vec<f64>; 4]> {
    let collection = bed.raw_orders("stranded", count, 2_000).await?.clone_with_type::<Document>();
    collection.create_indexes(document_outbox::store::indexes()).await?;
    give_spares(&collection, count).await?;
    let publisher = Confirmed::connect(bed).await?;
    let (database, collection_of) = (bed.database.clone(), collection.clone());
    let careful =
        CarefulLoop { database: database.clone(), collection: collection_of, publisher: publisher.clone() };
    let fed = FedLoop::new(bed, &careful).await?;
    let unchecked = BatchedLoop { database, collection: collection.clone(), publisher };

    let mut rates: [Vec<f64>; 4] = Default::default();
    let blocks = bed.scale.blocks_of(count);
    for block in blocks.clone() {
        // The order of the programs rotates from block to block.
        for turn in 0..Way::ALL.len() {
            let which = (block + turn) % Way::ALL.len();
            let way = Way::ALL[which];
            strand(bed, &collection).await?;
            if matches!(way, Way::Dispatcher | Way::Fed) {
                command(bed, &collection.namespace(), count).await?;
            }

            let counting = block + 1 == blocks.end;
            let before = if counting { Some(Counters::take(bed).await?) } else { None };
            let began = Instant::now();
            let took = match way {
                Way::Dispatcher => dispatch(bed, count, &collection).await?,
                Way::Fed => fed.run(bed, count).await.map(|()| began.elapsed())?,
                Way::Careful => careful.run().await.map(|()| began.elapsed())?,
                Way::Unchecked => unchecked.run().await.map(|()| began.elapsed())?,
            };
            if let Some(before) = before {
                let counted = before.until_now(bed).await?;
                report.count(format!("{}, {count} documents", way.name()), count as f64, counted);
            }

            // The number of delivered messages is checked, because otherwise a program that delivers too few
            // could appear fast.
            let delivered = bed.waiting(&bed.queue()).await?;
            if delivered < u64::try_from(count)? {
                return Err(format!("{delivered} of {count} messages were delivered").into());
            }
            // The first block is only for warming up.
            if block > 0 {
                rates[which].push(count as f64 / took.as_secs_f64());
            }
        }
    }

    bed.purge().await?;
    Ok(rates)
}

/// Stores an entry in a separate field of each document. Later updates can then copy the entry from this
/// field back to the outbox.
async fn give_spares(collection: &Collection<Document>, count: usize) -> Result<()> {
    for numbers in (0..count).collect::<Vec<_>>().chunks(1_000) {
        let updates: Vec<_> = numbers
            .iter()
            .map(|n| {
                let order = id(*n);
                let entry = doc! {
                    "id": Uuid::from_bytes(uuid::Uuid::now_v7().into_bytes()),
                    "type": "order.changed",
                    "payload": { "order": &order, "total": 1, "at": 0, "note": "n".repeat(120) },
                };
                doc! { "q": { "_id": order }, "u": { "$set": { "spare": [entry] } } }
            })
            .collect();
        let database = collection.client().database(&collection.namespace().db);
        database.run_command(doc! { "update": collection.name(), "updates": updates }).await?;
    }
    Ok(())
}

/// Creates the state after a crash: every document has an unclaimed entry that has been due for a while, and the queue
/// is empty.
async fn strand(bed: &Bed, collection: &Collection<Document>) -> Result<()> {
    bed.purge().await?;
    let dates = doc! { "created_at": { "$subtract": ["$$NOW", 60_000] }, "available_at": { "$subtract": ["$$NOW", 60_000] } };
    let entry = doc! { "$mergeObjects": [{ "$first": "$spare" }, dates] };
    collection.update_many(doc! {}, vec![doc! { "$set": { "outbox": [entry] } }]).await?;
    // This flush prevents earlier writes from reaching the disk during a measurement.
    bed.client.database("admin").run_command(doc! { "fsync": 1 }).await?;
    Ok(())
}

/// Sends a command for every document, as the rescuer would.
async fn command(bed: &Bed, namespace: &Namespace, count: usize) -> Result<()> {
    let topology = CommandSender::topology(bed.commands(), bed.commands(), TopologyMode::Declare);
    let publisher = Publisher::start(AmqpSettings::new(&bed.rabbitmq_uri)?, topology);
    publisher.ready().await;
    let sender = CommandSender::new(publisher.clone(), bed.commands());
    for numbers in (0..count).collect::<Vec<_>>().chunks(1_000) {
        let command = |n: &usize| {
            ProcessDocumentMessages::new(DocumentRef::by_id(namespace.clone(), id(*n)), Reason::Stream)
        };
        for sent in sender.send(numbers.iter().map(command).collect()).await {
            sent?;
        }
    }
    publisher.close().await;
    Ok(())
}

/// Measures the time from the start of a dispatcher until every message is delivered and every outbox is empty.
async fn dispatch(bed: &Bed, count: usize, collection: &Collection<Document>) -> Result<Duration> {
    let settings = ProcessorSettings::default()
        .with(|settings| bed.state().name().clone_into(&mut settings.state_database));
    let processor = Processor::new(bed.client.clone(), Arc::new(bed.rabbitmq.clone()), settings);

    let mut settings = DispatcherSettings::new([format!("{}.*", bed.name()).parse()?]);
    settings.commands_exchange = bed.commands();
    settings.commands_queue = bed.commands();
    let dispatcher = Dispatcher::new(processor, AmqpSettings::new(&bed.rabbitmq_uri)?, settings)?;
    let began = Instant::now();
    let running = dispatcher.start();
    while bed.waiting(&bed.queue()).await? < u64::try_from(count)? {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bed.settled(collection).await?;
    let took = began.elapsed();
    running.stop().await;
    Ok(took)
}
