//! The fuzzers of the store's format and the round trip of any writes, with many cases, again and again with other seeds
//! until the time is over. Minutes come in; how many rounds went through goes out. The first failure ends it.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::failure::Failure;
use crate::step::{minutes, run};

/// Cases of each test in one round: few enough that no test is ended as hanging.
const CASES: u32 = 500;

pub fn fuzz(root: &Path, for_minutes: u64) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut rounds = 0;
    while rounds == 0 || begun.elapsed() < minutes(for_minutes) {
        let mut tests = Command::new("cargo");
        tests
            .args(["nextest", "run", "--package", "farsite-store", "-E"])
            .arg("test(/^fuzz::/) + test(any_writes_through)")
            .env("FARSITE_CASES", CASES.to_string())
            .current_dir(root);
        run(
            tests,
            minutes(60),
            "the smallest input that fails stands above; FARSITE_CASES sets how many are tried",
        )?;
        rounds += 1;
    }
    println!(
        "{rounds} rounds of {CASES} cases for each test in {} s: none failed",
        begun.elapsed().as_secs()
    );
    Ok(())
}
