//! The figures, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

/// One figure: of the provisioner, of the other program, and its floor.
#[derive(Default)]
struct Figure {
    unit: &'static str,
    /// By column: ours, the other's.
    values: BTreeMap<usize, f64>,
    floor: Option<(f64, &'static str)>,
}

/// All figures, in the order in which they came.
pub(crate) struct Report {
    order: Vec<String>,
    figures: BTreeMap<String, Figure>,
    machine: Value,
}

impl Report {
    pub(crate) fn new(foreign: usize) -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let machine = json!({
            "cpu": model.unwrap_or_default().trim_start_matches(['\t', ' ', ':']),
            "cores": std::thread::available_parallelism().map_or(1, usize::from),
            "kernel": read("/proc/sys/kernel/osrelease").trim(),
            "load_before": read("/proc/loadavg").trim(),
            "foreign_pvs": foreign,
        });
        Self {
            order: Vec::new(),
            figures: BTreeMap::new(),
            machine,
        }
    }

    fn figure(&mut self, name: &str, unit: &'static str) -> &mut Figure {
        if !self.figures.contains_key(name) {
            self.order.push(name.to_owned());
        }
        let figure = self.figures.entry(name.to_owned()).or_default();
        figure.unit = unit;
        figure
    }

    /// A figure of a program.
    pub(crate) fn add(&mut self, column: usize, name: &str, unit: &'static str, value: f64) {
        eprintln!("bench: {name}: {value:.3} {unit}");
        self.figure(name, unit).values.insert(column, value);
    }

    /// What the same takes with a standard tool or a raw client, and with which.
    pub(crate) fn floor(&mut self, name: &str, unit: &'static str, value: f64, what: &'static str) {
        eprintln!("bench: {name}: {value:.3} {unit} ({what})");
        self.figure(name, unit).floor = Some((value, what));
    }

    /// The median of what the same takes.
    pub(crate) fn floor_median(&mut self, name: &str, mut times: Vec<Duration>, what: &'static str) {
        eprintln!("bench: {name}: {times:.1?} {what}");
        if let Some(median) = median(&mut times) {
            self.floor(name, "ms", median.as_secs_f64() * 1e3, what);
        }
    }

    /// Median and maximum of some times.
    pub(crate) fn times(&mut self, column: Option<usize>, name: &str, mut times: Vec<Duration>, what: &'static str) {
        eprintln!("bench: {name}: {times:.1?} {what}");
        let (Some(median), Some(most)) = (median(&mut times), times.iter().max()) else {
            return;
        };
        for (which, time) in [("p50", median), ("max", *most)] {
            let (name, value) = (format!("{name}, {which}"), time.as_secs_f64() * 1e3);
            match column {
                Some(column) => self.add(column, &name, "ms", value),
                None => self.floor(&name, "ms", value, what),
            }
        }
    }

    pub(crate) fn table(&self) -> String {
        let versus = self.figures.values().any(|figure| figure.values.contains_key(&1));
        let mut text = format!("{}\n\n| figure | unit | provisioner | floor | ratio |", self.machine);
        text += if versus { " other | other / provisioner |" } else { "" };
        text += " the floor is |\n|---|---|---|---|---|";
        text += if versus { "---|---|" } else { "" };
        text += "---|\n";
        for name in &self.order {
            let figure = &self.figures[name];
            let (own, other) = (figure.values.get(&0).copied(), figure.values.get(&1).copied());
            let floor = figure.floor.map(|(value, _)| value);
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "| {name} | {} | {} | {} | {} |",
                figure.unit,
                shown(own),
                shown(floor),
                shown(ratio(own, floor))
            );
            if versus {
                let _ = write!(text, " {} | {} |", shown(other), shown(ratio(other, own)));
            }
            let _ = writeln!(text, " {} |", figure.floor.map_or("-", |(_, what)| what));
        }
        text
    }

    pub(crate) fn json(&self) -> String {
        let figures = self.order.iter().map(|name| {
            let figure = &self.figures[name];
            let (own, other) = (figure.values.get(&0).copied(), figure.values.get(&1).copied());
            let floor = figure.floor.map(|(value, _)| value);
            json!({"figure": name, "unit": figure.unit, "value": own, "floor": floor, "ratio": ratio(own, floor),
                "floor_is": figure.floor.map(|(_, what)| what), "other": other, "other_ratio": ratio(other, own)})
        });
        let figures: Vec<Value> = figures.collect();
        format!("{:#}\n", json!({"machine": self.machine, "figures": figures}))
    }
}

/// Of an even number of times, the mean of the two in the middle.
fn median(times: &mut [Duration]) -> Option<Duration> {
    times.sort();
    let low = times.get(times.len().checked_sub(1)? / 2)?;
    Some((*low + *times.get(times.len() / 2)?) / 2)
}

fn ratio(value: Option<f64>, by: Option<f64>) -> Option<f64> {
    Some(value? / by.filter(|by| *by > 0.0)?)
}

/// Three digits that count.
fn shown(value: Option<f64>) -> String {
    match value {
        None => "-".into(),
        Some(value) if value >= 100.0 || value == 0.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}
