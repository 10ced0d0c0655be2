//! Bringing the catalog up to date: what the chain of each group is, by the files that are there.

use std::collections::HashMap;

use journal_format::segment::SegmentIndex;
use journal_format::{ErrorKind, GroupName, Hash, Position, Sequence, with_causes};
use rusqlite::{OptionalExtension, params};

use super::Catalog;
use super::rows::{SEGMENT_COLUMNS, SegmentRow, drop_behind, insert, segment_from};
use crate::error::StoreError;
use crate::segments::{KnownChain, ListedSegment, Segments};

/// Segments that are indexed in one transaction.
const BATCH_SEGMENTS: usize = 512;

/// What a group's folder holds.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    /// The last segment of the chain.
    pub(crate) head: Option<Position>,
    /// Files that the chain does not reach.
    pub(crate) unattached: Vec<Unattached>,
    /// Rows that were added.
    pub(crate) added: u64,
    /// Rows that were dropped.
    pub(crate) dropped: u64,
}

/// A file that the chain does not reach.
#[derive(Debug)]
pub(crate) struct Unattached {
    pub(crate) file: ListedSegment,
    pub(crate) why: String,
}

enum Link {
    /// The catalog knows this file.
    Known(SegmentRow),
    /// It continues the chain and is new.
    New(Box<SegmentIndex>),
    /// It does not continue the chain.
    Broken(String),
}

/// Reads listed segments, some ahead where that pays.
struct Reading<'a> {
    segments: &'a dyn Segments,
    group: &'a GroupName,
    listed: &'a [ListedSegment],
    /// Hears how many of the listed ones were read, and how many there are.
    progress: &'a dyn Fn(u64, u64),
    read: HashMap<ListedSegment, Result<SegmentIndex, StoreError>>,
}

impl<'a> Reading<'a> {
    fn new(
        segments: &'a dyn Segments,
        group: &'a GroupName,
        listed: &'a [ListedSegment],
        progress: &'a dyn Fn(u64, u64),
    ) -> Self {
        Reading { segments, group, listed, progress, read: HashMap::new() }
    }

    fn index(&mut self, wanted: &ListedSegment) -> Result<SegmentIndex, StoreError> {
        if let Some(read) = self.read.remove(wanted) {
            return read;
        }
        let from = self.listed.partition_point(|listed| listed < wanted);
        let batch = &self.listed[from..self.listed.len().min(from + self.segments.at_once())];
        let indexes = self.segments.read_listed(self.group, batch);
        (self.progress)((from + batch.len()) as u64, self.listed.len() as u64);
        self.read = batch.iter().cloned().zip(indexes).collect();
        self.read.remove(wanted).expect("what is wanted was listed")
    }
}

impl Catalog {
    /// Adds segments that have been attached, each with the number of its claim.
    pub(crate) fn attach<'a>(
        &mut self,
        indexes: impl IntoIterator<Item = (&'a SegmentIndex, u64)>,
    ) -> Result<(), StoreError> {
        let path = self.path.clone();
        let run = || {
            let tx = self.connection.transaction()?;
            indexes.into_iter().try_for_each(|(index, claim)| insert(&tx, index, claim))?;
            tx.commit()
        };
        run().map_err(|source| StoreError::Catalog { path, source })
    }

