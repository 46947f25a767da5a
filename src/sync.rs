//! The locks and atomics for code that passes data between threads without a channel.
//!
//! They are named here, so that `models/` can compile the files that use them over loom's, which try every order in
//! which threads can interleave. Only such files use them. Always holds: this file has only names.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock};
