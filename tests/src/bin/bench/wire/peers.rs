//! What else can keep a far copy of an image up to date, each with a repository or copy of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::image::Images;
use super::tools::{Cost, is_there, length_of_all, measured, output, run};

/// Ours, first in every table.
pub(super) const OURS: &str = "thirdsite";
/// Peers whose best is the measure.
const PEERS: [&str; 5] = ["restic", "borg", "desync", "qemu-img", "rsync"];
/// Not a peer: it needs both images in one place. What can be reached at most.
pub(super) const LIMIT: &str = "zstd-patch";

/// A peer or the limit, at work.
pub(super) struct Peer {
    pub(super) name: &'static str,
    /// The program, which may be another of the same kind.
    pub(super) program: &'static str,
    folder: PathBuf,
}

impl Peer {
    /// All of them, those of `only` if it is not empty, below `folder`.
    pub(super) fn all(only: &[String], folder: &Path) -> anyhow::Result<Vec<Peer>> {
        let wanted = |name: &&str| only.is_empty() || only.iter().any(|only| only == name);
        let mut peers = Vec::new();
        for name in PEERS.into_iter().chain([LIMIT]).filter(wanted) {
            let peer = Peer { name, program: program(name)?, folder: folder.join(name) };
            fs::create_dir_all(&peer.folder)?;
            peer.set_up().with_context(|| format!("setting up {name}"))?;
            peers.push(peer);
        }
        Ok(peers)
    }

    /// What the program says of its version.
    pub(super) fn version(&self) -> String {
        let flag = if self.program == "restic" { "version" } else { "--version" };
        let printed = output(Command::new(self.program).arg(flag)).unwrap_or_default();
        printed.lines().next().unwrap_or_default().to_owned()
    }

