//! The links to the targets, one for each, over which all groups are shipped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use journal::{Comparer, KnownBlocks};
use journal_format::GroupName;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use transport::{Identity, LinkHandle, LinkLimits, LinkOptions, Outbox, SourceLink};
use transport_bucket::documents::ClaimSource;
use transport_bucket::keys::BucketKeys;
use transport_bucket::{
    BucketLink, BucketLinkHandle, BucketLinkOptions, BucketSettings, Meter, MonthlyCost, Prices, ReceiptRule,
    Receipts,
};

use super::compare::{Asked, TargetsComparer};
use super::learn::Learner;
use super::member::Member;
use super::outbox::Shipping;
use crate::failure::{Failure, with_causes};
use crate::identity::parse_fingerprint;
use crate::settings::{Place, SiteTable, SourceSettings, TargetName};

/// A running link.
enum Link {
    Site(SourceLink),
    Bucket(BucketLink),
}

/// Looks at a link.
#[derive(Clone)]
enum View {
    Site { link: LinkHandle, limits: Arc<Mutex<LinkLimits>> },
    Bucket { link: BucketLinkHandle, meter: Meter, prices: Option<Prices> },
}

/// Looks at all links, for `status`.
#[derive(Clone)]
pub(super) struct LinkViews(Vec<(TargetName, View)>);

/// All links, in the order of the settings.
pub(super) struct Links {
    links: Vec<Link>,
    views: LinkViews,
}

/// What starting a link needs.
struct Start<'a> {
    settings: &'a SourceSettings,
    identity: &'a Arc<Identity>,
    outboxes: Vec<Arc<dyn Outbox>>,
    seed: u64,
}

impl Links {
    /// Starts to ship every group to every target.
    pub(super) fn start(
        settings: &SourceSettings,
        identity: &Arc<Identity>,
        members: &[Arc<Member>],
        seed: u64,
    ) -> Result<Links, Failure> {
        let (mut links, mut views) = (Vec::new(), Vec::new());
        for (number, target) in settings.targets.iter().enumerate() {
            let outbox = |member: &Arc<Member>| {
                Arc::new(Shipping { member: member.clone(), number }) as Arc<dyn Outbox>
            };
            let outboxes = members.iter().map(outbox).collect();
            let start = Start { settings, identity, outboxes, seed: seed.wrapping_add(number as u64) };
            let (link, view) = match target.place() {
                Place::Site(site) => start.site(site, target.rate_max),
                Place::Bucket(bucket, checked_by) => start.bucket(bucket, checked_by),
            }
            .map_err(|failure| Failure {
                message: format!("target '{}': {}", target.name, failure.message),
                ..failure
            })?;
            links.push(link);
            views.push((target.name.clone(), view));
        }
        Ok(Links { links, views: LinkViews(views) })
    }

    /// What looks at them.
    pub(super) fn views(&self) -> LinkViews {
        self.views.clone()
    }

    /// Lets every group compare with what its targets have: at once, or, where what the sites have is to be known, when their seeds are.
    pub(super) fn start_comparing(
        &self,
        members: &[Arc<Member>],
        known: Option<&Arc<KnownBlocks>>,
    ) -> std::io::Result<Vec<Learner>> {
        let mut learners = Vec::new();
        for member in members {
            // Sites first: they can say what they have.
            let sites = self.links.iter().filter_map(|link| match link {
                Link::Site(link) => link.caller(member.name()).map(Asked::Site),
                Link::Bucket(_) => None,
            });
            let buckets = self.links.iter().enumerate().filter_map(|(number, link)| {
                matches!(link, Link::Bucket(_)).then_some(Asked::Bucket(number))
            });
            let asked: Vec<Asked> = sites.chain(buckets).collect();
            let only_site = match &asked[..] {
                [Asked::Site(caller)] => Some(caller.clone()),
                _ => None,
            };
            let comparer: Arc<dyn Comparer> =
                Arc::new(TargetsComparer { asked, targets: member.targets.clone() });
            let group = member.group.clone();
            let begin = move || group.set_comparer(Some(comparer));
            // What one of several targets has beside the chain, a seed, the others lack: nothing may refer to it.
            match known.zip(only_site) {
                Some((known, caller)) => {
                    let (name, bell) = (member.name().clone(), member.targets.get(0).bell.clone());
                    learners.push(Learner::start(name, caller, known.clone(), bell, begin)?);
                }
                None => begin(),
            }
        }
        Ok(learners)
    }

    /// Says goodbye everywhere, at once, and stops.
    pub(super) async fn shutdown(self) {
        let mut ending = tokio::task::JoinSet::new();
        for link in self.links {
            match link {
                Link::Site(link) => ending.spawn(link.shutdown()),
                Link::Bucket(link) => ending.spawn(link.shutdown()),
            };
        }
        ending.join_all().await;
    }
}

