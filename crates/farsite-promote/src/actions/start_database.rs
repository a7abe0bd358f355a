//! `start-database`: the restored database into service. MariaDB: an instance that outlives this process. SQLite has no
//! server: its file only has to be there.

use std::time::Duration;

use async_trait::async_trait;
use farsite_model::ItemKind;
use farsite_runbook::action::{Action, ActionContext, ActionError, Done, Foreseen, Outcome};
use serde_json::Value;

use super::{Held, Serves};
use crate::aside::exists;
use crate::group_run::{GroupRun, failed};

pub(crate) struct StartDatabase(pub(super) Held);

fn has_server(run: &GroupRun) -> bool {
    run.databases().iter().any(|item| item.kind == ItemKind::Mariadb)
}

#[async_trait]
impl Action for StartDatabase {
    fn name(&self) -> &'static str {
        "start-database"
    }
    fn summary(&self) -> &'static str {
        "starts the restored database at its socket and port; undone by stopping it"
    }
    fn validate(&self, with: &Value) -> Result<(), String> {
        Serves::of(with).map(|_| ())
    }
    fn idempotent(&self) -> bool {
        true
    }
    fn undoable(&self) -> bool {
        true
    }
    fn default_timeout(&self) -> Duration {
        // Crash recovery of a large database included.
        Duration::from_mins(30)
    }
    async fn check(&self, context: &ActionContext, _: &Value) -> Result<Done, ActionError> {
        let run = self.0.run()?;
        if !has_server(run) {
            return Ok(Done::No);
        }
        // Running is not yet serving: only an answer counts.
        let instance = run.instance()?;
        let runs = instance.is_running().await.map_err(|e| failed(context, e))?;
        Ok(if runs && instance.query("SELECT 1").await.is_ok() {
            Done::Yes("it answers".into())
        } else {
            Done::No
        })
    }
    async fn run(&self, context: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        for item in run.databases().iter().filter(|item| item.kind == ItemKind::Sqlite) {
            let file = run.path(item)?;
            if !exists(&file) {
                return Err(failed(context, format!("{} is not there: it was not restored", file.display())));
            }
        }
        if !has_server(run) {
            return Ok(Outcome::said(
                "there is no server to start: the database is a file, or there is none",
            ));
        }
        let instance = run.instance()?;
        context.lease.check()?;
        run.socket_folder(&instance.socket).map_err(|e| failed(context, e))?;
        instance
            .start(&instance.datadir.join("farsite-mariadbd.log"), &[])
            .await
            .map_err(|e| failed(context, e))?;
        let version = instance.query("SELECT VERSION()").await.map_err(|e| failed(context, e))?;
        Ok(Outcome::said(format!("serves at {}", instance.socket.display()))
            .with("version", crate::sql::first(&version).unwrap_or("unknown")))
    }
    async fn undo(&self, context: &ActionContext, _: &Value) -> Result<Outcome, ActionError> {
        let run = self.0.run()?;
        if !has_server(run) || !exists(&run.mariadb()?.datadir) {
            return Ok(Outcome::said("no server was started"));
        }
        context.lease.check()?;
        run.instance()?.stop().await.map_err(|e| failed(context, e))?;
        Ok(Outcome::said("stopped"))
    }
    async fn dry_run(&self, _: &ActionContext, with: &Value) -> Result<Foreseen, ActionError> {
        let run = self.0.run()?;
        if !has_server(run) {
            return Ok("there is no server to start".into());
        }
        let target = run.mariadb()?;
        if Serves::of(with).map_err(ActionError::Failed)?.is_stopped_before() {
            return Ok(format!(
                "serves at {}, where this site's own services are stopped before",
                target.socket.display()
            )
            .into());
        }
        if let Some(port) = target.port
            && std::net::TcpListener::bind(("127.0.0.1", port)).is_err()
        {
            return Err(ActionError::failed(format!("port {port} is taken by something else")));
        }
        if std::os::unix::net::UnixStream::connect(&target.socket).is_ok() {
            return Err(ActionError::failed(format!("a server answers at {}", target.socket.display())));
        }
        Ok(format!("serves at {}", target.socket.display()).into())
    }
}
