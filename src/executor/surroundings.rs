//! Surroundings of a run: the executor that executes it, or the simulation that takes the executor's place.
//!
//! The steps of both are executed by the same code. It asks here for everything outside of the run. A simulated run has
//! no connection, no HTTP client and no Kafka producer, so it cannot write or call anything.

use std::{ops::Deref, sync::Arc};

use super::{Executor, common::Common, simulation::SimulatedRun};
use crate::access::OrganizationId;

/// Surroundings of a run. Cheap to clone.
#[derive(Clone)]
pub(super) enum Surroundings {
    Executor(Executor),
    Simulation(Arc<SimulatedRun>),
}

impl Deref for Surroundings {
    type Target = Common;

    fn deref(&self) -> &Common {
        match self {
            Self::Executor(executor) => executor,
            Self::Simulation(run) => &run.common,
        }
    }
}

impl Surroundings {
    /// The simulated run, if the run is simulated.
    pub(super) fn simulated(&self) -> Option<&Arc<SimulatedRun>> {
        match self {
            Self::Executor(_) => None,
            Self::Simulation(run) => Some(run),
        }
    }

    /// Does work for an organisation: at once, or, if it takes long, offloaded and in turn with other organisations. A
    /// whole simulation is offloaded.
    pub(super) async fn work<T>(&self, organization: &OrganizationId, is_long: bool, work: impl FnOnce() -> T) -> T {
        match self {
            Self::Executor(executor) => executor.work(organization, is_long, work).await,
            Self::Simulation(run) => {
                run.within_limits().await;
                work()
            }
        }
    }

    /// The same for work that always takes long.
    pub(super) async fn long_work<T: Send + 'static>(
        &self,
        organization: &OrganizationId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        match self {
            Self::Executor(executor) => match executor.offload.run(organization, work).await {
                Ok(done) => done,
                // The process ends, and another executor continues the run.
                Err(_) => std::future::pending().await,
            },
            Self::Simulation(_) => self.work(organization, true, work).await,
        }
    }
}
