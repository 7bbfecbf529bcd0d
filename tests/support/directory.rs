//! Temporary directories.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A temporary directory, removed with its contents.
#[derive(Debug)]
pub struct Directory(PathBuf, u32);

impl Directory {
    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn make() -> Directory {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let process = std::process::id();
        let name = format!("prefork-cache-{process}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap_or_else(|error| panic!("making {}: {error}", path.display()));
        Directory(path, process)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if std::process::id() == self.1 {
            // A failure leaves only a few empty files in the temporary directory.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}
