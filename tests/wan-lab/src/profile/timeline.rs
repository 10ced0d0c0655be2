//! What a profile's script makes of the link in the course of a run.

use std::time::Duration;

use serde::Serialize;

use super::{LinkProfile, LinkState, Rate, Way};

/// A time in which a direction, or both, did not pass packets. Seconds count from the start of the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outage {
    /// Its beginning.
    pub from_seconds: f64,
    /// Its end; the end of the run if the link stays so.
    pub until_seconds: f64,
    /// `down` or `hold`; what it began with.
    pub state: &'static str,
}

impl LinkProfile {
    /// Outages within a run of this length, in order.
    pub fn outages(&self, length: Duration) -> Vec<Outage> {
        let mut states = [LinkState::Up; 2];
        let mut outages: Vec<Outage> = Vec::new();
        let mut open = false;
        for change in self.script.iter().filter(|change| change.time <= length) {
            let Some(state) = change.link else { continue };
            for way in Way::BOTH.into_iter().filter(|way| change.direction.contain(*way)) {
                states[way as usize] = state;
            }
            let at = change.time.as_secs_f64();
            let is_out = states.iter().any(|state| *state != LinkState::Up);
            if is_out && !open {
                let state = if state == LinkState::Hold { "hold" } else { "down" };
                outages.push(Outage { from_seconds: at, until_seconds: length.as_secs_f64(), state });
            }
            if !is_out && let (true, Some(last)) = (open, outages.last_mut()) {
                last.until_seconds = at;
            }
            open = is_out;
        }
        outages
    }

    /// The rate of a direction in the course of a run: from when on, and which; the first is at 0. A link that is out has
    /// its rate still.
    pub fn rates(&self, way: Way, length: Duration) -> Vec<(Duration, Option<Rate>)> {
        let mut rates = vec![(Duration::ZERO, self.direction(way).rate)];
        for change in self.script.iter().filter(|change| change.time <= length) {
            if let (Some(rate), true) = (change.rate, change.direction.contain(way)) {
                rates.push((change.time, rate));
            }
        }
        rates
    }

    /// Bytes that a direction could have carried in a run of this length, outages excepted; `None` if its rate is
    /// unlimited at any time.
    pub fn capacity_bytes(&self, way: Way, length: Duration) -> Option<f64> {
        let outages = self.outages(length);
        let rates = self.rates(way, length);
        let mut bytes = 0.0;
        for (index, (from, rate)) in rates.iter().enumerate() {
            let until = rates.get(index + 1).map_or(length, |(next, _)| *next);
            let (from, until) = (from.as_secs_f64(), until.as_secs_f64());
            let out = outages
                .iter()
                .map(|outage| (outage.until_seconds.min(until) - outage.from_seconds.max(from)).max(0.0));
            bytes += (until - from - out.sum::<f64>()) * (*rate)?.bits() as f64 / 8.0;
        }
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outages_and_changes_of_rate_make_the_capacity() {
        let text = "version = 1\nname = \"x\"\n[both]\nrate = \"80mbit\"\n\
            [[at]]\ntime = \"10s\"\nlink = \"down\"\n\
            [[at]]\ntime = \"15s\"\nlink = \"up\"\ndirection = \"up\"\n\
            [[at]]\ntime = \"20s\"\nlink = \"up\"\n\
            [[at]]\ntime = \"30s\"\nrate = \"8mbit\"\n\
            [[at]]\ntime = \"39s\"\nlink = \"hold\"\n";
        let profile = LinkProfile::parse(text, "test").expect("is valid");
        let length = Duration::from_secs(40);
        let outage = |from_seconds, until_seconds, state| Outage { from_seconds, until_seconds, state };
        assert_eq!(profile.outages(length), [outage(10.0, 20.0, "down"), outage(39.0, 40.0, "hold")]);
        // 20 s with 10 MB and 9 s with 1 MB.
        assert_eq!(profile.capacity_bytes(Way::Up, length), Some(209e6));
        assert_eq!(LinkProfile::perfect("x").capacity_bytes(Way::Up, length), None);
    }
}
