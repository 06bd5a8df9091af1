use document_outbox_derive::Aggregate;

struct Outbox;

#[derive(Aggregate)]
struct NotRenamed {
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
#[serde(rename_all = "camelCase")]
struct RenameAllMakesNoId {
    _id: String,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
struct WithoutId {
    number: String,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
struct PerhapsFlattened {
    #[serde(flatten)]
    base: Base,
    #[serde(skip)]
    outbox: Outbox,
}

struct Base;

#[derive(Aggregate)]
struct Skipped {
    #[serde(skip)]
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
struct RenamedAndSkipped {
    #[serde(rename = "_id", skip)]
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
struct SometimesSkipped {
    #[serde(rename = "_id", skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
struct ReadUnderAnotherName {
    #[serde(rename(serialize = "_id", deserialize = "id"))]
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
struct Aliased {
    #[serde(rename = "_id", alias = "id")]
    id: String,
    #[serde(skip)]
    outbox: Outbox,
}

#[derive(Aggregate)]
struct Two {
    #[serde(rename = "_id")]
    id: String,
    #[serde(rename = "_id")]
    number: String,
    #[serde(skip)]
    outbox: Outbox,
}

fn main() {}
