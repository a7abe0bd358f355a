//! The report as JUnit XML: one suite for each group, one case for each step, and one each for RPO, RTO, clean-up
//! and verdict.

use farsite_runbook::journal::StepStatus;

use super::{GroupReport, Report, Said, is_failure};

/// Text for XML 1.0: what the format cannot hold at all is left out.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\n' | '\t' => out.push(c),
            c if (c as u32) < 0x20 || matches!(c as u32, 0xFFFE | 0xFFFF) => {}
            c => out.push(c),
        }
    }
    out
}

struct Case {
    name: String,
    seconds: f64,
    failure: Option<String>,
    skipped: Option<String>,
}

impl Case {
    fn xml(&self, class: &str) -> String {
        let head = format!(
            "    <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\"",
            escape(class),
            escape(&self.name),
            self.seconds
        );
        match (&self.failure, &self.skipped) {
            (Some(why), _) => format!(
                "{head}>\n      <failure message=\"{}\">{}</failure>\n    </testcase>\n",
                escape(why.lines().next().unwrap_or_default()),
                escape(why)
            ),
            (None, Some(why)) => {
                format!("{head}>\n      <skipped message=\"{}\"/>\n    </testcase>\n", escape(why))
            }
            (None, None) => format!("{head}/>\n"),
        }
    }
}

fn cases(group: &GroupReport) -> Vec<Case> {
    let mut cases: Vec<Case> = group
        .steps
        .iter()
        .map(|step| Case {
            name: step.id.clone(),
            seconds: step.seconds.unwrap_or(0.0),
            failure: is_failure(step.status).then(|| step.detail.clone()),
            skipped: match step.status {
                StepStatus::Skipped => Some(step.skipped.clone().unwrap_or_else(|| step.detail.clone())),
                StepStatus::Completed => None,
                other => Some(other.to_string()),
            },
        })
        .collect();
    let target = |name: &str, got: Option<f64>, target: Option<f64>, met: Option<bool>| Case {
        name: name.to_owned(),
        seconds: 0.0,
        failure: (met == Some(false)).then(|| {
            format!("{:.1}s, and the target is {:.1}s", got.unwrap_or_default(), target.unwrap_or_default())
        }),
        skipped: met.is_none().then(|| "not known".to_owned()),
    };
    let rpo = group.rpo.as_ref().map(|rpo| rpo.total.at_most_s);
    cases.push(target("RPO meets its target", rpo, group.rpo_target_s, group.rpo_met));
    let rto = group.rto.as_ref().map(|rto| rto.seconds);
    cases.push(target("RTO meets its target", rto, group.rto_target_s, group.rto_met));
    let said = |name: &str, said: &Said| Case {
        name: name.to_owned(),
        seconds: 0.0,
        failure: (!said.well).then(|| said.detail.clone()),
        skipped: None,
    };
    cases.extend(group.clean_up.as_ref().map(|clean_up| said("clean-up leaves nothing", clean_up)));
    cases.extend(group.verdict.as_ref().map(|verdict| said("verdict", verdict)));
    cases
}

pub(super) fn xml(report: &Report) -> String {
    let mut suites = String::new();
    let (mut tests, mut failures) = (0, 0);
    for group in &report.groups {
        let cases = cases(group);
        let failed = cases.iter().filter(|case| case.failure.is_some()).count();
        let skipped = cases.iter().filter(|case| case.skipped.is_some() && case.failure.is_none()).count();
        tests += cases.len();
        failures += failed;
        let name = format!("{} {} {}", report.mode, report.level, group.group);
        let head = format!(
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{failed}\" errors=\"0\" skipped=\"{skipped}\" time=\"{:.3}\" timestamp=\"{}\">\n",
            escape(&name),
            cases.len(),
            group.rto.as_ref().map_or(0.0, |rto| rto.seconds),
            report.begun
        );
        suites.push_str(&head);
        suites.extend(cases.iter().map(|case| case.xml(&format!("farsite.{}", group.group))));
        suites.push_str("  </testsuite>\n");
    }
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"farsite {} {}\" tests=\"{tests}\" failures=\"{failures}\">\n{suites}</testsuites>\n",
        report.mode, report.promotion
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_xml_cannot_hold_is_escaped_or_left_out() {
        assert_eq!(escape("a<b>&\"'\u{1b}[31m\n"), "a&lt;b&gt;&amp;&quot;&apos;[31m\n");
    }
}