impl Start<'_> {
    fn site(self, site: &SiteTable, rate_max: Option<u64>) -> Result<(Link, View), Failure> {
        let pinned = [Some(&site.fingerprint), site.next_fingerprint.as_ref()];
        let pinned = pinned.into_iter().flatten().map(|text| parse_fingerprint(text));
        let pinned = pinned.collect::<Result<_, _>>()?;
        let mut options = LinkOptions::new(&site.address, self.seed);
        let groups =
            self.settings.groups.iter().filter_map(|group| Some((group.name.clone(), group.rate_max?)));
        let limits = LinkLimits { link: rate_max, groups: groups.collect::<HashMap<_, _>>() };
        options.limits = limits.clone();
        let link =
            SourceLink::start(options, self.identity.clone(), pinned, self.outboxes, &Handle::current());
        let link = link
            .map_err(|error| Failure::invalid(with_causes(&error), "check [target.site] in the settings"))?;
        let view = View::Site { link: link.handle(), limits: Arc::new(Mutex::new(limits)) };
        Ok((Link::Site(link), view))
    }

    fn bucket(self, settings: &BucketSettings, checked_by: Option<&String>) -> Result<(Link, View), Failure> {
        let opened = settings.open().map_err(|error| {
            Failure::of(&error, error.kind(), error.hint().as_deref().unwrap_or_default())
        })?;
        let keys = BucketKeys::new("").map_err(|error| Failure::of(&error, error.kind(), &error.hint()))?;
        let receipts = match (settings.receipts, checked_by) {
            (Receipts::Checked, Some(site)) => ReceiptRule::Checked { site: parse_fingerprint(site)? },
            _ => ReceiptRule::Stored,
        };
        let options = BucketLinkOptions {
            probe_for: Some(settings.fencing),
            receipts,
            heartbeat_interval: settings.heartbeat_interval,
            validate_interval: settings.validate_interval,
            uploads_max: settings.uploads_max,
            ..BucketLinkOptions::new(opened.store, keys, opened.place, self.seed)
        };
        let source =
            ClaimSource { name: self.identity.name().clone(), fingerprint: self.identity.fingerprint() };
        let link = BucketLink::start(options, source, self.outboxes, &Handle::current());
        let link = link.map_err(|error| Failure::of(&error, error.kind(), &error.hint()))?;
        let view = View::Bucket { link: link.handle(), meter: opened.meter, prices: settings.prices };
        Ok((Link::Bucket(link), view))
    }
}

impl LinkViews {
    /// Limits what a site is sent, or what it is sent of a group, from now on.
    pub(super) fn limit(
        &self,
        target: &str,
        group: Option<GroupName>,
        rate_max: Option<u64>,
    ) -> Result<Value, Failure> {
        let found = self.0.iter().find(|(name, _)| name.as_str() == target);
        let Some((name, view)) = found else {
            let names: Vec<&str> = self.0.iter().map(|(name, _)| name.as_str()).collect();
            let hint = format!("this agent's targets are: {}", names.join(", "));
            return Err(Failure::invalid(format!("there is no target '{target}'"), &hint));
        };
        let View::Site { link, limits } = view else {
            let hint = "limit the bucket's traffic with the host's traffic control";
            return Err(Failure::invalid(
                format!("target '{name}' is a bucket, which has no limit here"),
                hint,
            ));
        };
        let mut limits = limits.lock().unwrap_or_else(PoisonError::into_inner);
        match (&group, rate_max) {
            (None, rate_max) => limits.link = rate_max,
            (Some(group), Some(rate)) => drop(limits.groups.insert(group.clone(), rate)),
            (Some(group), None) => drop(limits.groups.remove(group)),
        }
        link.set_limits(&limits);
        Ok(json!({"target": name, "group": group, "rate_max_bytes": rate_max}))
    }

    /// For `status`: an object for each target.
    pub(super) fn report(&self) -> Vec<Value> {
        let report = |(name, view): &(TargetName, View)| match view {
            View::Site { link, limits } => {
                let stats = link.stats();
                let limits = limits.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let groups = limits.groups.iter().map(|(group, rate)| (group.to_string(), json!(rate)));
                json!({
                    "name": name,
                    "kind": "site",
                    "rate_max_bytes": limits.link,
                    "group_rate_max_bytes": groups.collect::<serde_json::Map<_, _>>(),
                    "rate_bytes": stats.rate,
                    "rtt_seconds": stats.rtt.map(|rtt| rtt.as_secs_f64()),
                    "path_loss": stats.path_loss,
                    "sent_bytes": stats.sent_bytes,
                    "sent_packets": stats.sent_packets,
                    "lost_packets": stats.lost_packets,
                    "retransmitted_share": stats.retransmitted_share,
                })
            }
            View::Bucket { link, meter, prices } => {
                let traffic = meter.traffic();
                let cost = prices.as_ref().map(|prices| MonthlyCost::estimate(prices, &traffic, None));
                let groups = link.status();
                json!({
                    "name": name,
                    "kind": "bucket",
                    "requests": traffic,
                    "monthly_cost": cost,
                    "puts_under_way": groups.iter().map(|group| group.puts_under_way).sum::<usize>(),
                    "claims": groups.iter().map(|group| (group.group.to_string(), json!(group.claim.map(|claim| claim.to_string())))).collect::<serde_json::Map<_, _>>(),
                })
            }
        };
        self.0.iter().map(report).collect()
    }
}
