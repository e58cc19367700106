//! Stores pictures for their URLs, for a limited time, under names that cannot be guessed.

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex};

use crate::limits::KEPT_BYTES;

/// Returns a name that cannot be guessed: a hash whose key the operating system chose at random.
pub fn unguessable() -> String {
    static SECRET: LazyLock<[RandomState; 2]> = LazyLock::new(|| [RandomState::new(), RandomState::new()]);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    SECRET.iter().map(|secret| format!("{:016x}", secret.hash_one(count))).collect()
}

/// The stored pictures by name. The oldest are deleted when all together are too large.
#[derive(Default)]
pub struct ImageStore(Mutex<Kept>);

#[derive(Default)]
struct Kept {
    pictures: VecDeque<(String, Vec<u8>)>,
    bytes: usize,
}

impl ImageStore {
    /// Stores a picture file and returns its name, which ends in `.` and `ending`.
    pub fn keep(&self, file: Vec<u8>, ending: &str) -> String {
        let name = format!("{}.{ending}", unguessable());
        if let Ok(mut kept) = self.0.lock() {
            kept.bytes += file.len();
            kept.pictures.push_back((name.clone(), file));
            while kept.bytes > KEPT_BYTES {
                let Some((_, oldest)) = kept.pictures.pop_front() else { break };
                kept.bytes -= oldest.len();
            }
        }
        name
    }

    /// Returns the picture file of this name, if it is still stored.
    pub fn get(&self, name: &str) -> Option<Vec<u8>> {
        let kept = self.0.lock().ok()?;
        kept.pictures.iter().find(|(known, _)| known == name).map(|(_, file)| file.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_store_deletes_the_oldest_pictures() {
        let image_store = ImageStore::default();
        let third = || vec![7; KEPT_BYTES / 3];
        let names: Vec<String> = (0..4).map(|_| image_store.keep(third(), "png")).collect();
        assert!(image_store.get(&names[0]).is_none());
        assert!(names[1..].iter().all(|name| image_store.get(name) == Some(third())));
        assert!(names.iter().all(|name| name.len() == 36 && name.ends_with(".png")));
        assert_ne!(names[0], names[1]);
    }
}
