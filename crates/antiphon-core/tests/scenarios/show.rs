//! How a decision reads in a transcript: what the member is, why, and in brackets what it does.

use antiphon_core::ha::cluster::{Cause, Cluster, Method, Phase, Promise, SyncSet};
use antiphon_core::ha::decide::Decision;
use antiphon_core::ha::role::Role;
use antiphon_core::ha::step::{NewLogicalSlot, Step};
use antiphon_core::ha::world::SyncNames;

/// One line. The renewal of the lease is left out: it is due all the time.
pub fn decision(decision: &Decision) -> String {
    let steps: Vec<String> = decision.steps.iter().filter(|step| !is_routine(step)).map(step).collect();
    let steps = if steps.is_empty() { String::new() } else { format!("  [{}]", steps.join("; ")) };
    let suspects = decision.suspects.map_or(String::new(), |epoch| format!(" suspects {epoch}"));
    format!("{:<14} {}{suspects}{steps}", role(&decision.role), decision.why)
}

/// Whether anything but routine is asked for.
pub fn acts(decision: &Decision) -> bool {
    decision.steps.iter().any(|step| !is_routine(step))
}

fn is_routine(step: &Step) -> bool {
    matches!(step, Step::RenewLease { .. })
}

fn role(role: &Role) -> String {
    match role {
        Role::Witness => "witness".to_owned(),
        Role::Waiting => "waiting".to_owned(),
        Role::Bootstrapping => "bootstrapping".to_owned(),
        Role::Leader { epoch } => format!("leader {epoch}"),
        Role::Promoting { epoch } => format!("promoting {epoch}"),
        Role::Follower { upstream } => format!("follower of {upstream}"),
        Role::Fenced { epoch } => format!("fenced {epoch}"),
        Role::Demoting => "demoting".to_owned(),
        Role::Rejoining => "rejoining".to_owned(),
    }
}

fn step(step: &Step) -> String {
    match step {
        Step::ChangeCluster { cluster, take_lease, lease_unchanged, consume_request, .. } => {
            let mut text = record(cluster);
            for (said, word) in [
                (*take_lease, ", take the lease"),
                (lease_unchanged.is_some(), ", if it was not renewed"),
                (consume_request.is_some(), ", request done"),
            ] {
                text += if said { word } else { "" };
            }
            text
        }
        Step::DropRequest { .. } => "drop the request".to_owned(),
        Step::RenewLease { epoch, .. } => format!("renew the lease of {epoch}"),
        Step::Publish { member } => {
            let mut said = Vec::new();
            said.extend(
                member
                    .fence
                    .map(|f| format!("fence {} at {}/{}", f.epoch, f.position.timeline, f.position.lsn)),
            );
            said.extend(member.release.map(|r| match r.end {
                Some(end) => format!("release {} at {}/{}", r.epoch, end.timeline, end.lsn),
                None => format!("release {}", r.epoch),
            }));
            said.extend(
                member.serving.as_ref().map(|s| format!("serving {} on timeline {}", s.epoch, s.timeline)),
            );
            format!("publish {}", if said.is_empty() { "itself".to_owned() } else { said.join(", ") })
        }
        Step::Fence { epoch } => format!("fence for {epoch}"),
        Step::Follow { upstream, .. } => format!("follow {} of {}", upstream.name, upstream.epoch),
        Step::Unfollow => "unfollow".to_owned(),
        Step::Initialise => "initdb".to_owned(),
        Step::Clone { address, keep_old } => {
            format!("clone from {address}{}", if *keep_old { ", keep the old" } else { "" })
        }
        Step::Rewind { address } => format!("rewind to {address}"),
        Step::StartStandby { .. } => "start as standby".to_owned(),
        Step::StartPrimary { epoch, sync } => format!("start as primary of {epoch} with {}", names(sync)),
        Step::Promote { epoch, timeline, sync } => {
            format!("promote for {epoch} to timeline {timeline} with {}", names(sync))
        }
        Step::Stop { mode } => format!("stop {mode:?}").to_lowercase(),
        Step::SetSync { sync, prove } => {
            format!("set names to {}{}", names(sync), if *prove { ", prove" } else { "" })
        }
        Step::Checkpoint => "checkpoint".to_owned(),
        Step::Slots { keep, drop, logical } => slots(keep.iter().map(|(name, _)| name), drop, logical),
    }
}

fn slots<'a>(keep: impl Iterator<Item = &'a String>, drop: &[String], logical: &[NewLogicalSlot]) -> String {
    let keep: Vec<&str> = keep.map(String::as_str).collect();
    let mut text = format!("slots {}", keep.join(" "));
    if !drop.is_empty() {
        text += &format!(" without {}", drop.join(" "));
    }
    for new in logical {
        text += &format!(" logical {}{}", new.name, if new.lost { " anew" } else { "" });
    }
    text
}

/// The record of leadership, in short.
pub fn record(cluster: &Cluster) -> String {
    let phase = match &cluster.phase {
        Phase::Bootstrapping { by } => format!("{by} creates the cluster"),
        Phase::Led { leader } => format!("{} leads {}", leader.name, leader.epoch),
        Phase::Electing { cause, .. } => format!("election {}: {}", cluster.epoch, cause_word(cause)),
    };
    format!("{phase}, {}", promise(&cluster.sync))
}

fn cause_word(cause: &Cause) -> String {
    match cause {
        Cause::Silent => "silent".to_owned(),
        Cause::ProcessesGone => "processes gone".to_owned(),
        Cause::ServerDied { how } => format!("server died ({how})"),
        Cause::CannotServe { why } => format!("cannot serve ({why})"),
        Cause::Switchover { to } => format!("switchover to {to}"),
        Cause::Failover { to, accept_loss } => {
            format!("failover to {to}{}", if *accept_loss { " with loss" } else { "" })
        }
    }
}

fn promise(promise: &Promise) -> String {
    match promise {
        Promise::Asynchronous => "asynchronous".to_owned(),
        Promise::Alone => "alone".to_owned(),
        Promise::Quorum(set) => sync_set(set),
    }
}

fn names(names: &SyncNames) -> String {
    match names {
        SyncNames::Nobody => "nobody".to_owned(),
        SyncNames::Set(set) => sync_set(set),
        SyncNames::Foreign(text) => format!("{text:?}"),
    }
}

fn sync_set(set: &SyncSet) -> String {
    let method = match set.method {
        Method::Any => "any",
        Method::First => "first",
    };
    let members: Vec<&str> = set.members.iter().map(antiphon_core::NodeName::as_str).collect();
    format!("{method} {} ({})", set.k, members.join(" "))
}
