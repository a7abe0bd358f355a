//! A store's ledger and a runbook come in; a promoted site, a passed or failed drill, and a report that proves it go
//! out. So far there is the choice of the point that a promotion restores.

pub mod choose;
