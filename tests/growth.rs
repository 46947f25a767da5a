//! The data, fits, model, limits, drawings and sections of the curves, which are part of `benches/compare.rs`.
//!
//! That program is a benchmark without a test harness, so tests in its own files would not run.

#![expect(dead_code, reason = "the benchmark uses the rest")]
#![expect(unreachable_pub, reason = "in a program, `pub` marks what other files use; nothing is visible outside")]

#[path = "../benches/growth"]
mod growth {
    pub mod data;
    pub mod fit;
    pub mod limits;
    pub mod model;
    pub mod plot;
    pub mod section;
}

#[path = "growth"]
mod tests {
    mod data;
    mod fit;
    mod limits;
    mod model;
    mod plot;
    mod section;
}
