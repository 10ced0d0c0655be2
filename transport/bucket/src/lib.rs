//! Keeps groups in object storage: the road to a recovery site that has no server of ours.
//!
//! `BUCKET.md` is the definition; begin there.
