//! How fast the dispatcher delivers documents that were left undelivered.

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
    baseline::{BatchedLoop, Confirmed},
    bed::{Bed, id},
    contender::{Contender, Rates},
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
        let Rates { ours, theirs } = burn(bed, report, count).await?;
        let row = Row::new(
            format!("burn-down-{name}"),
            format!("dispatcher burn-down of {count} documents"),
            "batched loop by hand",
        );
        let detail = format!("{:.0}/s to {:.0}/s", percentile(&ours, 50.0), percentile(&theirs, 50.0));
        report.add(row.goal(Goal::AtLeast(0.85)).values("×", &ratios(&ours, &theirs)).detail(detail));
        figure = figure
            .ours(format!("{count} documents"), &ours)
            .theirs(format!("{count} documents, batched loop by hand"), &theirs);
        rates.push(ours);
    }
    report.draw(figure);

    let row = Row::new("burn-down-scale", "the rate of the second burn-down", "that of the first");
    report.add(row.goal(Goal::AtLeast(0.95)).values("×", &ratios(&rates[1], &rates[0])));
    Ok(())
}

/// Documents a second of the dispatcher, and of the loop, a block each.
async fn burn(bed: &Bed, report: &mut Report, count: usize) -> Result<Rates> {
    let collection = bed.raw_orders("stranded", count, 2_000).await?.clone_with_type::<Document>();
    collection.create_indexes(document_outbox::store::indexes()).await?;
    give_spares(&collection, count).await?;
    let publisher = Confirmed::connect(bed).await?;
    let by_hand = BatchedLoop { database: bed.database.clone(), collection: collection.clone(), publisher };

    let mut rates = Rates::default();
    let blocks = bed.scale.blocks_of(count);
    for block in blocks.clone() {
        for contender in Contender::in_turn(block) {
            strand(bed, &collection).await?;
            if contender == Contender::Ours {
                command(bed, &collection.namespace(), count).await?;
            }

            let counting = block + 1 == blocks.end;
            let before = if counting { Some(Counters::take(bed).await?) } else { None };
            let took = match contender {
                Contender::Ours => dispatch(bed, count, &collection).await?,
                Contender::Theirs => {
                    let began = Instant::now();
                    by_hand.run().await?;
                    began.elapsed()
                }
            };
            if let Some(before) = before {
                let name = match contender {
                    Contender::Ours => "dispatcher",
                    Contender::Theirs => "batched loop by hand",
                };
                let counted = before.until_now(bed).await?;
                report.count(format!("{name}, {count} documents"), count as f64, counted);
            }

            // A side that left messages undelivered was not the faster one.
            let delivered = bed.waiting(&bed.queue()).await?;
            if delivered < u64::try_from(count)? {
                return Err(format!("{delivered} of {count} messages were delivered").into());
            }
            rates.add(contender, block, count as f64 / took.as_secs_f64());
        }
    }

    bed.purge().await?;
    Ok(rates)
}

/// Stores an entry in a separate field of each document, from which the outbox can be filled again at once.
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

/// As after a crash: an unclaimed entry in every document, due for a while. And no message in the queue.
async fn strand(bed: &Bed, collection: &Collection<Document>) -> Result<()> {
    bed.purge().await?;
    let dates = doc! { "created_at": { "$subtract": ["$$NOW", 60_000] }, "available_at": { "$subtract": ["$$NOW", 60_000] } };
    let entry = doc! { "$mergeObjects": [{ "$first": "$spare" }, dates] };
    collection.update_many(doc! {}, vec![doc! { "$set": { "outbox": [entry] } }]).await?;
    // Otherwise earlier writes would reach the disk during one of the measurements.
    bed.client.database("admin").run_command(doc! { "fsync": 1 }).await?;
    Ok(())
}

/// A command for every document, as the rescuer would have sent them.
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

/// From the start of a dispatcher until every message is delivered and every outbox empty.
async fn dispatch(bed: &Bed, count: usize, collection: &Collection<Document>) -> Result<Duration> {
    let settings =
        ProcessorSettings::default().with(|settings| settings.state_database = bed.state().name().to_owned());
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
