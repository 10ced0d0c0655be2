//! Debian packages in an older and a newer version, kept so that a second run needs no network.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use super::tools::{output, run};

/// Paths in the file system, absolute, and the files that they come from.
pub(super) type Tree = BTreeMap<String, PathBuf>;

/// A package as the machine's sources have it.
struct Package {
    name: String,
    /// Oldest and newest version, backports left out.
    versions: [String; 2],
    /// Their files in the folder.
    files: [PathBuf; 2],
}

/// Packages that have been downloaded.
pub(super) struct Packages {
    packages: Vec<Package>,
    unpacked: PathBuf,
}

impl Packages {
    /// Downloads what is missing into `folder`; versions once chosen stay. `unpacked` takes the files of the packages.
    pub(super) fn get(names: &[&str], folder: &Path, unpacked: &Path) -> anyhow::Result<Packages> {
        fs::create_dir_all(folder)?;
        let list = folder.join("versions");
        let mut known = fs::read_to_string(&list).unwrap_or_default();
        let mut packages = Vec::new();
        for name in names {
            let line = match known.lines().find(|line| line.split(' ').next() == Some(*name)) {
                Some(line) => line.to_owned(),
                None => {
                    let line = download(name, folder)?;
                    known += &format!("{line}\n");
                    fs::write(&list, &known)?;
                    line
                }
            };
            let words: Vec<&str> = line.split(' ').collect();
            let &[_, old, new, old_file, new_file] = words.as_slice() else {
                anyhow::bail!("{} has a line that is not understood: {line}", list.display());
            };
            let files = [old_file, new_file].map(|file| folder.join(file));
            for file in &files {
                ensure!(file.is_file(), "{} is gone; remove {} too", file.display(), list.display());
            }
            packages.push(Package {
                name: (*name).to_owned(),
                versions: [old.to_owned(), new.to_owned()],
                files,
            });
        }
        Ok(Packages { packages, unpacked: unpacked.to_owned() })
    }

    /// Name, older and newer version of each.
    pub(super) fn versions(&self) -> Vec<String> {
        self.packages
            .iter()
            .map(|package| format!("{} {} {}", package.name, package.versions[0], package.versions[1]))
            .collect()
    }

    /// The files of a package in its older version.
    pub(super) fn older(&self, name: &str) -> anyhow::Result<Tree> {
        self.unpack(name, 0)
    }

    /// The files of a package in its newer version.
    pub(super) fn newer(&self, name: &str) -> anyhow::Result<Tree> {
        self.unpack(name, 1)
    }

    fn unpack(&self, name: &str, which: usize) -> anyhow::Result<Tree> {
        let package = self.packages.iter().find(|package| package.name == name);
        let package = package.with_context(|| format!("package {name} was not downloaded"))?;
        let folder = self.unpacked.join(format!("{name}_{which}"));
        if !folder.is_dir() {
            fs::create_dir_all(&folder)?;
            run(Command::new("dpkg-deb").arg("--extract").arg(&package.files[which]).arg(&folder))?;
        }
        let mut tree = Tree::new();
        collect(&folder, "", &mut tree)?;
        Ok(tree)
    }
}

fn collect(folder: &Path, path: &str, tree: &mut Tree) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // What cannot be named in a script of debugfs is left out.
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        if name.contains('"') {
            continue;
        }
        let path = format!("{path}/{name}");
        match entry.file_type()? {
            kind if kind.is_dir() => collect(&entry.path(), &path, tree)?,
            _ => drop(tree.insert(path, entry.path())),
        }
    }
    Ok(())
}

/// Downloads the oldest and the newest version of a package; answers name, versions and files, with blanks between them.
fn download(name: &str, folder: &Path) -> anyhow::Result<String> {
    let offered = output(Command::new("apt-cache").args(["madison", name]))?;
    let mut versions: Vec<&str> = offered
        .lines()
        .filter(|line| !line.contains("-backports"))
        .filter_map(|line| line.split('|').nth(1).map(str::trim))
        .collect();
    versions.sort_by(|a, b| compare(a, b));
    let (Some(old), Some(new)) = (versions.first(), versions.last()) else {
        anyhow::bail!("apt knows no package {name}; run apt-get update");
    };
    let mut files = Vec::new();
    for version in [old, new] {
        let wanted = format!("{name}={version}");
        let line = output(Command::new("apt-get").args(["-q", "download", "--print-uris", &wanted]))?;
        // 'URI' FILE SIZE HASH
        let file = line.split_whitespace().nth(1).with_context(|| format!("apt-get printed '{line}'"))?;
        if !folder.join(file).is_file() {
            eprintln!("download {wanted}");
            let mut download = Command::new("apt-get");
            download.args(["-q", "-o", "APT::Sandbox::User=root", "download", &wanted]).current_dir(folder);
            output(&mut download)?;
        }
        files.push(file.to_owned());
    }
    Ok(format!("{name} {old} {new} {} {}", files[0], files[1]))
}

fn compare(a: &str, b: &str) -> Ordering {
    let is = |relation| {
        Command::new("dpkg")
            .args(["--compare-versions", a, relation, b])
            .status()
            .is_ok_and(|status| status.success())
    };
    if is("lt") {
        Ordering::Less
    } else if is("gt") {
        Ordering::Greater
    } else {
        Ordering::Equal
    }
}
