//! The commands of the operator, other than the daemons.

mod boot;
mod check;
mod copy;
mod daemon;
mod link_test;
mod pair;
mod place;
mod point;
mod recover;
mod reload;
mod resync;
mod seed;
mod store_status;
mod tap;
mod verify;
mod wan_lab;

pub(crate) use self::boot::boot;
pub(crate) use self::check::check;
pub(crate) use self::copy::copy;
pub(crate) use self::daemon::{cut, status};
pub(crate) use self::link_test::link_test;
pub(crate) use self::pair::takeover;
pub(crate) use self::point::list_points;
pub(crate) use self::recover::{export, restore};
pub(crate) use self::reload::{limit, reload};
pub(crate) use self::resync::resync;
pub(crate) use self::seed::{export_seed, import_seed};
pub(crate) use self::tap::{insert, remove};
pub(crate) use self::verify::verify;
pub(crate) use self::wan_lab::{list_profiles, run_wan_lab};
