//! Making metrics: each is registered, and listed with its labels, so that documents, rules and dashboards can be checked.

use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, Result,
};

/// Buckets from a millisecond to a minute: looks, passes and API calls.
pub(super) const SHORT: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0];
/// Buckets from a hundredth of a second to a day: a wipe of a large disk takes hours.
pub(super) const LONG: [f64; 14] = [
    0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 10_800.0, 21_600.0, 43_200.0, 86_400.0,
];

/// What there is to know about a metric before it has a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// The full name; a histogram's series have `_bucket`, `_sum` and `_count` behind it.
    pub name: String,
    /// It is a histogram.
    pub histogram: bool,
    /// The names of its labels; a histogram's buckets have `le` besides.
    pub labels: Vec<String>,
}

/// Makes and registers metrics.
#[derive(Default)]
pub(super) struct Register {
    pub(super) registry: Registry,
    pub(super) descriptions: Vec<Description>,
}

fn options(rest: &str, help: &str) -> Opts {
    Opts::new(format!("local_volume_provisioner_{rest}"), help)
}

impl Register {
    fn add<M: Collector + Clone + 'static>(&mut self, metric: Result<M>, histogram: bool) -> Result<M> {
        let metric = metric?;
        self.descriptions
            .extend(metric.desc().into_iter().map(|described| Description {
                name: described.fq_name.clone(),
                histogram,
                labels: described.variable_labels.clone(),
            }));
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub(super) fn counter(&mut self, rest: &str, help: &str) -> Result<IntCounter> {
        self.add(IntCounter::with_opts(options(rest, help)), false)
    }

    /// A counter of seconds.
    pub(super) fn seconds(&mut self, rest: &str, help: &str) -> Result<Counter> {
        self.add(Counter::with_opts(options(rest, help)), false)
    }

    pub(super) fn counters(&mut self, rest: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec> {
        self.add(IntCounterVec::new(options(rest, help), labels), false)
    }

    pub(super) fn gauge(&mut self, rest: &str, help: &str) -> Result<IntGauge> {
        self.add(IntGauge::with_opts(options(rest, help)), false)
    }

    /// A gauge that holds a Unix time in seconds.
    pub(super) fn time(&mut self, rest: &str, help: &str) -> Result<Gauge> {
        self.add(Gauge::with_opts(options(rest, help)), false)
    }

    pub(super) fn gauges(&mut self, rest: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec> {
        self.add(IntGaugeVec::new(options(rest, help), labels), false)
    }

    pub(super) fn histogram(&mut self, rest: &str, help: &str, buckets: &[f64]) -> Result<Histogram> {
        self.add(Histogram::with_opts(histogram(rest, help, buckets)), true)
    }

    pub(super) fn histograms(
        &mut self,
        rest: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<HistogramVec> {
        self.add(HistogramVec::new(histogram(rest, help, buckets), labels), true)
    }

    /// A gauge under the name that every program's has.
    pub(super) fn standard(&mut self, name: &str, help: &str) -> Result<Gauge> {
        self.add(Gauge::with_opts(Opts::new(name, help)), false)
    }

    /// A counter under the name that every program's has.
    pub(super) fn standard_seconds(&mut self, name: &str, help: &str) -> Result<Counter> {
        self.add(Counter::with_opts(Opts::new(name, help)), false)
    }
}

fn histogram(rest: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts {
        common_opts: options(rest, help),
        buckets: buckets.to_vec(),
    }
}

/// A count as a gauge takes it.
pub(super) fn whole<N: TryInto<i64>>(count: N) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}
