//! Strategies that generate BSON values and delivery orders.

#![allow(dead_code, unreachable_pub, reason = "each test uses only some of the strategies")]

use document_outbox::DeliveryOrder;
use mongodb::bson::{Bson, Document, Uuid};
use outbox_proof::world::at;
use proptest::prelude::*;

/// Generates a value of a common BSON type, nested up to three levels deep.
pub fn any_bson() -> impl Strategy<Value = Bson> {
    let leaf = prop_oneof![
        Just(Bson::Null),
        any::<bool>().prop_map(Bson::from),
        any::<i32>().prop_map(Bson::from),
        any::<i64>().prop_map(Bson::from),
        any::<f64>().prop_map(Bson::from),
        ".{0,8}".prop_map(Bson::from),
        (0..20u8).prop_map(|tick| Bson::from(at(tick))),
        (0..3u8).prop_map(|id| Bson::from(Uuid::from_bytes([id; 16]))),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Bson::from),
            prop::collection::btree_map("[a-z]{1,4}", inner, 0..3)
                .prop_map(|fields| Bson::from(fields.into_iter().collect::<Document>())),
        ]
    })
}

pub fn any_order() -> impl Strategy<Value = DeliveryOrder> {
    prop::sample::select(vec![DeliveryOrder::Ordered, DeliveryOrder::DeadBlocks, DeliveryOrder::Unordered])
}
