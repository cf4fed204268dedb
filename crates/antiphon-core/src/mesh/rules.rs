//! By what the conflicts of a table are decided: one resolver for all kinds, or others for some. Pure.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};
use thiserror::Error;

use super::conflict::Conflict;
use super::version::{NodeId, Version};

/// What decides a conflict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Resolver {
    /// The later write, anywhere. The only one that converges with any number of nodes and any order.
    #[default]
    LastUpdateWins,
    /// The earlier of the two that conflict.
    FirstUpdateWins,
    /// The node that is named first; those that are not named come last. Of one node's the later write.
    OriginPriority(Vec<NodeId>),
    /// What is here.
    KeepLocal,
    /// What arrives.
    ApplyRemote,
    /// Nothing: the link stops until somebody has decided.
    Error,
}

/// The resolvers of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    all: Resolver,
    by_kind: BTreeMap<Conflict, Resolver>,
}

/// A text that says no rules.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{0} is no resolver: use last_update_wins, first_update_wins, origin_priority, keep_local, apply_remote or error"
)]
pub struct NoRules(String);

impl Resolver {
    /// The resolver of this name; `nodes` are those whose writes come first, in order.
    ///
    /// # Errors
    /// If there is none.
    pub fn named(name: &str, nodes: Vec<NodeId>) -> Result<Self, NoRules> {
        match name {
            "last_update_wins" => Ok(Self::LastUpdateWins),
            "first_update_wins" => Ok(Self::FirstUpdateWins),
            "origin_priority" if !nodes.is_empty() => Ok(Self::OriginPriority(nodes)),
            "keep_local" => Ok(Self::KeepLocal),
            "apply_remote" => Ok(Self::ApplyRemote),
            "error" => Ok(Self::Error),
            other => Err(NoRules(other.to_owned())),
        }
    }

    /// What can go wrong with it; none: all nodes end with the same rows by this rule alone, whatever comes in what order.
    #[must_use]
    pub fn doubt(&self) -> Option<&'static str> {
        match self {
            // Who stops decides nothing.
            Self::LastUpdateWins | Self::Error => None,
            Self::FirstUpdateWins => Some(
                "with first_update_wins nodes can end differently where a row is written again before the conflict has \
                 reached its writer: compare with `antiphon mesh verify`",
            ),
            Self::OriginPriority(_) => Some(
                "with origin_priority two nodes that only insert and update end alike; where rows are deleted, or with \
                 three nodes and more, they can end differently: compare with `antiphon mesh verify`",
            ),
            Self::KeepLocal | Self::ApplyRemote => Some(
                "with keep_local and apply_remote nodes that met a conflict stay different until `antiphon mesh repair`",
            ),
        }
    }

    /// Whether the change is to stand; none if nobody may decide it.
    pub(super) fn change_wins(&self, incoming: Version, local: Version) -> Option<bool> {
        match self {
            Self::LastUpdateWins => Some(incoming >= local),
            Self::FirstUpdateWins => Some(incoming <= local),
            Self::OriginPriority(first) => {
                let rank = |version: Version| {
                    let place = first.iter().position(|node| *node == version.node).unwrap_or(first.len());
                    (std::cmp::Reverse(place), version)
                };
                Some(rank(incoming) >= rank(local))
            }
            Self::KeepLocal => Some(false),
            Self::ApplyRemote => Some(true),
            Self::Error => None,
        }
    }

    fn to_json(&self) -> Json {
        match self {
            Self::LastUpdateWins => json!("last_update_wins"),
            Self::FirstUpdateWins => json!("first_update_wins"),
            Self::OriginPriority(nodes) => {
                json!({"origin_priority": nodes.iter().map(|node| node.number()).collect::<Vec<_>>()})
            }
            Self::KeepLocal => json!("keep_local"),
            Self::ApplyRemote => json!("apply_remote"),
            Self::Error => json!("error"),
        }
    }

    fn from_json(json: &Json) -> Result<Self, NoRules> {
        let no = || NoRules(json.to_string());
        if let Some(name) = json.as_str() {
            return Self::named(name, Vec::new());
        }
        let nodes = json.get("origin_priority").and_then(Json::as_array).ok_or_else(no)?;
        let node = |json: &Json| json.as_u64().and_then(|number| NodeId::new(u16::try_from(number).ok()?));
        let nodes = nodes.iter().map(node).collect::<Option<Vec<_>>>().ok_or_else(no)?;
        Self::named("origin_priority", nodes)
    }
}

impl Rules {
    /// Sets the resolver of a kind, or of all for which there is none of their own.
    pub fn set(&mut self, kind: Option<Conflict>, resolver: Resolver) {
        match kind {
            Some(kind) => {
                self.by_kind.insert(kind, resolver);
            }
            None => self.all = resolver,
        }
    }

    /// What decides this kind.
    #[must_use]
    pub fn of(&self, kind: Conflict) -> &Resolver {
        self.by_kind.get(&kind).unwrap_or(&self.all)
    }

    /// What is set for this kind and no other.
    #[must_use]
    pub fn for_just(&self, kind: Conflict) -> Option<&Resolver> {
        self.by_kind.get(&kind)
    }

    /// What can go wrong with them, a sentence each.
    #[must_use]
    pub fn doubts(&self) -> Vec<&'static str> {
        let mut doubts: Vec<_> =
            self.by_kind.values().chain([&self.all]).filter_map(Resolver::doubt).collect();
        doubts.sort_unstable();
        doubts.dedup();
        doubts
    }

    /// As they are stored: one resolver, or an object with one for each kind and `default` for the others.
    #[must_use]
    pub fn to_json(&self) -> Json {
        if self.by_kind.is_empty() {
            return self.all.to_json();
        }
        let mut all = Map::from_iter([("default".to_owned(), self.all.to_json())]);
        all.extend(self.by_kind.iter().map(|(kind, resolver)| (kind.name().to_owned(), resolver.to_json())));
        Json::Object(all)
    }

    /// As they were stored.
    ///
    /// # Errors
    /// If they are none.
    pub fn from_json(json: &Json) -> Result<Self, NoRules> {
        let mut rules = Self::default();
        match json {
            Json::Object(all) if !all.contains_key("origin_priority") => {
                for (name, resolver) in all {
                    let kind = Conflict::ALL.into_iter().find(|kind| kind.name() == name);
                    if kind.is_none() && name != "default" {
                        return Err(NoRules(name.clone()));
                    }
                    rules.set(kind, Resolver::from_json(resolver)?);
                }
            }
            one => rules.set(None, Resolver::from_json(one)?),
        }
        Ok(rules)
    }
}

#[cfg(test)]
mod tests;
