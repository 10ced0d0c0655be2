//! Which frames are *sound*: their stored bytes were read and had their hash, when they arrived or when something referred to them, and not long ago.
//! `STORE.md` says what that is good for.

use std::time::{Duration, Instant};

use journal_format::Hash;

use crate::cache::Cache;

/// How long a frame counts as sound: about as long as the system may have it in memory, from where reading it again says nothing about the disk.
const SOUND_FOR: Duration = Duration::from_secs(3600);
/// Frames that are known to be sound; about 10 MiB.
const FRAMES_MAX: u64 = 1 << 16;

/// Frames that are sound, by their segment and number.
pub(crate) struct SoundFrames {
    checked: Cache<(Hash, u32), Instant>,
}

impl SoundFrames {
    pub(crate) fn new() -> Self {
        SoundFrames { checked: Cache::new(FRAMES_MAX) }
    }

    /// Takes in that a frame's stored bytes had their hash just now.
    pub(crate) fn note(&self, segment: Hash, frame: u32) {
        self.note_at(segment, frame, Instant::now());
    }

    fn note_at(&self, segment: Hash, frame: u32, now: Instant) {
        self.checked.put((segment, frame), &std::sync::Arc::new(now), 1);
    }

    /// Whether a frame need not be read again before something refers to it.
    pub(crate) fn holds(&self, segment: Hash, frame: u32) -> bool {
        self.holds_at(segment, frame, Instant::now())
    }

    fn holds_at(&self, segment: Hash, frame: u32, now: Instant) -> bool {
        self.checked.get(&(segment, frame)).is_some_and(|checked| now.duration_since(*checked) < SOUND_FOR)
    }
}

#[cfg(test)]
mod tests {
    use super::{Hash, Instant, SOUND_FOR, SoundFrames};

    #[test]
    fn a_frame_is_sound_for_an_hour() {
        let (frames, now) = (SoundFrames::new(), Instant::now());
        frames.note_at(Hash([1; 32]), 3, now);
        assert!(frames.holds_at(Hash([1; 32]), 3, now + SOUND_FOR / 2));
        assert!(!frames.holds_at(Hash([1; 32]), 3, now + SOUND_FOR));
        assert!(!frames.holds_at(Hash([1; 32]), 4, now) && !frames.holds_at(Hash([2; 32]), 3, now));
    }
}
