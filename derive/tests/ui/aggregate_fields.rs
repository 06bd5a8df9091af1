use document_outbox_derive::Aggregate;

struct Outbox;

#[derive(Aggregate)]
struct Etag {
    #[serde(rename = "_id")]
    id: String,
    etag: String,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
#[serde(rename_all = "camelCase")]
struct RenamedToOutbox {
    #[serde(rename = "_id")]
    id: String,
    out_box: String,
    outbox_: String,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
struct Alias {
    #[serde(rename = "_id")]
    id: String,
    #[serde(alias = "oldNote")]
    note: String,
    #[serde(alias = "etag")]
    version: String,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
struct CannotBeUpdated {
    #[serde(rename = "_id")]
    id: String,
    #[serde(rename = "price.net")]
    net: i64,
    #[serde(rename = "$price")]
    price: i64,
    #[serde(rename = "")]
    unnamed: i64,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
struct OneName {
    #[serde(rename = "_id")]
    id: String,
    total: i64,
    #[serde(rename = "total")]
    sum: i64,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
#[serde(rename_all(serialize = "camelCase"))]
struct CannotBeRead {
    #[serde(rename = "_id")]
    id: String,
    paid_at: i64,
    #[serde(skip_serializing)]
    secret: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lines: Vec<String>,
    #[serde(skip)]
    outbox: Outbox,
}

fn main() {}
