mod daemon;
mod point;
pub(crate) use self::daemon::{cut, status};
pub(crate) use self::point::list_points;
