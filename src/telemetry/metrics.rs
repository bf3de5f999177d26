//! A small metrics registry and its rendering in the Prometheus text format.
//!
//! Names, help texts and label names are static; label values are few and chosen by the program,
//! never by a client. A metric is registered once and then counted without a lock.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

/// All metrics of a process. Shared as `Arc<Registry>`.
#[derive(Default)]
pub struct Registry {
    families: Mutex<BTreeMap<&'static str, Family>>,
}

struct Family {
    help: &'static str,
    /// By rendered labels: `a="b",c="d"`, or empty.
    series: BTreeMap<String, Metric>,
}

#[derive(Clone)]
enum Metric {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
    /// Computed when it is asked for.
    Read(Arc<dyn Fn() -> f64 + Send + Sync>),
    /// Counted elsewhere, and read when it is asked for.
    ReadCounter(Arc<dyn Fn() -> u64 + Send + Sync>),
}

impl Metric {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Counter(_) | Self::ReadCounter(_) => "counter",
            Self::Gauge(_) | Self::Read(_) => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

/// Label names and values.
type Labels<'a> = &'a [(&'static str, &'a str)];

impl Registry {
    /// An empty registry.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A number that only grows. Name it `..._total`. The same name and labels give the same
    /// counter again.
    pub fn counter(&self, name: &'static str, help: &'static str, labels: Labels<'_>) -> Counter {
        match self.register(name, help, labels, || Metric::Counter(Counter::default())) {
            Metric::Counter(counter) => counter,
            _ => Counter::default(),
        }
    }

    /// Shows a counter that somebody else counts. As [`Registry::counter`] otherwise.
    pub fn show_counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: Labels<'_>,
        counter: &Counter,
    ) {
        self.register(name, help, labels, || Metric::Counter(counter.clone()));
    }

    /// A number that goes up and down.
    pub fn gauge(&self, name: &'static str, help: &'static str, labels: Labels<'_>) -> Gauge {
        match self.register(name, help, labels, || Metric::Gauge(Gauge::default())) {
            Metric::Gauge(gauge) => gauge,
            _ => Gauge::default(),
        }
    }

    /// A gauge computed at each rendering; the closure must be quick. Registering it again
    /// replaces the closure.
    pub fn read_gauge(
        &self,
        name: &'static str,
        help: &'static str,
        labels: Labels<'_>,
        read: impl Fn() -> f64 + Send + Sync + 'static,
    ) {
        self.replace(name, help, labels, Metric::Read(Arc::new(read)));
    }

    /// A counter that is kept elsewhere, read at each rendering; the closure must be quick. Name it
    /// `..._total`. Registering it again replaces the closure.
    pub fn read_counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: Labels<'_>,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) {
        self.replace(name, help, labels, Metric::ReadCounter(Arc::new(read)));
    }

    fn replace(&self, name: &'static str, help: &'static str, labels: Labels<'_>, metric: Metric) {
        let mut families = self.lock();
        let family = families.entry(name).or_insert_with(|| Family { help, series: BTreeMap::new() });
        family.series.insert(render_labels(labels), metric);
    }

    /// A distribution over `bounds` (upper ends, ascending; the infinite one is added).
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        bounds: &'static [f64],
        labels: Labels<'_>,
    ) -> Histogram {
        match self.register(name, help, labels, || Metric::Histogram(Histogram::new(bounds))) {
            Metric::Histogram(histogram) => histogram,
            _ => Histogram::new(bounds),
        }
    }

    /// Shows a distribution that somebody else counts. As [`Registry::histogram`] otherwise.
    pub fn show_histogram(
        &self,
        name: &'static str,
        help: &'static str,
        labels: Labels<'_>,
        histogram: &Histogram,
    ) {
        self.register(name, help, labels, || Metric::Histogram(histogram.clone()));
    }

    /// The metric of that name and labels, made if it is new. One name has one kind: asking for
    /// another is a mistake of the program, and what the caller then counts is not shown.
    fn register(
        &self,
        name: &'static str,
        help: &'static str,
        labels: Labels<'_>,
        make: impl FnOnce() -> Metric,
    ) -> Metric {
        let mut families = self.lock();
        let family = families.entry(name).or_insert_with(|| Family { help, series: BTreeMap::new() });
        let made = make();
        let differs = family.series.values().any(|have| have.kind() != made.kind());
        debug_assert!(!differs, "metric {name} is registered as two kinds");
        if differs {
            return made;
        }
        family.series.entry(render_labels(labels)).or_insert(made).clone()
    }

    /// A panic elsewhere cannot leave the map half changed, so its poison is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Family>> {
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything in the Prometheus text format (version 0.0.4).
    pub fn render(&self) -> String {
        let mut out = String::new();
        for (name, family) in self.lock().iter() {
            let kind = family.series.values().next().map_or("untyped", Metric::kind);
            // Writing to a String cannot fail.
            let _ = writeln!(out, "# HELP {name} {}\n# TYPE {name} {kind}", family.help);
            for (labels, metric) in &family.series {
                let _ = render_series(&mut out, name, labels, metric);
            }
        }
        out
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("families", &self.lock().len()).finish()
    }
}

