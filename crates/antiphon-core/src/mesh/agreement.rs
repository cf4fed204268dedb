//! Whether nodes agree about a row, and whose version stands where they do not. Pure.
//!
//! Nodes that apply each other's writes differ all the time: by what is on its way. A difference is one only if it
//! outlives that: it was seen, then everybody applied whatever had been committed anywhere by then, and it is still
//! there, with nothing written to the row meanwhile. All else is no news yet.

use std::collections::BTreeMap;

use super::version::{NodeId, Version};

/// A row's content, as a hash that is the same wherever the content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Content(pub i64, pub i64);

/// What is under a key on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// A row.
    Row {
        /// When and where it was written.
        version: Version,
        /// What is in it.
        content: Content,
    },
    /// No row, and a delete that is remembered.
    Gone(Version),
    /// No row, and nobody remembers why.
    Absent,
}

impl Sight {
    /// What is there; none: no row.
    #[must_use]
    pub fn content(self) -> Option<Content> {
        match self {
            Self::Row { content, .. } => Some(content),
            Self::Gone(_) | Self::Absent => None,
        }
    }

    /// The last write or delete that is known of.
    #[must_use]
    pub fn version(self) -> Option<Version> {
        match self {
            Self::Row { version, .. } | Self::Gone(version) => Some(version),
            Self::Absent => None,
        }
    }

    /// Whether `now` is what this was: nobody wrote it since. A delete may have been forgotten.
    #[must_use]
    pub fn still(self, now: Self) -> bool {
        self == now || matches!((self, now), (Self::Gone(_), Self::Absent))
    }
}

/// What is under one key on every node.
pub type Sights = BTreeMap<NodeId, Sight>;

/// What two looks at a key say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// All nodes have the same.
    Agreed,
    /// They differ, and nothing that is on its way will change that.
    Diverged,
    /// It was written between the looks, or there is only one look so far: look again.
    Open,
}

/// Judges a key by an earlier look at it and the one now. Between the two, every node must have applied whatever had
/// been committed anywhere when the earlier one ended.
#[must_use]
pub fn judge(earlier: Option<&Sights>, now: &Sights) -> Judgement {
    let mut contents = now.values().map(|sight| sight.content());
    let first = contents.next();
    if first.is_none_or(|first| contents.all(|content| content == first)) {
        return Judgement::Agreed;
    }
    let untouched = earlier.is_some_and(|earlier| {
        earlier.len() == now.len()
            && now.iter().all(|(node, sight)| earlier.get(node).is_some_and(|before| before.still(*sight)))
    });
    if untouched { Judgement::Diverged } else { Judgement::Open }
}

/// By what the version that is to stand is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The latest write or delete.
    #[default]
    Latest,
    /// Whatever this node has.
    Node(NodeId),
}

/// The node whose sight is to stand on all; none if nobody's can.
///
/// Where several have the latest version and not the same in it, its author's is the original; without that, the one
/// that most have; a row before no row; the lowest node's.
#[must_use]
pub fn winner(sights: &Sights, choice: Choice) -> Option<(NodeId, Sight)> {
    if let Choice::Node(node) = choice {
        return sights.get(&node).map(|sight| (node, *sight));
    }
    let support = |sight: Sight| sights.values().filter(|other| other.content() == sight.content()).count();
    let rank = |node: NodeId, sight: Sight| {
        let version = sight.version()?;
        let is_row = sight.content().is_some();
        Some((version, version.node == node, support(sight), is_row, std::cmp::Reverse(node)))
    };
    let known = sights.iter().filter_map(|(node, sight)| Some((rank(*node, *sight)?, (*node, *sight))));
    known.max_by_key(|(rank, _)| *rank).map(|(_, winner)| winner)
}

#[cfg(test)]
mod tests {
    use super::super::version::CommitTime;
    use super::*;

    fn node(number: u16) -> NodeId {
        NodeId::new(number).expect("not zero")
    }

    fn version(at: i64, by: u16) -> Version {
        Version { at: CommitTime(at), node: node(by) }
    }

