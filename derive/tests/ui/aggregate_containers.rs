use document_outbox_derive::Aggregate;

struct Outbox;

#[derive(Aggregate)]
enum Either {
    This,
    That,
}

#[derive(Aggregate)]
struct Tuple(String, Outbox);

#[derive(Aggregate)]
#[serde(deny_unknown_fields)]
struct Strict {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
#[serde(into = "Stored", from = "Stored")]
struct StoredAsAnother {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}

struct Stored;

#[derive(Aggregate)]
#[serde(tag = "etag")]
struct Tagged {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}

fn main() {}
