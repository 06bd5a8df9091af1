//! What the shop sells.

pub(crate) struct Product {
    pub(crate) id: &'static str,
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) cents: u32,
    /// How many there are when the shop opens.
    pub(crate) stock: u32,
}

pub(crate) const PRODUCTS: [Product; 5] = [
    Product {
        id: "mountain-100",
        name: "Mountain-100",
        about: "A mountain bike for every hill",
        cents: 339_999,
        stock: 8,
    },
    Product {
        id: "road-250",
        name: "Road-250",
        about: "Fast and light, for long roads",
        cents: 244_335,
        stock: 5,
    },
    Product {
        id: "sport-100",
        name: "Sport-100 Helmet",
        about: "Fits every head, in blue",
        cents: 3_499,
        stock: 40,
    },
    Product {
        id: "water-bottle",
        name: "Water Bottle",
        about: "30 oz., does not leak",
        cents: 499,
        stock: 100,
    },
    Product {
        id: "last-cap",
        name: "AWC Logo Cap",
        about: "Nearly gone: order two, and the stock denies them",
        cents: 899,
        stock: 1,
    },
];

pub(crate) fn product(id: &str) -> Option<&'static Product> {
    PRODUCTS.iter().find(|product| product.id == id)
}

/// A price in dollars.
pub(crate) fn price(cents: u64) -> String {
    format!("${}.{:02}", cents / 100, cents % 100)
}
