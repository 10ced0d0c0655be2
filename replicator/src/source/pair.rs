//! The two hosts of a pair: who is active, and what the hosts tell each other. `PAIR.md` is the definition.

mod message;
pub(super) mod replica;
mod role;
pub(super) mod standby;

pub(super) use self::message::{Begin, PairAnswer, PairMessage, VERSION, settings_hash};
pub(crate) use self::role::Role;
