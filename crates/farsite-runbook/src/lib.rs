//! YAML → checked graph → journaled run. A runbook's text comes in; a [`plan::Plan`] goes out whose every step, variable
//! and dependency was checked; the engine runs it and writes down every intent before its effect and every
//! outcome after it, so that another machine can go on where this one was killed.
//!
//! What must hold: no effect without its intent in the journal; no step half-believed; a driver that was taken over
//! does nothing more. This crate knows nothing of stores or databases: journals and actions are traits.

pub mod action;
pub mod actions;
pub mod engine;
pub mod journal;
pub mod plan;
pub mod runbook;
pub mod state;
