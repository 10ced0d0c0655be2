//! Where sealed segments and the journal's state lie: small named files that are replaced as a whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Files of one folder. What `write` has returned for is durable.
pub trait Storage: Send + Sync + 'static {
    /// Names and sizes in bytes, in no order.
    ///
    /// # Errors
    /// What the medium answers.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
    /// Reads up to `length` bytes from `offset` on; fewer only at the end of the file.
    ///
    /// # Errors
    /// What the medium answers; `NotFound` if there is no such file.
    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>>;
    /// Makes or replaces a file. After a crash there is the old content or the new, whole.
    ///
    /// # Errors
    /// What the medium answers; the old content, if any, is untouched then.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Begins a file that is written piece by piece. It has its name only when it is finished; dropped before, it is gone.
    ///
    /// # Errors
    /// What the medium answers.
    fn create(&self, name: &str) -> io::Result<Box<dyn NewFile + '_>>;
    /// Removes a file.
    ///
    /// # Errors
    /// What the medium answers.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Renames a file.
    ///
    /// # Errors
    /// What the medium answers.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
}

/// A file that is being written.
pub trait NewFile {
    /// Adds bytes at its end.
    ///
    /// # Errors
    /// What the medium answers.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Puts bytes over its beginning, and gives it its name when all of it is durable.
    ///
    /// # Errors
    /// What the medium answers; there is no such file then, or the old one.
    fn finish(self: Box<Self>, beginning: &[u8]) -> io::Result<()>;
}

/// A folder of the host.
pub struct DirStorage {
    path: PathBuf,
}

impl DirStorage {
    /// Uses a folder, which is made with mode 0700 if it does not exist.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn open(path: &Path) -> io::Result<DirStorage> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        Ok(DirStorage { path: path.to_owned() })
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl Storage for DirStorage {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if let (Ok(name), true) = (entry.file_name().into_string(), entry.file_type()?.is_file()) {
                files.push((name, entry.metadata()?.len()));
            }
        }
        Ok(files)
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let file = File::open(self.path.join(name))?;
        let available = file.metadata()?.len().saturating_sub(offset);
        let mut bytes = vec![0; length.min(usize::try_from(available).unwrap_or(usize::MAX))];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.create(name)?;
        file.append(bytes)?;
        file.finish(&[])
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn NewFile + '_>> {
        let temporary = self.path.join(format!("{name}.tmp"));
        let file = File::create(&temporary)?;
        Ok(Box::new(DirFile { storage: self, name: self.path.join(name), temporary: Some(temporary), file }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))?;
        self.sync_folder()
    }
}

struct DirFile<'a> {
    storage: &'a DirStorage,
    name: PathBuf,
    /// `None` when it has got its name.
    temporary: Option<PathBuf>,
    file: File,
}

impl NewFile for DirFile<'_> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn finish(mut self: Box<Self>, beginning: &[u8]) -> io::Result<()> {
        self.file.write_all_at(beginning, 0)?;
        self.file.sync_all()?;
        if let Some(temporary) = &self.temporary {
            fs::rename(temporary, &self.name)?;
        }
        self.temporary = None;
        self.storage.sync_folder()
    }
}

impl Drop for DirFile<'_> {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The error before is the one to report; what stays is removed at the next start.
            let _ = fs::remove_file(temporary);
        }
    }
}

/// A folder in memory that can be told to fail, for simulations.
#[derive(Default)]
pub struct MemoryStorage {
    inner: Mutex<MemoryFiles>,
}

#[derive(Default)]
struct MemoryFiles {
    files: BTreeMap<String, Vec<u8>>,
    free_bytes: Option<u64>,
}

impl MemoryStorage {
    /// Sets how many bytes can still be written, `None` for no limit.
    pub fn set_free_bytes(&self, free_bytes: Option<u64>) {
        self.with(|inner| inner.free_bytes = free_bytes);
    }

    /// Changes one bit of a file.
    pub fn flip_bit(&self, name: &str, bit: usize) {
        self.with(|inner| {
            if let Some(byte) = inner.files.get_mut(name).and_then(|bytes| bytes.get_mut(bit / 8)) {
                *byte ^= 1 << (bit % 8);
            }
        });
    }

    fn with<T>(&self, action: impl FnOnce(&mut MemoryFiles) -> T) -> T {
        action(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Storage for MemoryStorage {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let entry = |(name, bytes): (&String, &Vec<u8>)| (name.clone(), bytes.len() as u64);
        Ok(self.with(|inner| inner.files.iter().map(entry).collect()))
    }

    fn read(&self, name: &str, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.with(|inner| {
            let bytes = inner.files.get(name).ok_or(io::ErrorKind::NotFound)?;
            let start = bytes.len().min(offset as usize);
            Ok(bytes[start..bytes.len().min(start + length)].to_vec())
        })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.with(|inner| {
            if let Some(free) = &mut inner.free_bytes {
                *free = free.checked_sub(bytes.len() as u64).ok_or(io::ErrorKind::StorageFull)?;
            }
            inner.files.insert(name.to_owned(), bytes.to_vec());
            Ok(())
        })
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn NewFile + '_>> {
        Ok(Box::new(MemoryFile { storage: self, name: name.to_owned(), bytes: Vec::new() }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.with(|inner| inner.files.remove(name).map(drop).ok_or(io::ErrorKind::NotFound.into()))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.with(|inner| {
            let bytes = inner.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
            inner.files.insert(to.to_owned(), bytes);
            Ok(())
        })
    }
}

struct MemoryFile<'a> {
    storage: &'a MemoryStorage,
    name: String,
    bytes: Vec<u8>,
}

impl NewFile for MemoryFile<'_> {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn finish(mut self: Box<Self>, beginning: &[u8]) -> io::Result<()> {
        self.bytes[..beginning.len()].copy_from_slice(beginning);
        self.storage.write(&self.name, &self.bytes)
    }
}
