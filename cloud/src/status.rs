//! Numbers that the parts publish, and whether the cloud is ready; read-only to everyone else.
//!
//! Holds: the sources of numbers, and the page they write themselves on (Prometheus text format 0.0.4).
//! In: [`Status::add`] from each part at start. Out: [`Status::page`]. Change here: the format.
//! Not here: which numbers there are (each part), HTTP (`admin`).

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

type Source = Arc<dyn Fn(&mut Page) + Send + Sync>;

/// Handle; clones share everything.
#[derive(Clone)]
pub struct Status {
    sources: Arc<Mutex<Vec<Source>>>,
    ready: Arc<AtomicBool>,
    started: Instant,
}

impl Default for Status {
    fn default() -> Self {
        Self { sources: Arc::default(), ready: Arc::default(), started: Instant::now() }
    }
}

impl Status {
    /// Adds a part's numbers; `read` is called for every page and must not block.
    pub fn add(&self, read: impl Fn(&mut Page) + Send + Sync + 'static) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(read));
    }

    /// Says whether the cloud serves.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Whether all heads are open and the cloud is not stopping.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Seconds since the start.
    pub fn uptime_s(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// All numbers now.
    pub fn page(&self) -> Page {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut page = Page::default();
        page.gauge("tributary_ready", "1 when all heads serve", &[], u64::from(self.is_ready()));
        page.gauge("tributary_uptime_seconds", "Seconds since the start", &[], self.uptime_s());
        if let Some(bytes) = resident_bytes() {
            page.gauge("process_resident_memory_bytes", "Resident memory", &[], bytes);
        }
        for source in sources {
            source(&mut page);
        }
        page
    }
}

/// What a scrape returns, being written.
#[derive(Debug, Default)]
pub struct Page {
    metrics: BTreeMap<&'static str, Metric>,
}

#[derive(Debug)]
struct Metric {
    help: &'static str,
    kind: &'static str,
    samples: String,
}

/// Label names and values.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

impl Page {
    /// Adds a number that only grows; its name ends in `_total`.
    pub fn counter(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Labels<'_>,
        value: u64,
    ) {
        self.sample(name, help, "counter", labels, value);
    }

    /// Adds a number that goes both ways.
    pub fn gauge(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: Labels<'_>,
        value: u64,
    ) {
        self.sample(name, help, "gauge", labels, value);
    }

    fn sample(
        &mut self,
        name: &'static str,
        help: &'static str,
        kind: &'static str,
        labels: Labels<'_>,
        value: u64,
    ) {
        let metric =
            self.metrics.entry(name).or_insert(Metric { help, kind, samples: String::new() });
        metric.samples.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            metric.samples.push_str(if index == 0 { "{" } else { "," });
            // Writing to a String cannot fail.
            let _ = write!(metric.samples, "{label}=\"{}\"", escape(text));
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(metric.samples, "{close} {value}");
    }

    /// The text of the page.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (name, metric) in &self.metrics {
            let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {}", metric.help, metric.kind);
            text.push_str(&metric.samples);
        }
        text
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Linux; elsewhere nothing.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_prometheus_text_with_escaped_labels() {
        let status = Status::default();
        status.add(|page| {
            page.counter("x_total", "Things", &[("name", "a\"b\\c\n"), ("k", "v")], 3);
            page.counter("x_total", "Things", &[], 4);
        });
        let text = status.page().render();
        assert!(text.contains(
            "# HELP x_total Things\n# TYPE x_total counter\n\
             x_total{name=\"a\\\"b\\\\c\\n\",k=\"v\"} 3\nx_total 4\n"
        ));
        assert!(text.contains("tributary_ready 0\n"));
    }
}
