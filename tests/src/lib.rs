//! What crosses crates: two-site stories and fault tests.
