//! `check-site`: before anything is changed, this site's own database and configuration are asked whether the passwords are right
//! that the promotion will give to its accounts.

use std::time::Duration;

use async_trait::async_trait;
use farsite_runbook::action::{Action, ActionContext, ActionError, Foreseen, Outcome, parameters};
use serde::Deserialize;
use serde_json::Value;

use super::Held;
use crate::group_run::{GroupRun, failed};
use crate::own::{self, Findings};
use crate::site::Accounts;

pub(crate) struct CheckSite(pub(super) Held);

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct With {
    /// Files and folders of configuration, with a `:` between them.
    #[serde(default)]
    paths: String,
}

async fn look(run: &GroupRun, with: &Value) -> Result<Findings, String> {
    let With { paths } = parameters(with)?;
    let accounts = Accounts::fetch(&run.targets.rewrite)?;
    let paths = own::paths(&paths);
    let logins = tokio::task::spawn_blocking(move || own::logins(&paths))
        .await
        .map_err(|error| error.to_string())??;
    let doors = own::doors(&run.standby.config, &run.group);
    // Logins say something only of a database that is carried; a site that shares all passwords names none.
    if accounts.is_empty() {
        return Ok(Findings::default());
    }
    Ok(own::passwords(&accounts, &logins, &doors).await)
}

fn said(findings: &Findings) -> String {
    if findings.good.is_empty() { "no password was compared".to_owned() } else { findings.good.join("; ") }
}

#[async_trait]
impl Action for CheckSite {
    fn name(&self) -> &'static str {
        "check-site"
    }
    fn summary(&self) -> &'static str {
        "before anything is changed: this site's database and configuration (`paths`) have the passwords of `places.<group>.rewrite`"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        parameters::<With>(with).map(|_| ())
    }
    fn changes_nothing(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        Duration::from_mins(5)
    }
    async fn run(&self, context: &ActionContext, with: &Value) -> Result<Outcome, ActionError> {
        let findings = look(self.0.run()?, with).await.map_err(|e| failed(context, e))?;
        if !findings.problems.is_empty() {
            return Err(failed(context, findings.problems.join("\n")));
        }
        let outcome = Outcome::said(said(&findings));
        Ok(if findings.notes.is_empty() {
            outcome
        } else {
            outcome.with("not looked at", findings.notes.join("\n"))
        })
    }
    async fn dry_run(&self, _: &ActionContext, with: &Value) -> Result<Foreseen, ActionError> {
        let findings = look(self.0.run()?, with).await.map_err(ActionError::Failed)?;
        if !findings.problems.is_empty() {
            return Err(ActionError::Failed(findings.problems.join("\n")));
        }
        let says = said(&findings);
        Ok(Foreseen { says, notes: findings.notes })
    }
}
