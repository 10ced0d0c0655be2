//! The image and its eight generations of change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::BLOCK_BYTES;
use super::content::{Author, PAGE_BYTES};
use super::delta::Delta;
use super::disk::Disk;
use super::packages::{Packages, Tree};
use super::tools::run;

/// What the generations are called; the first is the image before any change.
pub(super) const GENERATIONS: [&str; 9] = [
    "first",
    "package upgrade",
    "database pages",
    "log append",
    "random overwrite",
    "delete and trim",
    "copies",
    "mixed",
    "idle",
];
/// The one whose deletions are discarded.
pub(super) const TRIMMED: usize = 5;

/// How large everything is.
pub(super) struct Plan {
    pub(super) name: &'static str,
    pub(super) image_bytes: u64,
    upgraded: &'static [&'static str],
    kept: &'static [&'static str],
    /// Of those kept, removed by the fifth generation.
    purged: &'static [&'static str],
    /// Of those kept, copied by the sixth.
    copied: &'static [&'static str],
    /// Of those upgraded, copied by the seventh.
    copied_later: &'static [&'static str],
    table_bytes: usize,
    media_bytes: usize,
    log_bytes: usize,
    pages_changed: usize,
    log_appended: usize,
    media_blocks: usize,
    accessed: usize,
}

pub(super) const FULL: Plan = Plan {
    name: "full",
    image_bytes: 1946 << 20,
    upgraded: &[
        "openjdk-17-jre-headless",
        "libwebkit2gtk-4.1-0",
        "libjavascriptcoregtk-4.1-0",
        "libpython3.11-stdlib",
        "libpython3.11-minimal",
        "python3.11-minimal",
        "libpython3.11",
        "samba-libs",
        "python3-samba",
        "libssl3",
        "openssl",
        "openssh-client",
        "openssh-server",
        "libc6",
        "libc-bin",
    ],
    kept: &[
        "libllvm14",
        "gcc-12",
        "cpp-12",
        "g++-12",
        "libgcc-12-dev",
        "libstdc++-12-dev",
        "libreoffice-core",
        "libreoffice-common",
        "fonts-noto-cjk",
        "emacs-common",
        "vim-runtime",
        "postgresql-15",
        "python3-numpy",
        "python3-scipy",
        "libicu72",
        "cmake",
        "python3-sympy",
        "libruby3.1",
    ],
    purged: &["vim-runtime", "python3-sympy"],
    copied: &["libreoffice-core", "cpp-12", "g++-12"],
    copied_later: &["libssl3", "openssl", "openssh-server"],
    table_bytes: 112 << 20,
    media_bytes: 96 << 20,
    log_bytes: 48 << 20,
    pages_changed: 8140,
    log_appended: 32_000_000,
    media_blocks: 9277,
    accessed: 400,
};

pub(super) const SMALL: Plan = Plan {
    name: "small",
    image_bytes: 256 << 20,
    upgraded: &["libpython3.11-stdlib", "libssl3", "openssl", "libc6"],
    kept: &["cpp-12", "vim-runtime", "python3-sympy"],
    purged: &["vim-runtime"],
    copied: &["cpp-12"],
    copied_later: &["openssl"],
    table_bytes: 11 << 20,
    media_bytes: 10 << 20,
    log_bytes: 5 << 20,
    pages_changed: 814,
    log_appended: 3_200_000,
    media_blocks: 928,
    accessed: 40,
};

const TABLE: &str = "/var/lib/database/base/16384/16401";
const MEDIA: &str = "/srv/vault/container.img";

/// The images, generated or found.
pub(super) struct Images {
    folder: PathBuf,
    /// How they came to be, for the report.
    pub(super) about: Value,
}

impl Images {
    /// The image of a generation.
    pub(super) fn path(&self, generation: usize) -> PathBuf {
        self.folder.join(format!("g{generation}.raw"))
    }

    /// What generation `generation` changes.
    pub(super) fn delta(&self, generation: usize) -> anyhow::Result<Delta> {
        Delta::between(&self.path(generation - 1), &self.path(generation))
    }

    /// Takes the images that are in `work`, or makes them.
    pub(super) fn get(plan: &Plan, seed: u64, work: &Path, packages: &Path) -> anyhow::Result<Images> {
        let folder = work.join(format!("{}-{seed}", plan.name));
        let note = folder.join("images.json");
        if let Ok(text) = fs::read_to_string(&note) {
            eprintln!("images: those in {}", folder.display());
            return Ok(Images { folder, about: serde_json::from_str(&text)? });
        }
        fs::create_dir_all(&folder)?;
        let scratch = tempfile::Builder::new().prefix("scratch-").tempdir_in(&folder)?;
        let names: Vec<&str> = plan.upgraded.iter().chain(plan.kept).copied().collect();
        let packages = Packages::get(&names, packages, &scratch.path().join("unpacked"))?;
        let mut images = Images { folder, about: Value::Null };
        let mut maker = Maker {
            plan,
            disk: Disk::format(&scratch.path().join("disk.raw"), plan.image_bytes)?,
            packages,
            author: Author::new(seed),
            scratch: scratch.path().to_owned(),
            segments: 0,
        };
        let mut hashes = Vec::new();
        for (generation, name) in GENERATIONS.iter().enumerate() {
            eprintln!("images: g{generation} {name}");
            maker.make(generation).with_context(|| format!("making g{generation}"))?;
            let image = images.path(generation);
            let mut copy = Command::new("cp");
            run(copy.args(["--sparse=always", "--reflink=auto"]).arg(maker.disk.image()).arg(&image))?;
            hashes.push(hash(&image)?);
        }
        images.about = json!({
            "seed": seed, "scale": plan.name, "blake3": hashes, "packages": maker.packages.versions(),
        });
        fs::write(note, images.about.to_string())?;
        Ok(images)
    }
}

