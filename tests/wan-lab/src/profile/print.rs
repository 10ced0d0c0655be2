//! A profile as TOML.

use std::fmt::Write;
use std::time::Duration;

use super::{
    Change, DirectionSettings, Directions, JitterShape, LinkProfile, LinkState, PROFILE_VERSION, Queue, Rate,
};

pub(super) fn toml(profile: &LinkProfile) -> String {
    let mut text = format!("version = {PROFILE_VERSION}\nname = {}\n", quoted(&profile.name));
    if !profile.description.is_empty() {
        let _ = writeln!(text, "description = {}", quoted(&profile.description));
    }
    if profile.up == profile.down {
        let _ = write!(text, "\n[both]\n{}", direction(&profile.up));
    } else {
        let _ = write!(text, "\n[up]\n{}\n[down]\n{}", direction(&profile.up), direction(&profile.down));
    }
    for entry in &profile.script {
        let _ = write!(text, "\n[[at]]\n{}", change(entry));
    }
    text
}

fn direction(settings: &DirectionSettings) -> String {
    let mut lines =
        vec![format!("rate = {}", rate(settings.rate)), format!("delay = {}", time(settings.delay))];
    if let Some(jitter) = &settings.jitter {
        let shape = match jitter.shape {
            JitterShape::Uniform => "uniform",
            JitterShape::Normal => "normal",
        };
        let amount = time(jitter.amount);
        let keeps_order = jitter.keeps_order;
        lines.push(format!(
            "jitter = {{ amount = {amount}, shape = \"{shape}\", keeps_order = {keeps_order} }}"
        ));
    }
    if settings.loss.get() > 0.0 {
        lines.push(format!("loss = \"{}\"", settings.loss));
    }
    if let Some(burst) = &settings.burst_loss {
        let mean = burst.mean_packets;
        lines.push(format!("burst_loss = {{ share = \"{}\", mean_packets = {mean:?} }}", burst.share));
    }
    if let Some(reorder) = &settings.reorder {
        let extra = time(reorder.extra);
        lines.push(format!("reorder = {{ share = \"{}\", extra = {extra} }}", reorder.share));
    }
    if settings.duplicate.get() > 0.0 {
        lines.push(format!("duplicate = \"{}\"", settings.duplicate));
    }
    match settings.queue {
        Queue::BandwidthDelay => {}
        Queue::Time(length) => lines.push(format!("queue = {}", time(length))),
        Queue::Bytes(bytes) => lines.push(format!("queue = \"{bytes}B\"")),
    }
    lines.push(format!("mtu = {}", settings.mtu));
    lines.join("\n") + "\n"
}

fn change(change: &Change) -> String {
    let mut lines = vec![format!("time = {}", time(change.time))];
    match change.direction {
        Directions::Both => {}
        Directions::Up => lines.push("direction = \"up\"".to_owned()),
        Directions::Down => lines.push("direction = \"down\"".to_owned()),
    }
    if let Some(link) = change.link {
        let link = match link {
            LinkState::Up => "up",
            LinkState::Down => "down",
            LinkState::Hold => "hold",
        };
        lines.push(format!("link = \"{link}\""));
    }
    if let Some(changed) = change.rate {
        lines.push(format!("rate = {}", rate(changed)));
    }
    if let Some(delay) = change.delay {
        lines.push(format!("delay = {}", time(delay)));
    }
    if let Some(loss) = change.loss {
        lines.push(format!("loss = \"{loss}\""));
    }
    lines.join("\n") + "\n"
}

fn rate(rate: Option<Rate>) -> String {
    rate.map_or_else(|| "\"unlimited\"".to_owned(), |rate| format!("\"{rate}\""))
}

fn time(time: Duration) -> String {
    format!("\"{}\"", humantime::format_duration(time))
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}
