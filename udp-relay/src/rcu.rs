//! A value that is replaced rarely and read often (read-copy-update).
//!
//! Each reader has a copy of the pointer, and compares a generation number before the use. Without a change, a reader needs one
//! atomic load and no lock. After a change, each reader locks once. The last reader frees the old value.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The shared value.
#[derive(Debug)]
pub struct Shared<T> {
    generation: AtomicU64,
    value: Mutex<Arc<T>>,
}

impl<T> Shared<T> {
    /// With an initial value.
    pub fn new(value: T) -> Self {
        Self {
            generation: AtomicU64::new(0),
            value: Mutex::new(Arc::new(value)),
        }
    }

    /// Replaces the value. Readers get the new value with the next [`Reader::refresh`].
    pub fn swap(&self, value: T) {
        let value = Arc::new(value);
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = value;
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn load(&self) -> Arc<T> {
        Arc::clone(&self.value.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A reader of a shared value.
#[derive(Debug)]
pub struct Reader<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
    value: Arc<T>,
}

impl<T> Reader<T> {
    /// A reader with the current value.
    pub fn new(shared: Arc<Shared<T>>) -> Self {
        let seen = shared.generation.load(Ordering::Acquire);
        let value = shared.load();
        Self {
            shared,
            seen,
            value,
        }
    }

    /// Gets the newest value.
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
        let mut reader = Reader::new(Arc::clone(&shared));
        shared.swap(2);
        assert_eq!(*reader, 1);
        reader.refresh();
        assert_eq!(*reader, 2);
        reader.refresh();
        assert_eq!(*reader, 2);
    }
}