fn hash(file: &Path) -> anyhow::Result<String> {
    let mut hasher = blake3::Hasher::new();
    std::io::copy(&mut fs::File::open(file)?, &mut hasher)?;
    Ok(hasher.finalize().to_hex().to_string())
}

struct Maker<'a> {
    plan: &'a Plan,
    disk: Disk,
    packages: Packages,
    author: Author,
    scratch: PathBuf,
    /// Segments of the log so far.
    segments: usize,
}

impl Maker<'_> {
    fn make(&mut self, generation: usize) -> anyhow::Result<()> {
        if generation > 0 {
            self.disk.next_day()?;
        }
        let plan = self.plan;
        match generation {
            0 => self.fill()?,
            1 => {
                for name in plan.upgraded {
                    let (older, newer) = (self.packages.older(name)?, self.packages.newer(name)?);
                    self.disk.upgrade(&older, &newer)?;
                    // The next package finds what this one has freed.
                    self.disk.carry_out()?;
                }
            }
            2 => self.change_pages(plan.pages_changed)?,
            3 => self.append_log(plan.log_appended)?,
            4 => self.overwrite_media(plan.media_blocks)?,
            5 => {
                let mut paths = Vec::new();
                for name in plan.purged {
                    paths.extend(self.packages.newer(name)?.into_keys());
                }
                self.disk.remove_and_trim(&paths)?;
            }
            6 => self.copy(plan.copied, "/srv/backup")?,
            7 => {
                self.change_pages(plan.pages_changed / 16)?;
                self.append_log(plan.log_appended / 8)?;
                self.overwrite_media(plan.media_blocks / 32)?;
                self.copy(plan.copied_later, "/srv/backup/later")?;
            }
            _ => {
                self.change_pages(8)?;
                self.append_log(30_000)?;
                let files: Vec<String> = self.disk.files().cloned().collect();
                for place in self.author.choose(plan.accessed / 3, files.len() as u64) {
                    self.disk.access(&files[place as usize]);
                }
            }
        }
        self.disk.carry_out()
    }

    fn fill(&mut self) -> anyhow::Result<()> {
        let plan = self.plan;
        for name in plan.upgraded {
            self.disk.add(&self.packages.older(name)?)?;
        }
        for name in plan.kept {
            self.disk.add(&self.packages.newer(name)?)?;
        }
        let table = self.author.pages(plan.table_bytes / PAGE_BYTES);
        self.add_file(TABLE, &table)?;
        let media = self.author.noise(plan.media_bytes);
        self.add_file(MEDIA, &media)?;
        self.append_log(plan.log_bytes)
    }

    fn add_file(&mut self, path: &str, data: &[u8]) -> anyhow::Result<()> {
        let source = self.scratch.join(path.trim_start_matches('/').replace('/', "-"));
        fs::write(&source, data)?;
        self.disk.add(&Tree::from([(path.to_owned(), source)]))
    }

    /// A log grows by segments of 8 MB, as a journal does.
    fn append_log(&mut self, bytes: usize) -> anyhow::Result<()> {
        let text = self.author.log(bytes);
        for segment in text.chunks(8_000_000) {
            let path = format!("/var/log/journal/app/system@{:08}.log", self.segments);
            self.segments += 1;
            self.add_file(&path, segment)?;
        }
        Ok(())
    }

    fn change_pages(&mut self, count: usize) -> anyhow::Result<()> {
        let table = self.disk.open(TABLE)?;
        let blocks = PAGE_BYTES as u64 / BLOCK_BYTES;
        for page in self.author.choose(count, table.blocks() / blocks) {
            let first = page * blocks;
            let mut data = [table.read(first)?, table.read(first + 1)?].concat();
            self.author.touch(&mut data);
            let (one, other) = data.split_at(BLOCK_BYTES as usize);
            table.write(first, one)?;
            table.write(first + 1, other)?;
        }
        Ok(())
    }

    fn overwrite_media(&mut self, count: usize) -> anyhow::Result<()> {
        let media = self.disk.open(MEDIA)?;
        for block in self.author.choose(count, media.blocks()) {
            media.write(block, &self.author.noise(BLOCK_BYTES as usize))?;
        }
        Ok(())
    }

    fn copy(&mut self, names: &[&str], folder: &str) -> anyhow::Result<()> {
        for name in names {
            let tree = self.packages.newer(name)?;
            ensure!(!tree.is_empty(), "package {name} is empty");
            let moved = tree.into_iter().map(|(path, source)| (format!("{folder}{path}"), source));
            self.disk.add(&moved.collect())?;
        }
        Ok(())
    }
}
