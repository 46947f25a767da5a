//! [`Counts`]: the metrics of forwarded calls, looked up once instead of at each call.
//!
//! Always holds: the series of a service exist from its first call on; the relay's own calls have no service, and are
//! not counted.

use std::{fmt, sync::OnceLock};

use metrics::{Counter, Gauge, counter, gauge};

use crate::telemetry::names::{self, Outcome, Service, begin_forwarding};

/// See the module.
#[derive(Default)]
pub(super) struct Counts {
    running: OnceLock<Gauge>,
    /// In the order of the enums.
    ended: [OnceLock<Vec<Counter>>; Service::ALL.len()],
}

impl Counts {
    /// A call begins.
    pub(super) fn begin(&self, service: Option<Service>) {
        if let Some(service) = service {
            self.ended(service);
            self.running().increment(1.0);
        }
    }

    /// A call that began has ended.
    pub(super) fn end(&self, service: Option<Service>, outcome: Outcome) {
        if service.is_some() {
            self.running().decrement(1.0);
            self.refuse(service, outcome);
        }
    }

    /// A call ended before it began.
    pub(super) fn refuse(&self, service: Option<Service>, outcome: Outcome) {
        if let Some(service) = service
            && let Some(counter) = self.ended(service).get(outcome as usize)
        {
            counter.increment(1);
        }
    }

    fn running(&self) -> &Gauge {
        self.running.get_or_init(|| gauge!(names::FORWARDS))
    }

    fn ended(&self, service: Service) -> &[Counter] {
        self.ended[service as usize].get_or_init(|| {
            begin_forwarding(service);
            let counter = |outcome: &Outcome| {
                counter!(
                    names::FORWARDED,
                    Service::LABEL => service.as_str(),
                    Outcome::LABEL => outcome.as_str()
                )
            };
            Outcome::ALL.iter().map(counter).collect()
        })
    }
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counts").finish_non_exhaustive()
    }
}
