//! Tests the code that the derives generate for structs and enums. The tests in derive/tests/ are about the
//! definitions that the derives refuse.

use document_outbox::{
    Aggregate, DeliveryOrder, Inbox, Message, Outbox,
    deliver::{Deliver, HANDLERS, Handlers},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

#[derive(Serialize, Deserialize, Aggregate)]
#[aggregate(ordering = "dead_blocks", element_keys = "orderLines.sku, parcels.lines.sku")]
#[serde(rename_all = "camelCase")]
struct Order {
    #[serde(rename = "_id")]
    number: i64,
    order_lines: Vec<String>,
    #[serde(default)]
    parcels: Vec<String>,
    #[serde(alias = "remark", default)]
    #[aggregate(renamed)]
    note: String,
    #[serde(default)]
    inbox: Inbox,
    #[serde(skip)]
    r#type: Outbox,
}

#[test]
fn a_derived_aggregate_has_its_id_outbox_and_constants() {
    let mut order: Order =
        serde_json::from_str(r#"{ "_id": 7, "orderLines": [], "remark": "old" }"#).unwrap();
    assert_eq!((*order.id(), order.note.as_str(), order.inbox.len()), (7, "old", 0));
    assert_eq!((order.order_lines.len(), order.parcels.len()), (0, 0));
    order.outbox().send(Paid { order: 7 });
    assert_eq!(order.r#type.types(), ["order.paid"]);
    assert_eq!(Order::ORDERING, DeliveryOrder::DeadBlocks);
    assert_eq!(Order::ELEMENT_KEYS, [("orderLines", "sku"), ("parcels.lines", "sku")]);
}

/// A generic aggregate whose parameters, the types of the id and of the content, have no bounds.
#[derive(Serialize, Deserialize, Aggregate)]
struct Versioned<K, T>
where
    T: Clone,
{
    _id: K,
    content: T,
    #[serde(skip)]
    #[aggregate(outbox)]
    messages: Messages,
}

type Messages = Outbox;

#[derive(Serialize, Deserialize, Message)]
#[message(type = "changed")]
struct Changed<T> {
    to: T,
}

#[test]
fn generic_parameters_are_kept() {
    fn send<A: Aggregate<Id: std::fmt::Display>, M: Message>(aggregate: &mut A, message: M) -> String {
        aggregate.outbox().send(message);
        aggregate.id().to_string()
    }
    let mut versioned = Versioned { _id: "o-1".to_owned(), content: 1_u8, messages: Messages::default() };
    let changed = Changed { to: versioned.content };
    assert_eq!(send(&mut versioned, changed), "o-1");
    assert_eq!((versioned.content, versioned.messages.types()), (1, vec!["changed"]));
}

#[derive(Serialize, Deserialize, Message, Debug, PartialEq)]
#[message(
    type = "order.paid",
    alias = "order.payed",
    alias = "OrderPaid",
    schema = "https://example.test/paid.json"
)]
struct Paid {
    order: i64,
}

#[test]
fn a_derived_message_has_its_names_and_schema() {
    assert_eq!((Paid::TYPE, Paid::TYPES), ("order.paid", &["order.paid"][..]));
    assert_eq!(Paid::ALIASES, ["order.payed", "OrderPaid"]);
    assert_eq!(Paid::SCHEMA, Some("https://example.test/paid.json"));
    assert_eq!(Paid { order: 1 }.schema(), Paid::SCHEMA);
}

#[derive(Serialize, Deserialize, Message, Debug, PartialEq)]
#[message(prefix = "order", schema = "https://example.test/order.json")]
enum OrderEvent {
    Paid(Paid),
    #[message(alias = "order.line", schema = "https://example.test/line.json")]
    LineAdded {
        sku: String,
    },
    #[message(type = "order.gone")]
    Cancelled,
}

#[test]
fn each_variant_of_an_enum_has_a_type() {
    let mut outbox = Outbox::default();
    outbox.send(OrderEvent::Paid(Paid { order: 7 }));
    outbox.send(OrderEvent::LineAdded { sku: "s-1".into() });
    outbox.send(OrderEvent::Cancelled);
    assert_eq!(outbox.types(), ["order.paid", "order.line_added", "order.gone"]);
    assert_eq!(OrderEvent::TYPES, ["order.paid", "order.line_added", "order.gone"]);

    let schemas: Vec<_> = outbox.iter().map(|sent| sent.headers()["dataschema"].as_str()).collect();
    let all = "https://example.test/order.json";
    assert_eq!(schemas, [all, "https://example.test/line.json", all]);
    assert_eq!(outbox.sent::<OrderEvent>()[2], OrderEvent::Cancelled);
    assert!(OrderEvent::is_named("order.line") && !OrderEvent::is_named("order"));
}

#[test]
fn a_handler_of_an_enum_has_all_its_types() {
    fn handlers<M: Message + DeserializeOwned + Send + 'static>() -> Handlers {
        Handlers::builder().on("all", |_: M, _| async { Ok(()) }).build().unwrap()
    }
    let handlers = handlers::<OrderEvent>();
    for name in ["order.paid", "order.line_added", "order.line", "order.gone"] {
        assert_eq!(handlers.via(name), Some(HANDLERS), "{name}");
    }
    assert_eq!(handlers.via("order"), None);
}

/// The library under another name.
mod outbox {
    pub(super) use document_outbox::Outbox;

    pub(super) trait Aggregate {
        type Id;
        fn id(&self) -> &Self::Id;
        fn outbox(&mut self) -> &mut Outbox;
    }

    pub(super) trait Message {
        const TYPE: &'static str;
        const SCHEMA: Option<&'static str>;
    }
}

#[derive(Aggregate)]
#[aggregate(crate = "crate::derives::outbox")]
struct Elsewhere {
    #[serde(rename = "_id")]
    id: u8,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Message)]
#[message(type = "elsewhere", crate = "self::outbox")]
struct SentElsewhere;

#[test]
fn the_library_may_have_another_name() {
    let mut elsewhere = Elsewhere { id: 7, outbox: Outbox::default() };
    assert!(outbox::Aggregate::outbox(&mut elsewhere).is_empty());
    assert_eq!(*outbox::Aggregate::id(&elsewhere), 7);
    assert_eq!(<SentElsewhere as outbox::Message>::TYPE, "elsewhere");
    assert_eq!(<SentElsewhere as outbox::Message>::SCHEMA, None);
}
