//! What a bucket costs in a month, from a table of prices and what was counted.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::meter::Traffic;

/// A month as providers bill it: 730 hours.
const MONTH: Duration = Duration::from_hours(730);
/// Shortest time whose rates say something about a month.
const OBSERVED_MIN: Duration = Duration::from_mins(10);
/// A gigabyte, as providers bill it: AWS and others mean 2^30 bytes.
const GIGABYTE: f64 = 1_073_741_824.0;

/// Prices in any one currency. What has none is not estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prices {
    /// For 1000 requests that put, the beginnings, parts and ends of multipart uploads included.
    pub put_per_1000: Option<f64>,
    /// For 1000 requests that read.
    pub get_per_1000: Option<f64>,
    /// For 1000 pages of a list.
    pub list_per_1000: Option<f64>,
    /// For a gigabyte that is kept for a month.
    pub stored_per_gb_month: Option<f64>,
    /// For a gigabyte that is read out.
    pub egress_per_gb: Option<f64>,
}

/// An estimate for a month in which everything goes on as it was observed. Each is in the prices' currency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MonthlyCost {
    /// Requests that put.
    pub puts: Option<f64>,
    /// Requests that read.
    pub gets: Option<f64>,
    /// Pages of lists.
    pub lists: Option<f64>,
    /// Bytes that are kept now.
    pub stored: Option<f64>,
    /// Bytes that are read.
    pub egress: Option<f64>,
    /// Sum of what is known; none if nothing is.
    pub total: Option<f64>,
    /// Whether each kind has a price and was observed long enough.
    pub complete: bool,
}

impl Prices {
    /// The name of a price that is no amount of money: negative, infinite or not a number.
    #[must_use]
    pub fn unusable(&self) -> Option<&'static str> {
        let named = [
            ("put_per_1000", self.put_per_1000),
            ("get_per_1000", self.get_per_1000),
            ("list_per_1000", self.list_per_1000),
            ("stored_per_gb_month", self.stored_per_gb_month),
            ("egress_per_gb", self.egress_per_gb),
        ];
        let wrong = |price: &Option<f64>| price.is_some_and(|price| !price.is_finite() || price < 0.0);
        named.iter().find(|(_, price)| wrong(price)).map(|(name, _)| *name)
    }
}

impl MonthlyCost {
    /// Estimates from what was counted, and `stored_bytes` if they are known. Rates over less than ten minutes say nothing.
    #[must_use]
    pub fn estimate(prices: &Prices, traffic: &Traffic, stored_bytes: Option<u64>) -> Self {
        let observed = Duration::from_secs(traffic.seconds);
        let months = (observed >= OBSERVED_MIN).then(|| observed.as_secs_f64() / MONTH.as_secs_f64());
        let per_month = |count: u64| months.map(|months| amount(count) / months);
        let requests = |price: Option<f64>, count| Some(price? * per_month(count)? / 1000.0);
        let mut cost = Self {
            puts: requests(prices.put_per_1000, traffic.puts),
            gets: requests(prices.get_per_1000, traffic.gets),
            lists: requests(prices.list_per_1000, traffic.lists),
            stored: prices
                .stored_per_gb_month
                .zip(stored_bytes)
                .map(|(price, bytes)| price * amount(bytes) / GIGABYTE),
            egress: prices
                .egress_per_gb
                .zip(per_month(traffic.bytes_received))
                .map(|(price, bytes)| price * bytes / GIGABYTE),
            total: None,
            complete: false,
        };
        let parts = [cost.puts, cost.gets, cost.lists, cost.stored, cost.egress];
        cost.complete = parts.iter().all(Option::is_some);
        cost.total = parts.iter().flatten().copied().reduce(|sum, part| sum + part);
        cost
    }
}

#[expect(clippy::cast_precision_loss, reason = "an estimate; 2^53 requests or bytes are exact")]
fn amount(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day() -> Traffic {
        Traffic {
            seconds: 24 * 3600,
            puts: 20_000,
            gets: 1000,
            lists: 17_280,
            bytes_received: 1 << 30,
            ..Traffic::default()
        }
    }

    #[test]
    fn a_day_is_extended_to_a_month() {
        let prices = Prices {
            put_per_1000: Some(0.005),
            get_per_1000: Some(0.0004),
            list_per_1000: Some(0.005),
            stored_per_gb_month: Some(0.023),
            egress_per_gb: Some(0.09),
        };
        let cost = MonthlyCost::estimate(&prices, &day(), Some(100 << 30));
        let days = 730.0 / 24.0;
        let near = |actual: Option<f64>, expected: f64| {
            let actual = actual.expect("an amount");
            assert!((actual - expected).abs() < 1e-9, "{actual} is not {expected}");
        };
        near(cost.puts, 0.1 * days);
        near(cost.gets, 0.0004 * days);
        near(cost.lists, 0.0864 * days);
        near(cost.stored, 2.3);
        near(cost.egress, 0.09 * days);
        near(cost.total, (0.1 + 0.0004 + 0.0864 + 0.09) * days + 2.3);
        assert!(cost.complete);
    }

    #[test]
    fn what_has_no_price_is_left_out_and_that_is_said() {
        let prices = Prices { stored_per_gb_month: Some(0.023), ..Prices::default() };
        let cost = MonthlyCost::estimate(&prices, &day(), Some(1 << 30));
        assert_eq!((cost.total, cost.complete), (Some(0.023), false));
        assert_eq!(MonthlyCost::estimate(&Prices::default(), &day(), None).total, None);
    }

    #[test]
    fn minutes_are_not_extended_to_a_month() {
        let prices = Prices { put_per_1000: Some(1.0), ..Prices::default() };
        let traffic = Traffic { seconds: 599, puts: 1000, ..Traffic::default() };
        assert_eq!(MonthlyCost::estimate(&prices, &traffic, None).puts, None);
    }

    #[test]
    fn a_price_that_is_no_amount_is_named() {
        let prices = Prices { list_per_1000: Some(-1.0), ..Prices::default() };
        assert_eq!(prices.unusable(), Some("list_per_1000"));
        assert_eq!(
            Prices { egress_per_gb: Some(f64::NAN), ..Prices::default() }.unusable(),
            Some("egress_per_gb")
        );
        assert_eq!(Prices::default().unusable(), None);
    }
}
