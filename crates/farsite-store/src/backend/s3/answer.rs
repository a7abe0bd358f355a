//! What is learned from the answers to one request beside their content: the store's time, how many attempts were made,
//! and whether one of them may have arrived. The answers come in from the SDK's hooks; nothing is changed in them.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use aws_sdk_s3::config::Intercept;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
    FinalizerInterceptorContextRef,
};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use farsite_model::StoreTime;
use jiff::Timestamp;

use super::S3;
use super::failure::{chain, connect_failed};
use crate::backend::BackendError;

#[derive(Debug, Clone, Default)]
pub(super) struct Answer {
    date: Arc<Mutex<Option<StoreTime>>>,
    attempts: Arc<AtomicU32>,
    /// An attempt failed behind the connection: its request may have arrived.
    sent: Arc<AtomicBool>,
}

impl Answer {
    /// More than one attempt was made, and an earlier one may have taken effect.
    pub fn may_have_arrived(&self) -> bool {
        self.attempts.load(Ordering::Relaxed) > 1 && self.sent.load(Ordering::Relaxed)
    }

    /// The `Date` of the last answer.
    pub fn date(&self, store: &S3) -> Result<StoreTime, BackendError> {
        self.date.lock().expect("no holder of this lock panics").ok_or_else(|| {
            store.other(
                "reading the Date of",
                "",
                "the answer carried no valid Date header, so the store's clock is not known".into(),
            )
        })
    }
}

impl Intercept for Answer {
    fn name(&self) -> &'static str {
        "Answer"
    }
    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date").and_then(parse_http_date);
        *self.date.lock().expect("no holder of this lock panics") = date;
        // An answer came, whatever it says.
        self.sent.store(true, Ordering::Relaxed);
        Ok(())
    }
    fn read_before_attempt(
        &self,
        _: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn read_after_attempt(
        &self,
        context: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let Some(Err(error)) = context.output_or_error() {
            let why = match error.as_connector_error() {
                Some(error) => chain(error),
                None => String::new(),
            };
            if !connect_failed(&why) {
                self.sent.store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// RFC 9110 `IMF-fixdate`, which is RFC 2822's form with `GMT`.
fn parse_http_date(text: &str) -> Option<StoreTime> {
    jiff::fmt::rfc2822::parse(text).ok().map(|zoned| StoreTime(zoned.timestamp()))
}

/// A time out of an answer; none is made up.
pub(super) fn stamp(time: Option<&aws_sdk_s3::primitives::DateTime>) -> Option<StoreTime> {
    Timestamp::from_second(time?.secs()).ok().map(StoreTime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_date_is_read() {
        let time = parse_http_date("Tue, 24 Nov 2026 01:54:37 GMT").unwrap();
        assert_eq!(time.0.to_string(), "2026-11-24T01:54:37Z");
        assert!(parse_http_date("yesterday").is_none());
    }

    #[test]
    fn a_time_that_was_not_said_is_not_made_up() {
        assert_eq!(stamp(None), None);
    }
}
