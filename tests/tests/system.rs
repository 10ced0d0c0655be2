//! Tests of the whole: real daemons, real sockets, real crashes.

#[path = "system/bad_input.rs"]
mod bad_input;
#[path = "system/bucket.rs"]
mod bucket;
#[path = "system/crash.rs"]
mod crash;
#[path = "system/dedup.rs"]
mod dedup;
#[path = "system/guest.rs"]
mod guest;
#[path = "system/kills.rs"]
mod kills;
#[path = "system/link_test.rs"]
mod link_test;
#[path = "system/object_store.rs"]
mod object_store;
#[path = "system/order.rs"]
mod order;
#[path = "system/overflow.rs"]
mod overflow;
#[path = "system/pair.rs"]
mod pair;
#[path = "system/restart.rs"]
mod restart;
#[path = "system/seed.rs"]
mod seed;
#[path = "system/tap.rs"]
mod tap;
#[path = "system/targets.rs"]
mod targets;
#[path = "system/tools.rs"]
mod tools;
#[path = "system/vm.rs"]
mod vm;
#[path = "system/volumes.rs"]
mod volumes;
#[path = "system/wan_lab.rs"]
mod wan_lab;
