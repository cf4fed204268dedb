//! Liveness: once all is healed, a cluster is whole again within a stated time, or says what a human must do.

use antiphon_core::ha::cluster::Promise;
use antiphon_core::ha::why::Why;
use antiphon_core::settings::SyncMode;

use crate::clock::{MS, SEC, Time};
use crate::net::NodeId;
use crate::server::Run;
use crate::{Event, Sim};

impl Sim {
    /// Ends the run if the cluster is whole; breaks it if that takes too long.
    pub(crate) fn check_health(&mut self, within: Time) {
        let Some(what) = self.ails() else {
            self.done = true;
            return;
        };
        let healed_at = self.shape.heal_at;
        if self.now < healed_at + within {
            self.schedule(self.now + 500 * MS, Event::Check);
            return;
        }
        if self.waits_for_human() {
            self.needs_human = true;
            self.done = true;
            return;
        }
        let whys: Vec<String> = self
            .nodes
            .iter()
            .map(|node| {
                let why = node.agent.as_ref().and_then(|agent| agent.why.as_ref());
                format!("{}: {}", node.name, why.map_or_else(|| "-".to_owned(), ToString::to_string))
            })
            .collect();
        self.violation(format!("L: {what}, {} s after all was healed ({})", within / SEC, whys.join("; ")));
    }

    /// What is not as it should be.
    fn ails(&self) -> Option<String> {
        let Some(leader) = self.leading() else { return Some("nobody leads".to_owned()) };
        if self.now - self.judge.last_acknowledged > 3 * SEC && !self.waits_strictly(leader) {
            return Some(format!("{} acknowledges nothing", self.name(leader)));
        }
        for (node, here) in self.nodes.iter().enumerate() {
            if node == leader || here.witness || here.removed || here.waits {
                continue;
            }
            if !self.streams_from(node, leader) {
                return Some(format!("{} does not stream", here.name));
            }
        }
        self.promise_is_kept(leader)
    }

    /// Strict mode: there are fewer members that may acknowledge than commits have to wait for.
    fn waits_strictly(&self, leader: NodeId) -> bool {
        let settings = &self.store.current.settings;
        settings.synchronous_mode_strict
            && self.acknowledgers(leader) < settings.synchronous_node_count as usize
    }

    fn acknowledgers(&self, leader: NodeId) -> usize {
        let others = self.nodes.iter().enumerate().filter(|(node, here)| {
            *node != leader && !here.witness && !here.removed && !here.waits && here.tags.may_acknowledge()
        });
        others.count()
    }

    fn streams_from(&self, node: NodeId, leader: NodeId) -> bool {
        let mut at = node;
        for _ in 0..self.nodes.len() {
            if self.nodes[at].server.run != Run::Standby {
                return false;
            }
            match self.nodes[at].server.receiver.as_ref().filter(|receiver| receiver.streaming) {
                Some(receiver) if receiver.from == leader => return true,
                Some(receiver) => at = receiver.from,
                None => return false,
            }
        }
        false
    }

    /// The store promises what the settings ask for, as far as there are members for it.
    fn promise_is_kept(&self, leader: NodeId) -> Option<String> {
        let cluster = &self.store.current.cluster.as_ref()?.value;
        let can = self.acknowledgers(leader);
        let settings = &self.store.current.settings;
        let wanted = (settings.synchronous_node_count as usize).min(can.max(1));
        let kept = match (&cluster.sync, settings.synchronous_mode) {
            (Promise::Asynchronous, SyncMode::Off) => true,
            (Promise::Quorum(set), SyncMode::On | SyncMode::Quorum) => set.k >= wanted,
            (Promise::Alone, SyncMode::On | SyncMode::Quorum) => can == 0,
            (Promise::Quorum(_) | Promise::Alone, SyncMode::Off)
            | (Promise::Asynchronous, SyncMode::On | SyncMode::Quorum) => false,
        };
        (!kept).then(|| format!("the store promises {:?}", cluster.sync))
    }

    /// Data were destroyed, and a member says that an operator has to decide.
    fn waits_for_human(&self) -> bool {
        let asks = |why: &Why| {
            matches!(
                why,
                Why::OnlyLastLeaderMayWin { .. }
                    | Why::BehindEarlierTerms
                    | Why::WaitingForFences { .. }
                    | Why::MostAdvancedMayNotLead { .. }
                    | Why::TooFarBehind { .. }
                    | Why::MayNotLead
            )
        };
        let said = self.nodes.iter().filter_map(|node| node.agent.as_ref()?.why.as_ref()).any(asks);
        self.destroyed && said
    }
}
