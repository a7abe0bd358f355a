//! Invariants of the architecture that only real processes can break, each under its number: a failover that is killed
//! anywhere (6), a drill beside a running agent (7), secrets (11). The others are tested beside the code that keeps them.

mod invariant_11;
mod invariant_6;
mod invariant_7;
