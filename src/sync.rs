//! The locks and atomics of what is handed over between threads without a channel.
//!
//! Named here, so that `models/` can compile the files that use them over loom's, which try every order in which threads can meet. Used by
//! such files alone. Always holds: nothing but names.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock};
