use document_outbox_derive::Aggregate;

struct Outbox;
struct Inbox;
type Messages = Outbox;

#[derive(Aggregate)]
struct NotSkipped {
    #[serde(rename = "_id")]
    id: String,
    outbox: Outbox,
}

#[derive(Aggregate)]
struct OnlyNotRead {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip_deserializing)]
    outbox: Outbox,
}

#[derive(Aggregate)]
struct Flattened {
    #[serde(rename = "_id")]
    id: String,
    #[serde(flatten)]
    outbox: Outbox,
}

#[derive(Aggregate)]
struct NoOutbox {
    #[serde(rename = "_id")]
    id: String,
}

#[derive(Aggregate)]
struct OfAnotherName {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip)]
    outbox: Messages,
}

#[derive(Aggregate)]
struct TwoOutboxes {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip)]
    outbox: Outbox,
    #[serde(skip)]
    other: Outbox,
}

#[derive(Aggregate)]
struct InboxSkipped {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip)]
    inbox: Inbox,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
struct InboxNeverRead {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip_deserializing)]
    inbox: Inbox,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
struct InboxFlattened {
    #[serde(rename = "_id")]
    id: String,
    #[serde(flatten)]
    inbox: Inbox,
    #[serde(skip)]
    outbox: Outbox,
}

fn main() {}
