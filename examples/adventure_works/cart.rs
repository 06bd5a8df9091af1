//! The cart, which the browser keeps in a cookie.

use super::{
    order::OrderLine,
    products::{PRODUCTS, product},
};

pub(crate) const COOKIE: &str = "cart";
/// The largest quantity of one product.
const MOST: u32 = 99;

/// Quantities by product, in the order of the catalogue. Text that is not a cart is an empty cart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Cart {
    pub(crate) items: Vec<(&'static str, u32)>,
}

impl Cart {
    /// Reads the header `Cookie`.
    pub(crate) fn of_cookies(header: &str) -> Self {
        let mut cart = Self::default();
        let cookies = header.split(';').filter_map(|cookie| cookie.trim().split_once('='));
        for (_, value) in cookies.filter(|(name, _)| *name == COOKIE) {
            for (id, quantity) in value.split('.').filter_map(|item| item.split_once(':')) {
                cart.add(id, quantity.parse().unwrap_or(0));
            }
        }
        cart
    }

    /// Adds a product. Unknown products are left out.
    pub(crate) fn add(&mut self, id: &str, quantity: u32) {
        let mut items = Vec::new();
        for product in &PRODUCTS {
            let before = self.items.iter().find(|(id, _)| *id == product.id).map_or(0, |(_, before)| *before);
            let more = if product.id == id { quantity } else { 0 };
            let sum = before.saturating_add(more).min(MOST);
            if sum > 0 {
                items.push((product.id, sum));
            }
        }
        self.items = items;
    }

    pub(crate) fn remove(&mut self, id: &str) {
        self.items.retain(|(item, _)| *item != id);
    }

    /// The number of items.
    pub(crate) fn count(&self) -> u32 {
        self.items.iter().map(|(_, quantity)| quantity).sum()
    }

    /// The value of the header `Set-Cookie`.
    pub(crate) fn cookie(&self) -> String {
        let items: Vec<_> = self.items.iter().map(|(id, quantity)| format!("{id}:{quantity}")).collect();
        format!("{COOKIE}={}; Path=/; HttpOnly; SameSite=Lax", items.join("."))
    }

    /// The lines of an order, with today's prices.
    pub(crate) fn lines(&self) -> Vec<OrderLine> {
        let mut lines = Vec::new();
        for (id, quantity) in &self.items {
            if let Some(product) = product(id) {
                lines.push(OrderLine {
                    product: product.id.to_owned(),
                    name: product.name.to_owned(),
                    cents: product.cents,
                    quantity: *quantity,
                });
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cart_survives_its_cookie() {
        let mut cart = Cart::default();
        cart.add("water-bottle", 2);
        cart.add("road-250", 1);
        cart.add("water-bottle", 1);
        cart.add("moon-rocket", 1);
        assert_eq!(cart.items, [("road-250", 1), ("water-bottle", 3)]);
        let set = cart.cookie();
        let (sent, _) = set.split_once(';').unwrap();
        assert_eq!(Cart::of_cookies(&format!("other=1; {sent}")), cart);
        cart.remove("road-250");
        assert_eq!((cart.count(), cart.lines().len()), (3, 1));
    }

    #[test]
    fn a_forged_cookie_holds_nothing_strange() {
        for header in
            ["cart=", "cart=x", "cart=a:1.b:2", "cart=road-250:-1", "cart=road-250:x", "carts=road-250:1"]
        {
            assert_eq!(Cart::of_cookies(header), Cart::default(), "{header}");
        }
        assert_eq!(
            Cart::of_cookies("cart=road-250:4000000000.road-250:4000000000").items,
            [("road-250", 99)]
        );
    }
}
