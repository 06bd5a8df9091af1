use document_outbox_derive::Aggregate;

struct Outbox;

#[derive(Aggregate)]
#[aggregate(odering = "unordered")]
struct Misspelt {
    #[serde(rename = "_id")]
    id: String,
    #[aggregate(outbx)]
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
#[aggregate(colour = "red", ordering = "ordered", ordering = "unordered")]
struct UnknownAndTwice {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
#[aggregate(ordering = "un-ordered")]
struct NoSuchOrdering {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
#[aggregate(element_keys = "lnes.sku")]
struct NoSuchArray {
    #[serde(rename = "_id")]
    id: String,
    lines: Vec<String>,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
#[aggregate(element_keys = "lines")]
struct NoField {
    #[serde(rename = "_id")]
    id: String,
    lines: Vec<String>,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
#[aggregate]
struct NoKeys {
    #[serde(rename = "_id")]
    id: String,
    #[serde(skip)]
    #[aggregate(outbox = "yes")]
    outbox: Outbox,
}

#[derive(Aggregate)]
#[aggregate(ordering)]
struct NoText {
    #[serde(rename = "_id")]
    id: String,
    #[aggregate(renamed)]
    note: String,
    #[serde(skip)]
    outbox: Outbox,
}

fn main() {}
