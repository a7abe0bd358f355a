//! The commands, run as a person runs them: one program, because each would be linked with everything again.

mod agent;
mod bad_input;
mod common;
mod demo;
mod docs;
mod failover;
mod help;
mod hydrate;
mod init;
mod keeping;
mod keys;
mod mount;
mod points;
mod repair_mariadb;
mod restore_mariadb;
