//! The rows and what was measured in them; medians and ratios as Markdown.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::limits::Limits;
use super::measure::Measured;
use super::volume::Change;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    First,
    NoChange,
    Pages,
    Hydrate,
    Sequential,
    Database,
    Restore,
    RestoreInto,
    Check,
}

impl Row {
    const ALL: [Self; 9] = [
        Self::First,
        Self::NoChange,
        Self::Pages,
        Self::Hydrate,
        Self::Sequential,
        Self::Database,
        Self::Restore,
        Self::RestoreInto,
        Self::Check,
    ];
    pub fn title(self) -> &'static str {
        match self {
            Self::First => "first copy",
            Self::NoChange => "no change",
            Self::Pages => "1 % of 4 KiB pages",
            Self::Hydrate => "those pages in the standby's own copy",
            Self::Sequential => "64 MiB rewritten",
            Self::Database => "100 bytes in each quarter of 0.25 % of 16 KiB pages",
            Self::Restore => "restore",
            Self::RestoreInto => "restore into the first version",
            Self::Check => "check, every byte",
        }
    }
    pub fn change(self) -> Option<Change> {
        match self {
            Self::Pages => Some(Change::Pages),
            Self::Sequential => Some(Change::Sequential),
            Self::Database => Some(Change::Database),
            _ => None,
        }
    }
}

pub const OWN: &str = "farsite";
pub const OWN_ADAPTIVE: &str = "farsite-auto";

#[derive(Default)]
pub struct Table {
    measured: BTreeMap<(Row, String), Vec<Measured>>,
    ideal: BTreeMap<Row, u64>,
}

impl Table {
    pub fn add(&mut self, row: Row, tool: &str, measured: &Measured) {
        let Measured { wall_s, cpu_s, peak_mib, store_bytes } = measured;
        eprintln!(
            "   {:52} {tool:9} {wall_s:7.2} s  {cpu_s:7.2} s of processor  {peak_mib:6.0} MiB  {store_bytes:>11} bytes",
            row.title()
        );
        self.measured.entry((row, tool.to_owned())).or_default().push(*measured);
    }

    pub fn ideal(&mut self, row: Row, bytes: Option<u64>) {
        if let Some(bytes) = bytes {
            self.ideal.insert(row, bytes);
        }
    }

    fn median(&self, row: Row, tool: &str, figure: fn(&Measured) -> f64) -> Option<f64> {
        let mut values: Vec<f64> = self.measured.get(&(row, tool.to_owned()))?.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    pub fn print(&self, limits: &Limits) -> String {
        let mut tools: Vec<&str> = self.measured.keys().map(|(_, tool)| tool.as_str()).collect();
        tools.sort_by_key(|tool| (*tool != OWN, *tool));
        tools.dedup();
        let mut out = limits.print();
        out.push_str("\n| work | tool | wall, s | processor, s | peak, MiB | stored, MB | wall against the best peer | against the limit | bytes against the ideal |\n");
        out.push_str("| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n");
        for row in Row::ALL {
            let wall = |tool: &str| self.median(row, tool, |m| m.wall_s);
            // A peer that encrypts nothing does other work.
            let best = tools
                .iter()
                .filter(|tool| ![OWN, OWN_ADAPTIVE, "casync"].contains(tool))
                .filter_map(|tool| wall(tool))
                .min_by(f64::total_cmp);
            for tool in &tools {
                let Some(seconds) = wall(tool) else { continue };
                let figure = |figure| self.median(row, tool, figure).unwrap_or_default();
                let stored = figure(|m| m.store_bytes as f64);
                let ratio = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |v| format!("{v:.2}"));
                let _ = writeln!(
                    out,
                    "| {} | {tool} | {seconds:.2} | {:.2} | {:.0} | {:.3} | {} | {} | {} |",
                    row.title(),
                    figure(|m| m.cpu_s),
                    figure(|m| m.peak_mib),
                    stored / 1e6,
                    ratio(best.map(|best| seconds / best)),
                    ratio(limits.of(row).map(|limit| seconds / limit)),
                    ratio(self.ideal.get(&row).map(|ideal| stored / *ideal as f64)),
                );
            }
        }
        let wall = |row| self.median(row, OWN, |m| m.wall_s);
        if let (Some(hydrated), Some(shipped)) = (wall(Row::Hydrate), wall(Row::Pages)) {
            let _ = writeln!(
                out,
                "\nHydrating the pages took {:.2} times as long as shipping them.",
                hydrated / shipped
            );
        }
        out
    }
}
