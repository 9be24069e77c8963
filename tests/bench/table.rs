//! What was measured, beside what was aimed for.

/// What a figure is held against.
#[derive(Clone, Copy)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// Nothing: the figure says what another was measured under.
    None,
}

/// The median of several rounds and their range.
struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Self { median: f64::midpoint(low, high), min: sorted[0], max: sorted[sorted.len() - 1] }
    }
}

/// Prints rows as they come, so that a run that is broken off has said what it found.
#[derive(Default)]
pub struct Table {
    missed: usize,
}

impl Table {
    pub fn section(name: &str, what: &str) {
        println!("\n{name}: {what}");
        println!("{:<58} {:>32} {:>14}  ratio", "what", "measured: median (min-max)", "target");
    }

    /// A line between rows.
    pub fn note(text: &str) {
        println!("  {text}");
    }

    pub fn row(&mut self, what: &str, unit: &str, values: &[f64], target: Target) {
        let Spread { median, min, max } = Spread::of(values);
        let range = if values.len() > 1 { format!(" ({}-{})", short(min), short(max)) } else { String::new() };
        let measured = format!("{}{range} {unit}", short(median));
        let (aim, met) = match target {
            Target::None => {
                println!("{what:<58} {measured:>32}");
                return;
            }
            Target::AtLeast(aim) => (format!(">= {}", short(aim)), median >= aim),
            Target::AtMost(aim) => (format!("<= {}", short(aim)), median <= aim),
        };
        let (Target::AtLeast(value) | Target::AtMost(value)) = target else { unreachable!("returned above") };
        self.missed += usize::from(!met);
        println!("{what:<58} {measured:>32} {aim:>14}  {:.2} {}", median / value, if met { "met" } else { "MISSED" });
    }

    pub fn finish(&self) {
        println!("\ntargets missed: {}", self.missed);
    }
}

/// Three digits that matter.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        v if v >= 1e6 => format!("{:.2}M", value / 1e6),
        v if v >= 1e4 => format!("{:.1}k", value / 1e3),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.01 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}
