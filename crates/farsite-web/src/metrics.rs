//! The state as Prometheus text (exposition format 0.0.4). A figure that is not known has no sample: -1 or 0
//! would be read as a figure.

use std::fmt::Write as _;

use farsite_model::status::{GroupStatus, Phase};

const PHASES: [(Phase, &str); 6] = [
    (Phase::InitialSync, "initial-sync"),
    (Phase::Replicating, "replicating"),
    (Phase::Promoting, "promoting"),
    (Phase::Promoted, "promoted"),
    (Phase::SplitBrainSuspected, "split-brain-suspected"),
    (Phase::Damaged, "damaged"),
];

/// All groups' metrics. Labels are `group`, `site` and `to` (several standby sites with commas between).
pub(crate) fn exposition(groups: &[GroupStatus]) -> String {
    let mut text = Text::default();
    text.family(
        "farsite_exposure_seconds",
        "What a failover now would lose, at worst; with item: of that kind of item, without: of the group.",
    );
    for group in groups {
        text.sample(group, &[], group.exposure_s);
        for (kind, exposure) in &group.exposure_by_kind_s {
            text.sample(group, &[("item", kind)], Some(*exposure));
        }
    }
    text.gauge(groups, "farsite_rpo_target_seconds", "The policy's RPO target.", |g| g.rpo_target_s);
    text.gauge(groups, "farsite_rpo_ratio", "Exposure over target; above 1 the target is missed.", |g| {
        g.rpo_ratio
    });
    text.gauge(
        groups,
        "farsite_last_point_capture_timestamp_seconds",
        "Capture time of the newest recovery point's oldest item, by the source's clock.",
        |g| g.newest_point.as_ref().map(|point| seconds(point.captured.0)),
    );
    text.gauge(
        groups,
        "farsite_last_point_commit_timestamp_seconds",
        "Commit time of the newest recovery point, by the store's clock.",
        |g| g.newest_point.as_ref().map(|point| seconds(point.committed.0)),
    );
    text.gauge(
        groups,
        "farsite_last_point_changed_bytes",
        "Bytes that had changed at the source in the newest recovery point.",
        |g| g.newest_point.as_ref().map(|point| point.changed_bytes as f64),
    );
    text.gauge(
        groups,
        "farsite_last_point_shipped_bytes",
        "Bytes that the newest recovery point sent to the store.",
        |g| g.newest_point.as_ref().map(|point| point.shipped_bytes as f64),
    );
    text.gauge(
        groups,
        "farsite_last_point_proven",
        "1 when the newest recovery point was restored and checked.",
        |g| g.newest_point.as_ref().map(|point| f64::from(u8::from(point.proven))),
    );
    text.gauge(
        groups,
        "farsite_log_lag_seconds",
        "How far behind the shipped database logs are, at worst.",
        |g| g.log_lag_s,
    );
    text.gauge(
        groups,
        "farsite_clock_skew_seconds",
        "The source's clock minus the store's, as measured at the newest commit.",
        |g| g.clock_ahead_ms.map(|ms| ms as f64 / 1_000.0),
    );
    text.gauge(groups, "farsite_points", "Recovery points in the store.", |g| Some(g.points as f64));
    // A gauge in spite of its name: retention lets it fall.
    text.gauge(
        groups,
        "farsite_partial_points_total",
        "Recovery points in the store that are partial.",
        |g| Some(g.partial_points as f64),
    );
    text.gauge(
        groups,
        "farsite_suspicious_points",
        "Recovery points in the store in which something unusual was seen.",
        |g| Some(g.suspicious_points as f64),
    );
    text.gauge(
        groups,
        "farsite_last_point_suspicious",
        "1 when something unusual was seen in the newest recovery point: no failover takes it by itself.",
        |g| g.newest_point.as_ref().map(|point| f64::from(u8::from(!point.suspicious.is_empty()))),
    );
    text.gauge(groups, "farsite_epoch", "Grows by one whenever the group's primary changes.", |g| {
        Some(g.epoch.0 as f64)
    });
    text.gauge(groups, "farsite_group_warnings", "Sentences about the group that a person must read.", |g| {
        Some(g.warnings.len() as f64)
    });
    text.family("farsite_group_phase", "1 for the phase that the group is in, 0 for the others.");
    for group in groups {
        for (phase, name) in &PHASES {
            text.sample(group, &[("phase", name)], Some(f64::from(u8::from(group.phase == *phase))));
        }
    }
    text.out
}

fn seconds(time: jiff::Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1_000.0
}

#[derive(Default)]
struct Text {
    out: String,
    /// The family that samples belong to; its head is written with its first sample.
    name: &'static str,
    help: &'static str,
    headed: bool,
}

impl Text {
    fn gauge(
        &mut self,
        groups: &[GroupStatus],
        name: &'static str,
        help: &'static str,
        value: impl Fn(&GroupStatus) -> Option<f64>,
    ) {
        self.family(name, help);
        for group in groups {
            self.sample(group, &[], value(group));
        }
    }

    fn family(&mut self, name: &'static str, help: &'static str) {
        (self.name, self.help, self.headed) = (name, help, false);
    }

    fn sample(&mut self, group: &GroupStatus, more: &[(&str, &str)], value: Option<f64>) {
        let Some(value) = value else { return };
        if !self.headed {
            self.headed = true;
            let (name, help) = (self.name, self.help);
            self.line(format_args!("# HELP {name} {help}\n# TYPE {name} gauge"));
        }
        let to: Vec<&str> = group.to.iter().map(farsite_model::SiteName::as_str).collect();
        let to = to.join(",");
        let mut labels = vec![("group", group.group.as_str()), ("site", group.site.as_str()), ("to", &to)];
        labels.extend_from_slice(more);
        let labels: Vec<String> =
            labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let (name, labels) = (self.name, labels.join(","));
        self.line(format_args!("{name}{{{labels}}} {}", number(value)));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.out, "{line}").expect("writing to a String cannot fail");
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Prometheus reads numbers as Go does: `+Inf`, `-Inf`, `NaN`.
fn number(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_numbers_are_written_as_prometheus_reads_them() {
        assert_eq!(escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
        assert_eq!(number(f64::INFINITY), "+Inf");
        assert_eq!(number(f64::NAN), "NaN");
        assert_eq!(number(1_790_000_000.25), "1790000000.25");
    }

    #[test]
    fn every_phase_has_the_name_it_has_in_json() {
        for (phase, name) in &PHASES {
            assert_eq!(serde_json::to_value(phase).unwrap(), *name);
        }
    }
}
