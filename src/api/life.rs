//! The service's life: starting, ready, leaving, refusing; and who is still inside.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU8, AtomicU64, Ordering},
};

use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use crate::runtime::Cancel;

use super::problem::{Kind, Problem};

/// How far the service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Models are being opened: work is refused.
    Starting = 0,
    /// Work is done.
    Ready = 1,
    /// A signal came: work is still done while load balancers look elsewhere.
    Leaving = 2,
    /// Work in progress is finished, new work is refused.
    Refusing = 3,
}

/// The phase of the process, and the work that has not ended.
#[derive(Debug)]
pub struct Life {
    phase: AtomicU8,
    inside: TaskTracker,
    next: AtomicU64,
    running: Mutex<Vec<(u64, Cancel)>>,
}

/// One request's stay. Dropping it, answered or not, ends the stay and stops the work.
#[derive(Debug)]
pub struct Stay<'a> {
    life: &'a Life,
    number: u64,
    cancel: Cancel,
    _inside: TaskTrackerToken,
}

impl Default for Life {
    fn default() -> Self {
        Self {
            phase: AtomicU8::new(Phase::Starting as u8),
            inside: TaskTracker::new(),
            next: AtomicU64::new(0),
            running: Mutex::default(),
        }
    }
}

impl Life {
    /// How far the service is.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            2 => Phase::Leaving,
            _ => Phase::Refusing,
        }
    }

    /// Goes on to `phase`; a life never goes back.
    pub fn advance(&self, phase: Phase) {
        self.phase.fetch_max(phase as u8, Ordering::AcqRel);
    }

    /// Lets a request in.
    ///
    /// # Errors
    /// 503 while starting and once refusing.
    pub fn enter(&self) -> Result<Stay<'_>, Problem> {
        match self.phase() {
            Phase::Starting => return Err(Problem::new(Kind::Starting, "models are being opened")),
            Phase::Refusing => return Err(Problem::new(Kind::Draining, "this instance is leaving")),
            Phase::Ready | Phase::Leaving => {}
        }
        let stay = Stay {
            life: self,
            number: self.next.fetch_add(1, Ordering::Relaxed),
            cancel: Cancel::default(),
            _inside: self.inside.token(),
        };
        self.running().push((stay.number, stay.cancel.clone()));
        Ok(stay)
    }

    /// Waits until nobody is inside.
    pub async fn empty(&self) {
        self.inside.close();
        self.inside.wait().await;
    }

    /// Stops everybody's work.
    pub fn cancel_all(&self) {
        self.running().iter().for_each(|(_, cancel)| cancel.cancel());
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Vec<(u64, Cancel)>> {
        // Pushing to and retaining from a list leaves it whole whatever happens.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stay<'_> {
    /// The flag that stops this request's work.
    pub fn cancel(&self) -> Cancel {
        self.cancel.clone()
    }
}

impl Drop for Stay<'_> {
    fn drop(&mut self) {
        self.cancel.cancel();
        self.life.running().retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn work_is_let_in_between_starting_and_refusing() {
        let life = Life::default();
        let refused = |life: &Life| life.enter().err().map(|it| it.kind());
        assert_eq!(refused(&life), Some(Kind::Starting));
        life.advance(Phase::Ready);
        assert_eq!(refused(&life), None);
        life.advance(Phase::Leaving);
        assert_eq!(refused(&life), None);
        life.advance(Phase::Refusing);
        life.advance(Phase::Ready);
        assert_eq!(refused(&life), Some(Kind::Draining));
    }

    #[test]
    fn a_stay_that_ends_stops_its_own_work_and_no_other() {
        let life = Life::default();
        life.advance(Phase::Ready);
        let (first, second) = (life.enter().unwrap(), life.enter().unwrap());
        let (one, two) = (first.cancel(), second.cancel());
        drop(first);
        assert!(one.is_cancelled() && !two.is_cancelled());
        life.cancel_all();
        assert!(two.is_cancelled());
    }

    #[tokio::test]
    async fn empty_waits_for_the_last_one() {
        let life = Life::default();
        life.advance(Phase::Ready);
        let stay = life.enter().unwrap();
        let soon = Duration::from_millis(5);
        assert!(tokio::time::timeout(soon, life.empty()).await.is_err());
        drop(stay);
        assert!(tokio::time::timeout(soon, life.empty()).await.is_ok());
    }
}
