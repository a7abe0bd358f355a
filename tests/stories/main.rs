//! Stories that cross crates, each told with the real program and real parts. One program, because linking costs more than they do.

mod ancestry;
mod anomaly;
mod coverage;
mod frozen_driver;
mod full_disk;
mod hosts;
mod invariants;
mod kill_agent;
mod meanwhile;
mod memory;
mod open_qcow2;
mod pools;
mod qcow2;
mod rbd;
mod replication;
mod restarts;
mod shares;
mod standbys;
mod store_faults;
mod tracking;
