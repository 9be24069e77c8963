//! What a crash leaves of the directory of an engine that is running.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Copies a directory as it stands at one moment into `to`, which holds nothing. The engine's threads go on writing,
/// renaming and removing: a copy during which that happened mixes two moments, and another one is made.
pub fn as_a_crash_leaves(dir: &Path, to: &Path) {
    for _ in 0..100 {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        match list(dir, &mut before).and_then(|()| copy(dir, to)).and_then(|()| list(dir, &mut after)) {
            Ok(()) if before == after => return,
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => panic!("{}: {error}", dir.display()),
        }
        // Nothing was copied when a file went while they were listed.
        if to.exists() {
            std::fs::remove_dir_all(to).unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{} did not hold still for one of 100 copies", dir.display());
}

/// Paths and lengths of all files.
fn list(dir: &Path, files: &mut Vec<(PathBuf, u64)>) -> std::io::Result<()> {
    let mut entries = std::fs::read_dir(dir)?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::path);
    for entry in entries {
        let about = entry.metadata()?;
        if about.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push((entry.path(), about.len()));
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
