//! Averages over one, five and fifteen minutes, per minute, as mosquitto counts them.

/// Minutes, as they stand in topics.
pub(super) const SPANS: [(&str, f64); 3] = [("1min", 60.0), ("5min", 300.0), ("15min", 900.0)];

/// Of one counter.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Load {
    last: u64,
    averages: [f64; SPANS.len()],
}

impl Load {
    /// The counter stands at `count` so many seconds after the last time.
    pub(super) fn sample(&mut self, count: u64, seconds: f64) {
        if seconds <= 0.0 {
            return;
        }
        let a_minute = count.saturating_sub(self.last) as f64 * 60.0 / seconds;
        self.last = count;
        for (average, (_, span)) in self.averages.iter_mut().zip(SPANS) {
            *average = a_minute + (-seconds / span).exp() * (*average - a_minute);
        }
    }

    pub(super) fn averages(&self) -> impl Iterator<Item = (&'static str, f64)> {
        SPANS.into_iter().map(|(name, _)| name).zip(self.averages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_flow_is_what_all_averages_come_to_and_the_short_one_comes_first() {
        let mut load = Load::default();
        for step in 1..=6_u64 {
            load.sample(step * 100, 10.0);
        }
        let soon: Vec<f64> = load.averages().map(|(_, average)| average).collect();
        assert!(soon[0] > soon[1] && soon[1] > soon[2] && soon[2] > 0.0, "{soon:?}");
        assert!((soon[0] - 600.0 * (1.0 - (-1.0_f64).exp())).abs() < 0.01, "{soon:?}");
        for step in 7..=600 {
            load.sample(step * 100, 10.0);
        }
        assert!(load.averages().all(|(_, average)| (average - 600.0).abs() < 1.0));
    }
}
