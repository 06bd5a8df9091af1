use document_outbox_derive::Message;

#[derive(Message)]
struct Unnamed;

#[derive(Message)]
#[message(tpye = "order.paid")]
struct Misspelt;

#[derive(Message)]
#[message(type = "order.paid", type = "order.payed")]
struct Twice;

#[derive(Message)]
#[message(type = "order.paid", colour = "red", shema = "https://example.com")]
struct Unknown;

#[derive(Message)]
#[message(prefix = "order")]
struct PrefixOfAStruct;

#[derive(Message)]
#[message("order.paid")]
struct WithoutKey;

#[derive(Message)]
#[message(type = OrderPaid)]
struct WithoutQuotes;

#[derive(Message)]
#[message(type = "")]
struct Empty;

#[derive(Message)]
#[message(type = "order.0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789")]
struct TooLong;

#[derive(Message)]
#[message(type = "order.paid", alias = "", alias = "order.paid", alias = "paid", alias = "paid", schema = "")]
struct Aliases;

fn main() {}
