//! Reports of promotions and drills: made out of the record in the store, written into files, summed up in some lines.

use std::path::{Path, PathBuf};

use farsite_model::PromotionId;
use farsite_promote::Standby;
use farsite_promote::report::Report;

use crate::commands::Ended;
use crate::context::Context;
use crate::failure::{DONE, Failure};
use crate::output::{Tone, seconds};

/// Which report, and where to.
#[derive(Debug, clap::Args)]
pub struct Format {
    /// For people (html), for machines (json), for CI (junit).
    #[arg(long, value_enum, default_value = "html")]
    pub format: Kind,
    /// Write it here, `-` for stdout; into the state folder where none is given.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Html,
    Json,
    Junit,
}

impl Kind {
    fn ending(self) -> &'static str {
        match self {
            Self::Html => "html",
            Self::Json => "json",
            Self::Junit => "xml",
        }
    }
    fn render(self, report: &Report) -> String {
        match self {
            Self::Html => report.html(),
            Self::Json => report.json(),
            Self::Junit => report.junit(),
        }
    }
}

/// A report that lies in files.
pub struct Made {
    pub report: Report,
    pub html: PathBuf,
    pub json: PathBuf,
}

impl Made {
    /// The report, and where it lies.
    pub fn as_json(&self) -> Result<serde_json::Value, Failure> {
        let report: serde_json::Value = serde_json::from_str(&self.report.json())
            .map_err(|error| Failure::failed(format!("the report is not JSON: {error}")))?;
        Ok(serde_json::json!({ "report": report, "html": self.html, "json": self.json }))
    }
}

/// Makes the report of a promotion and writes it into `<state>/reports`.
pub async fn write(standby: &Standby, id: PromotionId) -> Result<Made, Failure> {
    let report = Report::of(standby, id).await?;
    let folder = standby.config.state_dir().join("reports");
    let file = |kind: Kind| folder.join(format!("{id}.{}", kind.ending()));
    for kind in [Kind::Html, Kind::Json] {
        save(&file(kind), &kind.render(&report))?;
    }
    Ok(Made { html: file(Kind::Html), json: file(Kind::Json), report })
}

fn save(path: &Path, text: &str) -> Result<(), Failure> {
    let fail = || Failure::io(format!("writing {}", path.display()));
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(fail())?;
    }
    std::fs::write(path, text).map_err(fail())
}

/// `promotion report` and `drill report`.
pub async fn give(standby: &Standby, id: PromotionId, format: &Format, context: &Context) -> Ended {
    let report = Report::of(standby, id).await?;
    let kind = if context.out.json { Kind::Json } else { format.format };
    let text = kind.render(&report);
    let to_stdout =
        format.out.as_deref() == Some(Path::new("-")) || (context.out.json && format.out.is_none());
    if to_stdout {
        context.out.line(text.trim_end());
        return Ok(DONE);
    }
    let path = format.out.clone().unwrap_or_else(|| {
        standby.config.state_dir().join("reports").join(format!("{id}.{}", kind.ending()))
    });
    save(&path, &text)?;
    context.out.line(path.display().to_string());
    Ok(DONE)
}

/// RPO and RTO of each group, against their targets.
pub fn summary(report: &Report, context: &Context) {
    let out = context.out;
    for group in &report.groups {
        let verdict = |got: f64, target: Option<f64>| match target {
            None => "no target is known here".to_owned(),
            Some(target) if got > target => {
                out.paint(Tone::Bad, &format!("MISSED its target of {}", seconds(target)))
            }
            Some(target) => out.paint(Tone::Good, &format!("met its target of {}", seconds(target))),
        };
        if let Some(rpo) = &group.rpo {
            let total = rpo.total;
            out.line(format!(
                "  group {}: achieved RPO {} to {}, {}",
                group.group,
                seconds(total.at_least_s),
                seconds(total.at_most_s),
                verdict(total.at_most_s, group.rpo_target_s)
            ));
            let kinds: Vec<String> = rpo
                .by_kind
                .iter()
                .map(|(kind, range)| format!("{kind} {}", seconds(range.at_most_s)))
                .collect();
            if kinds.len() > 1 {
                out.line(format!("    by kind, at worst: {}", kinds.join(", ")));
            }
        }
        if let Some(rto) = &group.rto {
            out.line(format!(
                "  group {}: RTO {}, {}",
                group.group,
                seconds(rto.seconds),
                verdict(rto.seconds, group.rto_target_s)
            ));
            let steps: Vec<String> = group
                .steps
                .iter()
                .filter_map(|step| {
                    Some(format!("{} {}", step.id, seconds(step.seconds.filter(|s| *s >= 0.05)?)))
                })
                .collect();
            if !steps.is_empty() {
                out.line(format!("    by step: {}", steps.join(", ")));
            }
        }
    }
}