    fn row(at: i64, by: u16, content: i64) -> Sight {
        Sight::Row { version: version(at, by), content: Content(content, 0) }
    }

    fn sights(all: &[Sight]) -> Sights {
        (1..).zip(all).map(|(number, sight)| (node(number), *sight)).collect()
    }

    /// Every sight of a small world.
    fn every() -> Vec<Sight> {
        let mut every = vec![Sight::Absent];
        for at in 1..=2 {
            for by in 1..=2 {
                every.push(Sight::Gone(version(at, by)));
                every.extend((1..=2).map(|content| row(at, by, content)));
            }
        }
        every
    }

    #[test]
    fn a_difference_is_one_only_if_two_looks_see_the_same() {
        let every = every();
        for (a, b) in every.iter().flat_map(|a| every.iter().map(move |b| (*a, *b))) {
            let now = sights(&[a, b]);
            assert_ne!(judge(None, &now), Judgement::Diverged, "one look proves nothing");
            let agreed = a.content() == b.content();
            assert_eq!(judge(Some(&now), &now) == Judgement::Agreed, agreed);
            assert_eq!(judge(Some(&now), &now) == Judgement::Diverged, !agreed);
            for c in &every {
                let judged = judge(Some(&sights(&[*c, b])), &now);
                assert!(judged != Judgement::Diverged || c.still(a), "{c:?} became {a:?}");
            }
        }
    }

    #[test]
    fn a_row_that_was_rewritten_with_the_same_content_was_written() {
        let earlier = sights(&[row(1, 1, 1), row(1, 1, 2)]);
        assert_eq!(judge(Some(&earlier), &sights(&[row(2, 1, 1), row(1, 1, 2)])), Judgement::Open);
    }

    #[test]
    fn a_node_that_was_not_looked_at_before_proves_nothing() {
        let earlier = sights(&[row(1, 1, 1)]);
        assert_eq!(judge(Some(&earlier), &sights(&[row(1, 1, 1), Sight::Absent])), Judgement::Open);
    }

    #[test]
    fn the_winner_has_the_greatest_version_whoever_holds_it() {
        let every = every();
        for a in &every {
            for b in &every {
                for c in &every {
                    let all = sights(&[*a, *b, *c]);
                    let greatest = all.values().filter_map(|sight| sight.version()).max();
                    let winner = winner(&all, Choice::Latest);
                    assert_eq!(winner.and_then(|(_, sight)| sight.version()), greatest);
                    assert!(winner.is_none_or(|(node, sight)| all.get(&node) == Some(&sight)));
                }
            }
        }
    }

    #[test]
    fn a_later_delete_wins_and_an_earlier_one_does_not() {
        let later = sights(&[row(1, 1, 1), Sight::Gone(version(2, 2)), Sight::Absent]);
        assert_eq!(winner(&later, Choice::Latest), Some((node(2), Sight::Gone(version(2, 2)))));
        let earlier = sights(&[row(3, 1, 1), Sight::Gone(version(2, 2)), Sight::Absent]);
        assert_eq!(winner(&earlier, Choice::Latest), Some((node(1), row(3, 1, 1))));
    }

    #[test]
    fn of_one_version_in_two_shapes_its_authors_is_the_original_and_then_the_most_common() {
        let authored = sights(&[row(1, 3, 1), row(1, 3, 1), row(1, 3, 2)]);
        assert_eq!(winner(&authored, Choice::Latest), Some((node(3), row(1, 3, 2))));
        let common = sights(&[row(1, 9, 2), row(1, 9, 1), row(1, 9, 1)]);
        assert_eq!(winner(&common, Choice::Latest), Some((node(2), row(1, 9, 1))));
    }

    #[test]
    fn a_chosen_node_wins_with_whatever_it_has() {
        let all = sights(&[row(9, 1, 1), Sight::Absent]);
        assert_eq!(winner(&all, Choice::Node(node(2))), Some((node(2), Sight::Absent)));
        assert_eq!(winner(&all, Choice::Node(node(3))), None);
    }
}
