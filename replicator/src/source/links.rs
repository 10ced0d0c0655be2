//! The links to the targets, one for each, over which all groups are shipped.

use std::sync::Arc;

use journal::{Comparer, KnownBlocks};
use tokio::runtime::Handle;
use transport::{Identity, LinkOptions, Outbox, SourceLink};

use super::compare::{Asked, TargetsComparer};
use super::learn::Learner;
use super::member::Member;
use super::outbox::Shipping;
use crate::failure::{Failure, with_causes};
use crate::settings::{Place, SiteTable, SourceSettings};

/// A running link.
enum Link {
    Site(SourceLink),
}

/// All of them, in the order of the settings.
pub(super) struct Links(Vec<Link>);

impl Links {
    /// Starts to ship every group to every target.
    pub(super) fn start(
        settings: &SourceSettings,
        identity: &Arc<Identity>,
        members: &[Arc<Member>],
        seed: u64,
    ) -> anyhow::Result<Links> {
        let mut links = Vec::new();
        for (number, target) in settings.targets.iter().enumerate() {
            let outbox = |member: &Arc<Member>| {
                Arc::new(Shipping { member: member.clone(), number }) as Arc<dyn Outbox>
            };
            let outboxes = members.iter().map(outbox).collect();
            links.push(match target.place() {
                Place::Site(site) => {
                    let hint = format!("check [target.site] of '{}' in the settings", target.name);
                    let link = start_site(site, identity, outboxes, seed.wrapping_add(number as u64));
                    Link::Site(link.map_err(|error| Failure::invalid(with_causes(&*error), &hint))?)
                }
            });
        }
        Ok(Links(links))
    }

    /// Lets every group compare with what its targets have: at once, or, where what the sites have is to be known, when their seeds are.
    pub(super) fn start_comparing(
        &self,
        members: &[Arc<Member>],
        known: Option<&Arc<KnownBlocks>>,
    ) -> std::io::Result<Vec<Learner>> {
        let mut learners = Vec::new();
        for member in members {
            let asked = self.0.iter().map(|link| match link {
                Link::Site(link) => link.caller(member.name()).map(Asked::Site),
            });
            let asked: Vec<Asked> = asked.flatten().collect();
            let only_site = match &asked[..] {
                [Asked::Site(caller)] => Some(caller.clone()),
                _ => None,
            };
            let comparer: Arc<dyn Comparer> = Arc::new(TargetsComparer { asked });
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
        for link in self.0 {
            match link {
                Link::Site(link) => ending.spawn(link.shutdown()),
            };
        }
        ending.join_all().await;
    }
}

fn start_site(
    site: &SiteTable,
    identity: &Arc<Identity>,
    outboxes: Vec<Arc<dyn Outbox>>,
    seed: u64,
) -> anyhow::Result<SourceLink> {
    let fingerprint = crate::identity::parse_fingerprint(&site.fingerprint)?;
    let options = LinkOptions::new(&site.address, seed);
    Ok(SourceLink::start(options, identity.clone(), vec![fingerprint], outboxes, &Handle::current())?)
}
