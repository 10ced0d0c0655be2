//! Workspace member.