    fn set_up(&self) -> anyhow::Result<()> {
        match self.name {
            "restic" => run(self.with_settings(&mut Command::new("restic")).args(["--quiet", "init"])),
            "borg" => run(self
                .with_settings(&mut Command::new("borg"))
                .args(["init", "--encryption=none"])
                .arg(self.path("repository"))),
            "desync" => Ok(fs::create_dir_all(self.path("store.castr"))?),
            "rsync" => {
                let shell = self.path("shell");
                fs::write(&shell, "#!/bin/sh\n# The host is this one.\nshift\nexec sh -c \"$*\"\n")?;
                run(Command::new("chmod").arg("+x").arg(shell))
            }
            _ => Ok(()),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn with_settings<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("RESTIC_REPOSITORY", self.path("repository"))
            .env("RESTIC_PASSWORD", "bench")
            .env("RESTIC_CACHE_DIR", self.path("cache"))
            .env("BORG_BASE_DIR", self.path("base"))
            .env("BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK", "yes")
    }

    /// Takes in a generation; `None` if the first is nothing to it.
    pub(super) fn take_in(&self, images: &Images, generation: usize) -> anyhow::Result<Option<Cost>> {
        let image = images.path(generation);
        let previous = (generation > 0).then(|| images.path(generation - 1));
        let cost = match self.name {
            "restic" => self.grown("repository", |peer| peer.restic(&image)),
            "borg" => self.grown("repository", |peer| peer.borg(&image, generation)),
            "desync" => self.grown("", |peer| peer.desync(&image, generation)),
            "qemu-img" => self.qemu_img(&image, previous.as_deref()),
            "rsync" => self.rsync(&image),
            LIMIT => match previous {
                Some(previous) => self.patch(&image, &previous),
                None => return Ok(None),
            },
            other => bail!("there is no peer {other}"),
        };
        cost.map(Some).with_context(|| format!("{} with generation {generation}", self.name))
    }

    /// What a step costs that makes a folder grow.
    fn grown(&self, name: &str, step: impl FnOnce(&Peer) -> anyhow::Result<Cost>) -> anyhow::Result<Cost> {
        let before = length_of_all(&self.path(name))?;
        let cost = step(self)?;
        let after = length_of_all(&self.path(name))?;
        Ok(Cost { bytes: after.saturating_sub(before), ..cost })
    }

    fn restic(&self, image: &Path) -> anyhow::Result<Cost> {
        let cost = measured("restic", |command| {
            self.with_settings(command).args(["--quiet", "backup"]).arg(image);
        })?;
        Ok(cost.0)
    }

    fn borg(&self, image: &Path, generation: usize) -> anyhow::Result<Cost> {
        let archive = format!("{}::g{generation}", self.path("repository").display());
        let cost = measured("borg", |command| {
            let command = self.with_settings(command).args(["create", "--files-cache=disabled"]);
            command.args(["--chunker-params=fixed,65536", "--compression=zstd,1"]).arg(archive).arg(image);
        })?;
        Ok(cost.0)
    }

    fn desync(&self, image: &Path, generation: usize) -> anyhow::Result<Cost> {
        let (store, index) = (self.path("store.castr"), self.path(&format!("g{generation}.caibx")));
        let cost = measured(self.program, |command| {
            command.arg("make");
            if self.program == "casync" {
                command.arg("--compression=zstd");
            }
            command.arg("--store").arg(store).arg(index).arg(image);
        })?;
        Ok(cost.0)
    }

    /// A compressed overlay of the clusters that differ; the first is the whole image.
    fn qemu_img(&self, image: &Path, previous: Option<&Path>) -> anyhow::Result<Cost> {
        const OPTIONS: &str = "compression_type=zstd,cluster_size=65536";
        let made = self.path("delta.qcow2");
        let Some(previous) = previous else {
            let (cost, _) = measured("qemu-img", |command| {
                command
                    .args(["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", OPTIONS])
                    .arg(image)
                    .arg(&made);
            })?;
            return Ok(Cost { bytes: length_of_all(&made)?, ..cost });
        };
        let image = fs::canonicalize(image)?;
        let (created, _) = measured("qemu-img", |command| {
            let command = command.args(["create", "-q", "-f", "qcow2", "-o", OPTIONS]);
            command.arg("-b").arg(&image).args(["-F", "raw"]).arg(&made);
        })?;
        let (rebased, _) = measured("qemu-img", |command| {
            let command = command.args(["rebase", "-c", "-f", "qcow2", "-F", "raw", "-b"]);
            command.arg(previous).arg(&made);
        })?;
        Ok(Cost { bytes: length_of_all(&made)?, ..created.and(rebased) })
    }

    /// Between two processes, as over a remote shell; the copy is brought up to date in place.
    fn rsync(&self, image: &Path) -> anyhow::Result<Cost> {
        let (cost, printed) = measured("rsync", |command| {
            command.args([
                "--inplace",
                "--ignore-times",
                "--no-whole-file",
                "--stats",
                "--no-human-readable",
            ]);
            command.args(["--compress", "--compress-choice=zstd", "--compress-level=1", "--rsh"]);
            command.arg(self.path("shell")).arg(image);
            command.arg(format!("host:{}", self.path("copy.raw").display()));
        })?;
        let count = |what: &str| {
            let line = printed.lines().find_map(|line| line.strip_prefix(what));
            let line = line.with_context(|| format!("rsync does not say '{what}'"))?;
            line.replace(',', "").trim().parse::<u64>().context("rsync printed no number")
        };
        Ok(Cost { bytes: count("Total bytes sent: ")? + count("Total bytes received: ")?, ..cost })
    }

    fn patch(&self, image: &Path, previous: &Path) -> anyhow::Result<Cost> {
        let made = self.path("patch.zst");
        let (cost, _) = measured("zstd", |command| {
            command.args(["-q", "-f", "-3", "--long=31", "--patch-from"]).arg(previous);
            command.arg(image).arg("-o").arg(&made);
        })?;
        Ok(Cost { bytes: length_of_all(&made)?, ..cost })
    }
}

/// The program of a peer.
fn program(name: &'static str) -> anyhow::Result<&'static str> {
    let candidates: &[&'static str] = match name {
        // Debian has no package of desync; casync is what it reimplements: the same chunks, store and index.
        "desync" => &["desync", "casync"],
        LIMIT => &["zstd"],
        _ => &[name],
    };
    let found = candidates.iter().copied().find(|program| is_there(program));
    found.with_context(|| format!("{name} is missing; tests/bench-setup installs what the benchmark needs"))
}
