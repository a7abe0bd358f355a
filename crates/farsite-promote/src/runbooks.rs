//! Where a promotion's runbook comes from: a file that the operator names, the host's own folder, or those that are
//! built in. What goes out is a [`Bundle`]: every text that the plan is made of, so that a resume runs the same.

use std::collections::BTreeMap;
use std::path::Path;

use farsite_model::Level;
use farsite_model::config::Config;
use farsite_model::nearest::did_you_mean;
use farsite_model::yaml::{self, YamlError};
use farsite_runbook::action::Registry;
use farsite_runbook::plan::{self, Plan};
use farsite_runbook::runbook::Runbook;
use serde::{Deserialize, Serialize};

use crate::PromoteError;

/// The shipped runbooks, each including the one before it.
const BUILT_IN: [(&str, &str); 3] = [
    ("data", include_str!("../../../runbooks/data.yaml")),
    ("application", include_str!("../../../runbooks/application.yaml")),
    ("business", include_str!("../../../runbooks/business.yaml")),
];

/// A runbook with all that it includes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// The name under which the runbook itself stands in `texts`.
    pub root: String,
    pub texts: BTreeMap<String, String>,
}

/// The shipped runbooks by name.
pub fn built_in() -> BTreeMap<String, String> {
    BUILT_IN.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

/// All runbooks that an include or an order may name: those of the host's folder go before the shipped ones.
pub fn library(config: &Config) -> Result<BTreeMap<String, String>, PromoteError> {
    let mut library = built_in();
    let folder = config.runbooks_dir();
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && config.runbooks.is_none() => {
            return Ok(library);
        }
        Err(source) => {
            return Err(PromoteError::Io {
                what: format!("listing the runbooks in {}", folder.display()),
                source,
            });
        }
    };
    for entry in entries {
        let path = entry.map_err(PromoteError::io(format!("listing {}", folder.display())))?.path();
        if path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            library.insert(name.to_owned(), yaml::read(&path)?);
        }
    }
    Ok(library)
}

/// The runbook that an order means: a file, a name, or the level's own.
pub fn find(config: &Config, level: Level, wanted: Option<&Path>) -> Result<Bundle, PromoteError> {
    let mut library = library(config)?;
    let root = match wanted {
        None => level.to_string(),
        Some(path) if path.is_file() => {
            let name =
                path.file_stem().map_or_else(|| "runbook".into(), |n| n.to_string_lossy().into_owned());
            library.insert(name.clone(), yaml::read(path)?);
            name
        }
        Some(name) => name.to_string_lossy().into_owned(),
    };
    if !library.contains_key(&root) {
        return Err(PromoteError::Usage(format!(
            "no runbook is called {root:?}, and no file{}\n  hint: `--runbook FILE`, or a file in {}",
            did_you_mean(&root, library.keys().map(String::as_str)),
            config.runbooks_dir().display()
        )));
    }
    Ok(only_used(root, &library)?)
}

/// Leaves out what the runbook does not include. A missing or circular include is left for the plan to name.
fn only_used(root: String, library: &BTreeMap<String, String>) -> Result<Bundle, YamlError> {
    let mut texts = BTreeMap::new();
    let mut next = Some(root.clone());
    while let Some(name) = next.take() {
        let Some(text) = library.get(&name) else { break };
        if texts.insert(name.clone(), text.clone()).is_some() {
            break;
        }
        next = Runbook::parse(&format!("{name}.yaml"), text)?.include.map(|include| include.value);
    }
    Ok(Bundle { root, texts })
}

impl Bundle {
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a map of texts is valid JSON")
    }

    pub fn from_json(text: &str) -> Result<Self, PromoteError> {
        serde_json::from_str(text).map_err(|error| {
            PromoteError::Failed(format!("the runbook in the record makes no sense: {error}"))
        })
    }

    /// The checked plan.
    pub fn plan(&self, registry: &Registry) -> Result<Plan, PromoteError> {
        let text = self.texts.get(&self.root).ok_or_else(|| {
            PromoteError::Failed(format!("the record does not hold its runbook {:?}", self.root))
        })?;
        Ok(plan::plan(&format!("{}.yaml", self.root), text, &self.texts, registry)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farsite_model::Mode;

    fn bundle(root: &str) -> Bundle {
        only_used(root.into(), &built_in()).unwrap()
    }

    #[test]
    fn every_shipped_runbook_is_a_valid_plan_and_includes_the_one_before_it() {
        let steps = |root: &str| -> Vec<String> {
            let plan =
                bundle(root).plan(&crate::actions::registry(None)).unwrap_or_else(|e| panic!("{root}: {e}"));
            plan.steps.iter().map(|s| s.id.clone()).collect()
        };
        let (data, application, business) = (steps("data"), steps("application"), steps("business"));
        assert!(application.starts_with(&data), "{application:?}");
        assert!(business.starts_with(&application), "{business:?}");
        assert_eq!(bundle("data").texts.len(), 1, "nothing is kept that is not used");
    }

    #[test]
    fn no_shipped_runbook_asks_a_person_in_a_drill() {
        let plan = bundle("business").plan(&crate::actions::registry(None)).unwrap();
        for step in plan.steps.iter().filter(|s| s.gate.is_some()) {
            let variables = BTreeMap::new();
            assert!(step.left_out(Mode::Drill, Level::Business, &variables).is_some(), "{}", step.id);
            assert!(step.left_out(Mode::Failover, Level::Business, &variables).is_none(), "{}", step.id);
        }
    }

    #[test]
    fn a_bundle_survives_its_json() {
        let one = bundle("business");
        assert_eq!(Bundle::from_json(&one.to_json()).unwrap(), one);
    }
}
