//! An ext4 image that is changed without being mounted: files through debugfs, contents in place where their extents say. Nothing in it depends
//! on the clock or on the host's file system, so the same steps make the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use rustix::fs::{FallocateFlags, fallocate};

use super::BLOCK_BYTES;
use super::packages::Tree;
use super::tools::{output, run};

const UUID: &str = "5d1f0f52-6f0b-4f7e-9a3c-3f6c0c1b7a11";
/// 2026-01-01; one more day with each generation.
const BEGIN_SECONDS: u64 = 1_767_225_600;

/// A file system and what is in it.
pub(super) struct Disk {
    image: PathBuf,
    script: String,
    day: u64,
    folder: String,
    folders: BTreeSet<String>,
    files: BTreeSet<String>,
}

impl Disk {
    /// Makes an empty file system in a new sparse file.
    pub(super) fn format(image: &Path, bytes: u64) -> anyhow::Result<Disk> {
        File::create(image)?.set_len(bytes)?;
        let extended = format!("hash_seed={UUID},lazy_itable_init=0,lazy_journal_init=0,nodiscard");
        let mut format = Command::new("mke2fs");
        format.env("E2FSPROGS_FAKE_TIME", BEGIN_SECONDS.to_string());
        format.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-J", "size=16"]);
        run(format.args(["-U", UUID, "-L", "root", "-E", &extended]).arg(image))?;
        let mut disk = Disk {
            image: image.to_owned(),
            script: String::new(),
            day: 0,
            folder: String::new(),
            folders: BTreeSet::from([String::new()]),
            files: BTreeSet::new(),
        };
        disk.begin_script();
        Ok(disk)
    }

    /// The file that is changed.
    pub(super) fn image(&self) -> &Path {
        &self.image
    }

    /// Paths of all files, in order.
    pub(super) fn files(&self) -> impl Iterator<Item = &String> {
        self.files.iter()
    }

    /// What comes happens a day later.
    pub(super) fn next_day(&mut self) -> anyhow::Result<()> {
        self.carry_out()?;
        self.day += 1;
        self.begin_script();
        Ok(())
    }

    fn begin_script(&mut self) {
        self.script = format!("set_current_time {}\n", self.time());
        self.folder = "/nowhere".to_owned();
    }

    fn time(&self) -> String {
        format!("202601{:02}060000", self.day + 1)
    }

    fn say(&mut self, line: &str) {
        self.script += line;
        self.script.push('\n');
    }

