//! Where sealed segments, intent maps and the journal's state lie: files of one folder.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

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
    fn create(&self, name: &str) -> io::Result<Box<dyn NewFile>>;
    /// Opens a file to change it in place.
    ///
    /// # Errors
    /// What the medium answers; `NotFound` if there is no such file.
    fn update(&self, name: &str) -> io::Result<Box<dyn UpdateFile>>;
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

/// A file that is changed in place.
pub trait UpdateFile: Send {
    /// Writes within the file's size. Not durable before `sync`; until then every sector of 512 bytes may have its old or its new
    /// content after a crash.
    ///
    /// # Errors
    /// What the medium answers.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes everything written durable. After an error nobody knows what is: the file must not be used any more.
    ///
    /// # Errors
    /// What the medium answers.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file that is being written.
pub trait NewFile: Send {
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
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
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

    fn create(&self, name: &str) -> io::Result<Box<dyn NewFile>> {
        let temporary = self.path.join(format!("{name}.tmp"));
        let file = File::create(&temporary)?;
        let (folder, name) = (self.path.clone(), self.path.join(name));
        Ok(Box::new(DirFile { folder, name, temporary: Some(temporary), file }))
    }

    fn update(&self, name: &str) -> io::Result<Box<dyn UpdateFile>> {
        let file = File::options().write(true).open(self.path.join(name))?;
        Ok(Box::new(DirUpdate { file }))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path.join(from), self.path.join(to))?;
        sync_folder(&self.path)
    }
}

struct DirUpdate {
    file: File,
}

impl UpdateFile for DirUpdate {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

struct DirFile {
    folder: PathBuf,
    name: PathBuf,
    /// `None` when it has got its name.
    temporary: Option<PathBuf>,
    file: File,
}

impl NewFile for DirFile {
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
        sync_folder(&self.folder)
    }
}

impl Drop for DirFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // The error before is the one to report; what stays is removed at the next start.
            let _ = fs::remove_file(temporary);
        }
    }
}
