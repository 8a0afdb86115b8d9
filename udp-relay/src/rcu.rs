//! A value that is exchanged as a whole, rarely, and looked at very often.
//!
//! Readers keep a copy of the pointer and compare a number before they use it, so that looking costs one load and no
//! lock; only after an exchange do they take the lock, once each. (Read-copy-update, where the copy is freed by its last
//! reader.)

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The writer's side.
#[derive(Debug)]
pub struct Shared<T> {
    generation: AtomicU64,
    value: Mutex<Arc<T>>,
}

impl<T> Shared<T> {
    /// With a first value.
    pub fn new(value: T) -> Self {
        Self {
            generation: AtomicU64::new(0),
            value: Mutex::new(Arc::new(value)),
        }
    }

    /// Exchanges the value. Readers have it when they next refresh.
    pub fn swap(&self, value: T) {
        let value = Arc::new(value);
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = value;
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn load(&self) -> Arc<T> {
        Arc::clone(&self.value.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A reader's side.
#[derive(Debug)]
pub struct Reader<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
    value: Arc<T>,
}

impl<T> Reader<T> {
    /// Looks at a shared value.
    pub fn new(shared: Arc<Shared<T>>) -> Self {
        let seen = shared.generation.load(Ordering::Acquire);
        let value = shared.load();
        Self {
            shared,
            seen,
            value,
        }
    }

    /// Takes the newest value.
    pub fn refresh(&mut self) {
        let generation = self.shared.generation.load(Ordering::Acquire);
        if generation != self.seen {
            self.value = self.shared.load();
            self.seen = generation;
        }
    }
}

impl<T> Deref for Reader<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reader_sees_swap_only_after_refresh() {
        let shared = Arc::new(Shared::new(1));
        let mut view = Reader::new(Arc::clone(&shared));
        shared.swap(2);
        assert_eq!(*view, 1);
        view.refresh();
        assert_eq!(*view, 2);
        view.refresh();
        assert_eq!(*view, 2);
    }
}
