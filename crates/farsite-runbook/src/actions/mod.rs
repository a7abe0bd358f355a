//! The actions that need nothing but this machine and its network; one file each.

mod command;
mod http_check;
mod notify;
mod person_confirms;
mod service;
mod tcp_check;
mod tied;
mod wait;

pub use command::{Tail, run_command};

use std::time::Duration;

use crate::action::Registry;

pub(crate) fn register(registry: &mut Registry) {
    registry.add(command::Command);
    registry.add(service::Service);
    registry.add(http_check::HttpCheck);
    registry.add(tcp_check::TcpCheck);
    registry.add(wait::Wait);
    registry.add(person_confirms::PersonConfirms);
    registry.add(notify::Notify);
}

/// Of an attempt that nothing answered for `waited`. One that was cut short of its own `limit` by the end of the step's time tells
/// nothing that the attempts before it did not tell better.
fn silence(waited: Duration, limit: Duration, before: Option<String>) -> String {
    before
        .filter(|_| waited < limit)
        .unwrap_or_else(|| format!("no answer within {:.1}s", waited.as_secs_f32()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use farsite_model::{Level, Mode};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::action::{ActionContext, ActionError, Lease, People};

    struct Nobody;
    #[async_trait]
    impl People for Nobody {
        async fn answer(&self, _: &str, _: &str, _: &str) -> Result<Option<bool>, ActionError> {
            Ok(None)
        }
        fn waits(&self) -> bool {
            false
        }
    }

    pub(super) fn context(timeout: Duration) -> ActionContext {
        ActionContext {
            step: "s".into(),
            mode: Mode::Failover,
            level: Level::Data,
            lease: Lease::until(timeout * 2),
            timeout,
            cancel: CancellationToken::new(),
            people: Arc::new(Nobody),
        }
    }

    #[test]
    fn a_last_attempt_that_is_cut_short_does_not_hide_what_was_seen_before() {
        let (cut, limit) = (Duration::from_millis(100), Duration::from_secs(3));
        let refused = Some("Connection refused".to_owned());
        assert_eq!(silence(cut, limit, refused.clone()), "Connection refused");
        assert_eq!(silence(cut, limit, None), "no answer within 0.1s");
        assert_eq!(silence(limit, limit, refused), "no answer within 3.0s", "its own limit was over");
    }
}