fn render_series(out: &mut String, name: &str, labels: &str, metric: &Metric) -> fmt::Result {
    let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
    match metric {
        Metric::Counter(counter) => writeln!(out, "{name}{braced} {}", counter.get()),
        Metric::Gauge(gauge) => writeln!(out, "{name}{braced} {}", gauge.get()),
        Metric::Read(read) => writeln!(out, "{name}{braced} {}", read()),
        Metric::ReadCounter(read) => writeln!(out, "{name}{braced} {}", read()),
        Metric::Histogram(histogram) => {
            let comma = if labels.is_empty() { "" } else { "," };
            let inner = &histogram.0;
            let mut below = 0;
            for (bound, count) in inner.bounds.iter().zip(&inner.counts) {
                below += count.load(Relaxed);
                writeln!(out, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {below}")?;
            }
            below += inner.above.load(Relaxed);
            writeln!(out, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {below}")?;
            writeln!(out, "{name}_sum{braced} {}", f64::from_bits(inner.sum.load(Relaxed)))?;
            writeln!(out, "{name}_count{braced} {below}")
        }
    }
}

fn render_labels(labels: Labels<'_>) -> String {
    let mut out = String::new();
    for (name, value) in labels {
        if !out.is_empty() {
            out.push(',');
        }
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let _ = write!(out, "{name}=\"{value}\"");
    }
    out
}

/// A number that only grows. Cheap to clone; clones count together.
#[derive(Debug, Clone, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down. Cheap to clone; clones share the value.
#[derive(Debug, Clone, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }

    /// Adds to the value; negative takes away.
    pub fn add(&self, by: f64) {
        add_f64(&self.0, by);
    }

    /// The value.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
}

/// A distribution. Cheap to clone; clones count together.
#[derive(Debug, Clone)]
pub struct Histogram(Arc<Buckets>);

#[derive(Debug)]
struct Buckets {
    bounds: &'static [f64],
    counts: Vec<AtomicU64>,
    above: AtomicU64,
    sum: AtomicU64,
}

impl Histogram {
    /// Bounds in seconds that suit requests and disk: 0.5 ms to 10 s.
    pub const SECONDS: &'static [f64] =
        &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

    /// Bounds in seconds that suit a disk and a LAN too: 50 us to 10 s.
    pub const FINE_SECONDS: &'static [f64] = &[
        0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
        5.0, 10.0,
    ];

    /// One that nobody is shown yet, see [`Registry::show_histogram`].
    pub fn new(bounds: &'static [f64]) -> Self {
        Self(Arc::new(Buckets {
            bounds,
            counts: bounds.iter().map(|_| AtomicU64::new(0)).collect(),
            above: AtomicU64::new(0),
            sum: AtomicU64::new(0f64.to_bits()),
        }))
    }

    /// Counts one value.
    pub fn observe(&self, value: f64) {
        let inner = &self.0;
        let at = inner.bounds.partition_point(|bound| *bound < value);
        inner.counts.get(at).unwrap_or(&inner.above).fetch_add(1, Relaxed);
        add_f64(&inner.sum, value);
    }

    /// Counts one duration, in seconds.
    pub fn observe_duration(&self, duration: Duration) {
        self.observe(duration.as_secs_f64());
    }
}

fn add_f64(cell: &AtomicU64, by: f64) {
    // The closure never gives up, so neither does the update.
    let _ = cell.fetch_update(Relaxed, Relaxed, |bits| Some((f64::from_bits(bits) + by).to_bits()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_every_kind() {
        let registry = Registry::new();
        registry.counter("a_total", "Things.", &[("kind", "x\"y\\z\n")]).add(2);
        registry.counter("a_total", "Things.", &[("kind", "x\"y\\z\n")]).add(1);
        registry.counter("a_total", "Things.", &[]).add(7);
        let gauge = registry.gauge("b", "Level.", &[]);
        gauge.set(2.5);
        gauge.add(-1.0);
        let histogram = registry.histogram("c_seconds", "Time.", &[0.1, 1.0], &[("r", "w")]);
        for value in [0.05, 0.1, 0.5, 3.0] {
            histogram.observe(value);
        }
        registry.read_gauge("d", "Now.", &[], || 4.0);
        registry.read_counter("e_total", "Elsewhere.", &[], || 5);
        assert_eq!(
            registry.render(),
            "# HELP a_total Things.\n# TYPE a_total counter\na_total 7\n\
             a_total{kind=\"x\\\"y\\\\z\\n\"} 3\n\
             # HELP b Level.\n# TYPE b gauge\nb 1.5\n\
             # HELP c_seconds Time.\n# TYPE c_seconds histogram\n\
             c_seconds_bucket{r=\"w\",le=\"0.1\"} 2\nc_seconds_bucket{r=\"w\",le=\"1\"} 3\n\
             c_seconds_bucket{r=\"w\",le=\"+Inf\"} 4\nc_seconds_sum{r=\"w\"} 3.65\n\
             c_seconds_count{r=\"w\"} 4\n\
             # HELP d Now.\n# TYPE d gauge\nd 4\n\
             # HELP e_total Elsewhere.\n# TYPE e_total counter\ne_total 5\n"
        );
    }

    #[test]
    fn counts_from_many_threads() {
        let registry = Registry::new();
        let counter = registry.counter("n_total", "N.", &[]);
        let histogram = registry.histogram("h", "H.", &[1.0], &[]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        counter.add(1);
                        histogram.observe(0.5);
                    }
                });
            }
        });
        assert_eq!(counter.get(), 4000);
        assert!(registry.render().contains("h_sum 2000\n"));
    }
}