    /// Goes into the folder of a path; answers the name in it.
    fn enter<'a>(&mut self, path: &'a str) -> &'a str {
        let (folder, name) = path.rsplit_once('/').expect("paths are absolute");
        self.make_folder(folder);
        if self.folder != folder {
            self.say(&format!("cd \"{folder}/\""));
            folder.clone_into(&mut self.folder);
        }
        name
    }

    fn make_folder(&mut self, folder: &str) {
        if !self.folders.contains(folder) {
            let name = self.enter(folder);
            self.say(&format!("mkdir \"{name}\""));
            self.folders.insert(folder.to_owned());
        }
    }

    /// Writes files and symbolic links that are not there yet.
    pub(super) fn add(&mut self, tree: &Tree) -> anyhow::Result<()> {
        for (path, source) in tree {
            if !self.is_free(path) {
                continue;
            }
            let name = self.enter(path);
            self.write(name, source)?;
            self.files.insert(path.clone());
        }
        Ok(())
    }

    /// Whether a file can have this path: nothing has it, and no file is where it needs a folder.
    fn is_free(&self, path: &str) -> bool {
        let folders = path.match_indices('/').map(|(end, _)| &path[..end]);
        !self.files.contains(path)
            && !self.folders.contains(path)
            && folders.into_iter().all(|folder| !self.files.contains(folder))
    }

    fn write(&mut self, name: &str, source: &Path) -> anyhow::Result<()> {
        if let Ok(target) = fs::read_link(source) {
            self.say(&format!("symlink \"{name}\" \"{}\"", target.display()));
        } else {
            let source = source.to_str().context("a folder has a name that is not UTF-8")?;
            self.say(&format!("write \"{source}\" \"{name}\""));
        }
        Ok(())
    }

    /// Puts a newer version in the place of an older one as dpkg does: all that is new beside the old, then renamed over it.
    pub(super) fn upgrade(&mut self, older: &Tree, newer: &Tree) -> anyhow::Result<()> {
        let both: Vec<_> = newer.iter().filter(|(path, _)| self.files.contains(*path)).collect();
        for (path, source) in &both {
            let name = self.enter(path);
            self.write(&format!("{name}.dpkg-new"), source)?;
        }
        for (path, _) in &both {
            let name = self.enter(path);
            self.say(&format!(
                "rm \"{name}\"\nln \"{name}.dpkg-new\" \"{name}\"\nunlink \"{name}.dpkg-new\""
            ));
        }
        self.add(newer)?;
        let gone: Vec<String> = older.keys().filter(|path| !newer.contains_key(*path)).cloned().collect();
        self.remove(&gone)
    }

    /// Removes files; what they held stays where it is.
    pub(super) fn remove(&mut self, paths: &[String]) -> anyhow::Result<()> {
        for path in paths {
            if self.files.remove(path) {
                let name = self.enter(path);
                self.say(&format!("rm \"{name}\""));
            }
        }
        Ok(())
    }

    /// Removes files and discards their blocks.
    pub(super) fn remove_and_trim(&mut self, paths: &[String]) -> anyhow::Result<()> {
        let regular: Vec<String> = paths.iter().filter(|path| self.files.contains(*path)).cloned().collect();
        let extents = self.extents(&regular)?;
        self.remove(paths)?;
        self.carry_out()?;
        let image = File::options().write(true).open(&self.image)?;
        for (_, physical, blocks) in extents {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&image, flags, physical * BLOCK_BYTES, blocks * BLOCK_BYTES)?;
        }
        Ok(())
    }

    /// Notes that a file was read.
    pub(super) fn access(&mut self, path: &str) {
        let time = self.time();
        self.say(&format!("set_inode_field \"{path}\" atime {time}"));
    }

    /// Carries out what has been said, and looks whether the file system is whole.
    pub(super) fn carry_out(&mut self) -> anyhow::Result<()> {
        let script = tempfile::NamedTempFile::new()?;
        fs::write(script.path(), &self.script)?;
        let done = Command::new("debugfs").args(["-w", "-f"]).arg(script.path()).arg(&self.image).output()?;
        let complaints = String::from_utf8_lossy(&done.stderr);
        let complaint = complaints.lines().find(|line| !line.starts_with("debugfs ") && !line.is_empty());
        if let Some(complaint) = complaint {
            bail!("debugfs on {}: {complaint}", self.image.display());
        }
        run(Command::new("e2fsck").args(["-f", "-n"]).arg(&self.image))?;
        self.begin_script();
        Ok(())
    }

    /// Logical block, physical block and number of blocks of all extents of some files.
    fn extents(&mut self, paths: &[String]) -> anyhow::Result<Vec<(u64, u64, u64)>> {
        self.carry_out()?;
        let script = tempfile::NamedTempFile::new()?;
        let lines = paths.iter().map(|path| format!("dump_extents -l \"{path}\"\n")).collect::<String>();
        fs::write(script.path(), lines)?;
        let printed = output(Command::new("debugfs").arg("-f").arg(script.path()).arg(&self.image))?;
        Ok(printed.lines().filter_map(extent).collect())
    }

    /// A file whose contents are changed in place.
    pub(super) fn open(&mut self, path: &str) -> anyhow::Result<Contents> {
        let extents = self.extents(&[path.to_owned()])?;
        ensure!(!extents.is_empty(), "{path} has no extents");
        let blocks = extents
            .iter()
            .flat_map(|&(logical, physical, count)| (0..count).map(move |n| (logical + n, physical + n)));
        let image = File::options().read(true).write(true).open(&self.image)?;
        Ok(Contents { image, blocks: blocks.collect() })
    }
}

/// ` 1/ 1   2/  9 15322 - 15325  25187 -  25190      4` is a leaf; a line without a length is none.
fn extent(line: &str) -> Option<(u64, u64, u64)> {
    let words: Vec<&str> = line.split(['/', ' ', '-']).filter(|word| !word.is_empty()).collect();
    let numbers: Vec<u64> = words.iter().map(|word| word.parse()).collect::<Result<_, _>>().ok()?;
    let &[level, depth, _, _, logical, _, physical, _, count] = numbers.as_slice() else { return None };
    (level == depth).then_some((logical, physical, count))
}

/// Where the blocks of a file lie.
pub(super) struct Contents {
    image: File,
    blocks: BTreeMap<u64, u64>,
}

impl Contents {
    /// Number of blocks.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    fn offset(&self, block: u64) -> anyhow::Result<u64> {
        let physical = self.blocks.get(&block).with_context(|| format!("block {block} is a hole"))?;
        Ok(physical * BLOCK_BYTES)
    }

    /// Reads a block.
    pub(super) fn read(&self, block: u64) -> anyhow::Result<Vec<u8>> {
        let mut data = vec![0; BLOCK_BYTES as usize];
        self.image.read_exact_at(&mut data, self.offset(block)?)?;
        Ok(data)
    }

    /// Writes a block.
    pub(super) fn write(&self, block: u64, data: &[u8]) -> anyhow::Result<()> {
        ensure!(data.len() as u64 == BLOCK_BYTES, "only whole blocks are written");
        Ok(self.image.write_all_at(data, self.offset(block)?)?)
    }
}
