//! The taps' listening sockets: handed over by socket activation, or made here.

use anyhow::{Context, ensure};
use journal_nbd::Listener;
use listenfd::ListenFd;

use crate::failure::Failure;
use crate::settings::Listen;

/// Sockets for `places`. If the process was started with sockets (systemd, or `source supervise`), these are taken in the order
/// of the settings; their connections outlive this process.
pub(super) fn listeners(places: &[Listen]) -> anyhow::Result<Vec<Listener>> {
    let mut handed = ListenFd::from_env();
    if handed.len() == 0 {
        return places.iter().map(bind).collect();
    }
    ensure!(
        handed.len() == places.len(),
        "{} sockets were handed over, but [tap] listen names {}",
        handed.len(),
        places.len()
    );
    places.iter().enumerate().map(|(number, place)| take(&mut handed, number, place)).collect()
}

fn take(handed: &mut ListenFd, number: usize, place: &Listen) -> anyhow::Result<Listener> {
    let wrong = || format!("socket {number} that was handed over is not the '{place}' of the settings");
    let listener = match place {
        Listen::Unix(_) => handed.take_unix_listener(number).with_context(wrong)?.map(Listener::from_unix),
        Listen::Tcp(_) => handed.take_tcp_listener(number).with_context(wrong)?.map(Listener::from_tcp),
    };
    Ok(listener.with_context(wrong)??)
}

/// Makes a listening socket.
pub(crate) fn bind(place: &Listen) -> anyhow::Result<Listener> {
    let listener = match place {
        Listen::Unix(path) => Listener::unix(path),
        Listen::Tcp(address) => Listener::tcp(*address),
    };
    listener.map_err(|error| {
        let hint = "stop what serves there, or choose another address";
        Failure::invalid(crate::failure::with_causes(&error), hint).into()
    })
}
