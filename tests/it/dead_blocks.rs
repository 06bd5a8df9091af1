//! Tests the option with which a dead message blocks the later messages of its document.

use std::time::Duration;

use crate::flow::{Flow, Received};
use crate::support::{Added, is_empty};
use document_outbox::{
    Aggregate, DeliveryOrder, Dispatch, DocumentRef, InlineDispatcher, Mode, Outbox, RetryPolicy, Store,
    command::{ProcessDocumentMessages, Reason},
    dispatch::{Disposition, Processed},
    internal::Hold,
    store::Inserted,
};
use mongodb::bson::{DateTime, doc};
use outbox_dispatcher::DispatcherEvent;
use outbox_rescuer::RescueEvent;
use serde::{Deserialize, Serialize};

const DELAY: Duration = Duration::from_secs(1);
/// A header that no broker accepts, so that a message with this header dies at once.
const DEADLY: &str = "CC";

#[derive(Debug, Serialize, Deserialize)]
struct Account {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}

impl Aggregate for Account {
    type Id = String;
    const ORDERING: DeliveryOrder = DeliveryOrder::DeadBlocks;
    fn id(&self) -> &String {
        &self.id
    }
    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}

fn account(id: &str) -> Account {
    Account { id: id.into(), outbox: Outbox::default() }
}

/// P4 with the option `dead_blocks`: a dead message blocks later messages.
#[tokio::test]
async fn a_blocking_dead_message_stops_delivery_until_replay() {
    let flow = Flow::begin().await;
    let receiver = flow.receiver().await;
    let inline = InlineDispatcher::builder(&flow.test.client).mode(Mode::Await);
    let inline = inline.deliver_to(flow.rabbitmq("inline").await);
    let accounts = Store::<Account>::new(flow.test.orders(), &inline);
    let dispositions = |dispatch: Dispatch| match dispatch {
        Dispatch::Settled(settled) => {
            settled.into_iter().map(|(_, disposition)| disposition).collect::<Vec<_>>()
        }
        other => panic!("{other:?}"),
    };

    let dead_blocks = vec![flow.pattern()];
    let requeue_pause = Duration::from_millis(100);
    let settings = flow.rescuer_settings(DELAY).with(|settings| {
        settings.dead_blocks = dead_blocks.clone();
        settings.requeue_pause = requeue_pause;
    });
    let mut rescuer = flow.rescuer(settings).await;

    // The inline dispatcher delivers no message after the dead one, neither from the same save nor from the
    // next save.
    let mut new = account("a-1");
    new.outbox.send(Added { amount: 1 });
    new.outbox.send(Added { amount: 2 }).header(DEADLY, "x");
    new.outbox.send(Added { amount: 3 });
    let inserted = accounts.insert(new).await.unwrap();
    let Inserted::Applied(_, receipt) = inserted else { panic!("{inserted:?}") };
    let settled = dispositions(receipt.dispatch);
    assert!(
        matches!(&settled[..], [Disposition::Delivered, Disposition::Dead { .. }, Disposition::Waiting]),
        "{settled:?}"
    );
    let send = |account: &mut Account| _ = account.outbox.send(Added { amount: 4 });
    let updated = accounts.update("a-1", send).await.unwrap();
    assert_eq!(dispositions(updated.receipt.unwrap().dispatch), [Disposition::Waiting]);

    // A dispatcher with the same setting delivers no message after the dead message, either.
    let mut settings = flow.dispatcher_settings();
    settings.dead_blocks = dead_blocks;
    let mut worker = flow.dispatcher_with(RetryPolicy::default(), settings).await;
    let document = DocumentRef::by_id(flow.test.orders().namespace(), "a-1");
    let command = ProcessDocumentMessages::new(document, Reason::Operator);
    let sent = flow.command_sender().await.send(vec![command]).await;
    assert!(sent.iter().all(Result::is_ok), "{sent:?}");
    let finished = |event: &DispatcherEvent| match event {
        DispatcherEvent::Finished { processed, .. } => Some(*processed),
        _ => None,
    };
    assert_eq!(worker.wait("the end of the command", finished).await, Processed::Held(Hold::Dead));

    // The rescuer sends no command, although its change stream has already read a later change of another document,
    // and several sweeps have run.
    accounts.insert(account("a-2")).await.map(drop).unwrap();
    let mut outbox = Outbox::default();
    outbox.send(Added { amount: 5 });
    let staged = accounts.stage(&mut outbox).await.unwrap();
    let later = staged.onto(doc! {}).unwrap();
    flow.test.orders().update_one(doc! { "_id": "a-2" }, later).await.unwrap();
    drop(staged);
    let queued = |event: &RescueEvent| match event {
        RescueEvent::Queued { document, .. } => Some(document.subject()),
        _ => None,
    };
    assert_eq!(rescuer.wait("a command", queued).await, "a-2");
    for _ in 0..3 {
        let next = |event: &RescueEvent| match event {
            RescueEvent::SweepDone { .. } => Some(None),
            event => queued(event).filter(|id| id == "a-1").map(Some),
        };
        assert_eq!(rescuer.wait("the sweep to end", next).await, None, "it is not queued");
    }
    let amounts = |received: &[Received]| received.iter().map(Received::amount).collect::<Vec<_>>();
    assert_eq!(amounts(&receiver.wait(2).await), [1, 5]);

    // An operator replays the message after removing the cause of its death.
    let set = doc! { "outbox.$[e].available_at": DateTime::now() };
    let unset = doc! { "outbox.$[e].dead_at": "", "outbox.$[e].dead_reason": "", "outbox.$[e].headers": "" };
    let orders = flow.test.orders();
    let replay = orders.update_one(doc! { "_id": "a-1" }, doc! { "$set": set, "$unset": unset });
    replay.array_filters(vec![doc! { "e.dead_at": { "$exists": true } }]).await.unwrap();
    assert_eq!(amounts(&receiver.wait(5).await), [1, 5, 2, 3, 4]);
    flow.test.wait_until("a-1", is_empty).await;

    rescuer.stop().await;
    worker.running.stop().await;
    flow.end().await;
}