    /// Walks a group's files from sequence 1 on, adds rows that are missing and drops rows whose files are gone or whose
    /// chain is broken. A file whose name and size the catalog knows is not opened.
    pub(crate) fn refresh(
        &mut self,
        segments: &dyn Segments,
        group: &GroupName,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Chain, StoreError> {
        let listing = segments.list(group, self.known_chain(group)?)?;
        let kept = self.segment(group, listing.kept)?.map(|row| row.position);
        self.refresh_from(&mut Reading::new(segments, group, &listing.segments, progress), kept)
    }

    /// What the catalog has of a group's chain.
    fn known_chain(&self, group: &GroupName) -> Result<Option<KnownChain>, StoreError> {
        let sql = "SELECT max(sequence), max(claim) FROM segments WHERE group_name = ?";
        let read =
            |row: &rusqlite::Row<'_>| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?));
        let mut statement = self.connection.prepare_cached(sql).map_err(|source| self.failed(source))?;
        let found =
            statement.query_row(params![group.as_str()], read).map_err(|source| self.failed(source))?;
        Ok(match found {
            (Some(head), Some(claim)) => {
                Some(KnownChain { head: Sequence(head as u64), claim: claim as u64 })
            }
            _ => None,
        })
    }

    fn refresh_from(
        &mut self,
        reading: &mut Reading<'_>,
        kept: Option<Position>,
    ) -> Result<Chain, StoreError> {
        let (group, files) = (reading.group, reading.listed);
        let mut chain = Chain { head: kept, ..Chain::default() };
        let mut batch: Vec<(SegmentIndex, u64)> = Vec::new();
        let mut rest = files;
        loop {
            let sequence = chain.head.map_or(Sequence(1), |head| head.sequence.next());
            let reached = rest.iter().take_while(|file| file.sequence < sequence).count();
            chain.unattached.extend(rest[..reached].iter().map(|file| Unattached {
                file: file.clone(),
                why: "another segment has its place in the chain".to_owned(),
            }));
            rest = &rest[reached..];
            let candidates = rest.iter().take_while(|file| file.sequence == sequence).count();
            let Some(position) = self.next_link(reading, &chain.head, &rest[..candidates], &mut batch)?
            else {
                break;
            };
            let (file, others): (Vec<_>, Vec<_>) = rest[..candidates]
                .iter()
                .partition(|file| file.generation.is_none_or(|generation| generation == position.generation));
            debug_assert!(!file.is_empty());
            chain.unattached.extend(others.into_iter().map(|file| Unattached {
                file: file.clone(),
                why: "another segment has its place in the chain".to_owned(),
            }));
            chain.head = Some(position);
            rest = &rest[candidates..];
            if batch.len() >= BATCH_SEGMENTS {
                chain.added += self.add_batch(&mut batch)?;
            }
        }
        chain.added += self.add_batch(&mut batch)?;
        for file in rest {
            let why = self.why_broken(reading, &chain.head, file)?;
            chain.unattached.push(Unattached { file: file.clone(), why });
        }
        chain.dropped = self.drop_after_head(group, chain.head)?;
        Ok(chain)
    }

    /// Drops groups whose folders are gone.
    pub(crate) fn keep_only(&mut self, groups: &[GroupName]) -> Result<(), StoreError> {
        for known in self.group_names()? {
            if !groups.contains(&known) {
                self.drop_after_head(&known, None)?;
            }
        }
        Ok(())
    }

    fn next_link(
        &mut self,
        reading: &mut Reading<'_>,
        head: &Option<Position>,
        candidates: &[ListedSegment],
        batch: &mut Vec<(SegmentIndex, u64)>,
    ) -> Result<Option<Position>, StoreError> {
        for file in candidates {
            match self.link(reading, head, file)? {
                Link::Known(row) => return Ok(Some(row.position)),
                Link::New(index) => {
                    let position = index.position();
                    batch.push((*index, file.claim));
                    return Ok(Some(position));
                }
                Link::Broken(_) => {}
            }
        }
        Ok(None)
    }

    fn link(
        &self,
        reading: &mut Reading<'_>,
        head: &Option<Position>,
        file: &ListedSegment,
    ) -> Result<Link, StoreError> {
        let group = reading.group;
        let parent = head.map_or(Hash::ZERO, |head| head.hash);
        let row =
            self.segment(group, file.sequence)?.filter(|row| row.is_listed_as(file) && row.parent == parent);
        if let Some(row) = row {
            return Ok(Link::Known(row));
        }
        let index = match reading.index(file) {
            Ok(index) => index,
            // A segment of a later version, or a damaged one: the chain ends before it. A disk that fails is an error.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                return Ok(Link::Broken(with_causes(&error)));
            }
            Err(error) => return Err(error),
        };
        let position = index.position();
        Ok(if index.header.group != *group {
            Link::Broken(format!("it belongs to group '{}'", index.header.group))
        } else if position.sequence != file.sequence
            || file.generation.is_some_and(|generation| generation != position.generation)
        {
            Link::Broken("its name is not that of its position".to_owned())
        } else if index.header.parent != parent
            || head.is_some_and(|head| head.generation > position.generation)
        {
            Link::Broken("it does not continue the segment before it".to_owned())
        } else {
            Link::New(Box::new(index))
        })
    }

    fn why_broken(
        &self,
        reading: &mut Reading<'_>,
        head: &Option<Position>,
        file: &ListedSegment,
    ) -> Result<String, StoreError> {
        let next = head.map_or(Sequence(1), |head| head.sequence.next());
        if file.sequence == next
            && let Link::Broken(why) = self.link(reading, head, file)?
        {
            return Ok(why);
        }
        Ok(format!("segment {next} before it is missing or damaged"))
    }

    fn add_batch(&mut self, batch: &mut Vec<(SegmentIndex, u64)>) -> Result<u64, StoreError> {
        self.attach(batch.iter().map(|(index, claim)| (index, *claim)))?;
        let added = batch.len() as u64;
        batch.clear();
        Ok(added)
    }

    fn drop_after_head(&mut self, group: &GroupName, head: Option<Position>) -> Result<u64, StoreError> {
        let path = self.path.clone();
        let mut run = || {
            let tx = self.connection.transaction()?;
            let dropped = drop_behind(&tx, group, head.map_or(Sequence(0), |head| head.sequence))?;
            tx.commit().map(|()| dropped as u64)
        };
        run().map_err(|source| StoreError::Catalog { path, source })
    }

    /// The segment at a place of a group's chain.
    pub(crate) fn segment(
        &self,
        group: &GroupName,
        sequence: Sequence,
    ) -> Result<Option<SegmentRow>, StoreError> {
        let sql = format!("SELECT {SEGMENT_COLUMNS} FROM segments WHERE group_name = ? AND sequence = ?");
        self.connection
            .prepare_cached(&sql)
            .and_then(|mut statement| {
                statement.query_row(params![group.as_str(), sequence.0 as i64], segment_from).optional()
            })
            .map_err(|source| self.failed(source))
    }
}
