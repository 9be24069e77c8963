//! Every change that log, snapshots, archive and history make on disk, in one place: debug builds let a test have any of them fail and record them all
//! ([`super::fault_plan`]); release builds pass them straight on.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
#[cfg(debug_assertions)]
use std::path::PathBuf;

#[cfg(debug_assertions)]
use super::fault_plan::{self, Event};

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// A folder is made.
    CreateDir,
    /// A file is made, or emptied.
    Create,
    /// Bytes are added at the end.
    Append,
    /// The end is cut off.
    Truncate,
    /// Contents are made durable.
    Sync,
    /// Names in a folder are made durable.
    SyncDir,
    /// A file gets another name.
    Rename,
    /// A file goes.
    Remove,
    /// The index is written: what sled does there is its own.
    IndexWrite,
}

/// A file that grows at its end.
#[derive(Debug)]
pub struct DiskFile {
    file: File,
    #[cfg(debug_assertions)]
    path: PathBuf,
}

/// Has the operation done, unless a test wants it to fail; records it when it is done.
macro_rules! watched {
    ($operation:ident, $path:expr, $event:expr, $real:expr) => {{
        #[cfg(debug_assertions)]
        {
            fault_plan::before(Operation::$operation, $path)?;
            let event: Event = $event;
            let done = $real?;
            fault_plan::after(event);
            Ok(done)
        }
        #[cfg(not(debug_assertions))]
        {
            $real
        }
    }};
}

impl DiskFile {
    /// A new file; fails if there is one.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn create_new(path: &Path) -> io::Result<Self> {
        let file: io::Result<File> = watched!(Create, path, Event::of(Operation::Create, path), OpenOptions::new().create_new(true).append(true).open(path));
        Ok(Self::of(file?, path))
    }

    /// A new file in the place of any other; it can be read too.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn create(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).read(true).write(true);
        let file: io::Result<File> = watched!(Create, path, Event::of(Operation::Create, path), options.open(path));
        Ok(Self::of(file?, path))
    }

    /// The file that is there, or a new one; it can be read too.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.append(true).read(true);
        if path.exists() {
            return Ok(Self::of(options.open(path)?, path));
        }
        let file: io::Result<File> = watched!(Create, path, Event::of(Operation::Create, path), options.create(true).open(path));
        Ok(Self::of(file?, path))
    }

    fn of(file: File, path: &Path) -> Self {
        #[cfg(not(debug_assertions))]
        let _ = path;
        Self {
            file,
            #[cfg(debug_assertions)]
            path: path.to_owned(),
        }
    }

    /// For reading.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Adds bytes at the end. When that fails, some of them may stand there.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        #[cfg(debug_assertions)]
        {
            let offset = self.file.metadata()?.len();
            let event = |bytes: &[u8]| Event { offset, bytes: bytes.to_vec(), ..Event::of(Operation::Append, &self.path) };
            if let Err((error, bytes_done)) = fault_plan::before_append(&self.path) {
                let part = &bytes[..bytes_done.min(bytes.len())];
                self.file.write_all(part)?;
                fault_plan::after(event(part));
                return Err(error);
            }
            let event = event(bytes);
            self.file.write_all(bytes)?;
            fault_plan::after(event);
            Ok(())
        }
        #[cfg(not(debug_assertions))]
        self.file.write_all(bytes)
    }

    /// Cuts off what stands behind so many bytes.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn truncate(&self, bytes: u64) -> io::Result<()> {
        watched!(Truncate, &self.path, Event { offset: bytes, ..Event::of(Operation::Truncate, &self.path) }, self.file.set_len(bytes))
    }

    /// Makes the contents durable, and what is needed to read them.
    ///
    /// # Errors
    /// What the operating system says: what is on disk is then unknown, and asking again would not tell.
    pub fn sync_data(&self) -> io::Result<()> {
        watched!(Sync, &self.path, Event::of(Operation::Sync, &self.path), self.file.sync_data())
    }

    /// Makes contents and attributes durable.
    ///
    /// # Errors
    /// As for [`DiskFile::sync_data`].
    pub fn sync_all(&self) -> io::Result<()> {
        watched!(Sync, &self.path, Event::of(Operation::Sync, &self.path), self.file.sync_all())
    }
}

impl io::Write for DiskFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes a folder with those above it, if it is not there.
///
/// # Errors
/// What the operating system says.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    watched!(CreateDir, path, Event::of(Operation::CreateDir, path), fs::create_dir_all(path))
}

/// Gives a file another name, over any that has it.
///
/// # Errors
/// What the operating system says.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    watched!(Rename, to, Event { renamed_from: Some(from.to_owned()), ..Event::of(Operation::Rename, to) }, fs::rename(from, to))
}

/// Removes a file.
///
/// # Errors
/// What the operating system says.
pub fn remove_file(path: &Path) -> io::Result<()> {
    watched!(Remove, path, Event::of(Operation::Remove, path), fs::remove_file(path))
}

/// Passed before the index is written.
///
/// # Errors
/// What a test wants.
#[cfg_attr(not(debug_assertions), expect(clippy::unnecessary_wraps, reason = "only a test has it fail"))]
pub fn pass_index_write(path: &Path) -> io::Result<()> {
    #[cfg(debug_assertions)]
    fault_plan::before(Operation::IndexWrite, path)?;
    #[cfg(not(debug_assertions))]
    let _ = path;
    Ok(())
}

/// Makes the names in a folder durable.
///
/// # Errors
/// What the operating system says.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    watched!(SyncDir, path, Event::of(Operation::SyncDir, path), File::open(path).and_then(|d| d.sync_all()))
}

/// Whether an operation failed because there is no room on the disk, or none that this user may have.
#[must_use]
pub fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
