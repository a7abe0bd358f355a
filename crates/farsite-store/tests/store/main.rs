//! The store, tried from outside: one program, because each would be linked with all of the store again.

mod any_writes;
mod changes;
mod common;
mod compact;
mod contract;
mod damage;
mod damage_table;
mod documents;
mod gc;
mod gc_logs;
mod groups;
mod invariants;
mod keys;
mod large_items;
mod ledger;
mod logs;
mod lost_answers;
mod memory;
mod points;
mod races;
mod reading;
mod repair;
mod resume;
mod round_trip;
mod s3;
mod stolen_key;
