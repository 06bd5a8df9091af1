use document_outbox_derive::Message;

#[derive(Message)]
enum Unnamed {
    Paid,
}

#[derive(Message)]
#[message(prefix = "order", type = "order.event", alias = "event")]
enum Both {
    Paid,
}

#[derive(Message)]
#[message(prefix = "")]
enum EmptyPrefix {
    Paid,
}

#[derive(Message)]
#[message(prefix = "order")]
enum Nothing {}

#[derive(Message)]
#[message(prefix = "order")]
#[serde(untagged)]
enum Untagged {
    Paid { order: String },
    Shipped { order: String },
}

#[derive(Message)]
#[message(prefix = "order")]
enum OneName {
    Paid,
    #[message(type = "order.paid")]
    Payed,
    #[message(alias = "order.paid")]
    Settled,
}

#[derive(Message)]
#[message(prefix = "order")]
enum Variants {
    #[serde(skip)]
    Skipped,
    #[serde(untagged)]
    Untagged { order: String },
    #[message(prefx = "order")]
    Misspelt,
}

fn main() {}
