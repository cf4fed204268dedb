//! Comparing tables of several nodes: ranges by their digests, down to rows, and rows until it is clear what they are.
//!
//! Nothing is locked and no snapshot outlives a statement, so what is read is of different moments and proves nothing
//! by itself. It only says which keys to look at again, one by one, once everybody has applied what there was.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use antiphon_core::Lsn;
use antiphon_core::mesh::agreement::judge;
use antiphon_core::mesh::{Judgement, NodeId, Sights};
use futures_util::future::try_join_all;

use super::node::Node;
use super::range::{Key, Next, Range, next, pause_after};
use super::statements::Reading;
use super::{Difference, Options, Site, Unsettled, VerifyError, Why};
use crate::name::TableName;

/// Most keys that are looked at in one go.
const LOOK_MAX: usize = 200;
/// How often it is looked whether everybody has caught up.
const POLL: Duration = Duration::from_millis(20);
/// How many such looks lie between two nudges.
const POLLS_A_NUDGE: u32 = 15;

/// All nodes, connected.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) nodes: Vec<Node>,
    options: Options,
}

/// A table as each node has it, in the nodes' order.
pub(super) type Table = Vec<Reading>;

/// What became of keys that looked different.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub(super) diverged: Vec<Difference>,
    pub(super) unsettled: Vec<Unsettled>,
}

/// What a part of a table gave.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// Rows of the node that has most, as far as they were counted.
    pub(super) rows: u64,
    /// Keys that look different.
    pub(super) suspects: Vec<Key>,
    /// What became of others that did, of which there were too many to keep.
    pub(super) settled: Settled,
    /// There are more, which were left out.
    pub(super) cut_short: bool,
}

impl Settled {
    pub(super) fn add(&mut self, more: Self) {
        self.diverged.extend(more.diverged);
        self.unsettled.extend(more.unsettled);
    }
}

impl Comparison {
    pub(super) async fn open(sites: &[Site], options: &Options) -> Result<Self, VerifyError> {
        let nodes = try_join_all(sites.iter().map(|site| Node::open(site, options))).await?;
        if let Some(first) = nodes.first()
            && let Some(other) = nodes.iter().find(|node| node.names.id != first.names.id)
        {
            return Err(VerifyError::OtherMesh { one: first.name.clone(), other: other.name.clone() });
        }
        Ok(Self { nodes, options: options.clone() })
    }

    /// The tables that take part anywhere.
    pub(super) fn tables(&self) -> Vec<TableName> {
        let mut tables: Vec<_> = self.nodes.iter().flat_map(|node| node.shapes.keys()).cloned().collect();
        tables.sort_unstable();
        tables.dedup();
        tables
    }

    /// A table on every node, or why it cannot be compared.
    pub(super) fn table(&self, name: &TableName) -> Result<Table, String> {
        let mut table = Vec::new();
        for node in &self.nodes {
            let Some(shape) = node.shapes.get(name) else {
                return Err(format!("it takes no part on node {}", node.name));
            };
            table.push(Reading::new(shape.clone()));
        }
        for (node, reading) in self.nodes.iter().zip(&table).skip(1) {
            let first = &self.nodes[0].name;
            if reading.columns() != table[0].columns() {
                return Err(format!("nodes {first} and {} have different columns", node.name));
            }
            if reading.key() != table[0].key() {
                return Err(format!("nodes {first} and {} have different primary keys", node.name));
            }
        }
        Ok(table)
    }

    /// Compares the next part of a table, behind a key. Gives what it found and where the part behind it begins; none:
    /// that was the last.
    pub(super) async fn part(
        &mut self,
        table: &Table,
        after: Option<Key>,
    ) -> Result<(Part, Option<Key>), VerifyError> {
        let rest = Range { after: after.into_iter().collect(), to: Vec::new() };
        let rows = u64::from(self.options.range_rows);
        let (node, reading) = (&mut self.nodes[0], &table[0]);
        let to = node.bound(reading, &rest, rows).await?;
        let part = self.narrow(table, Range { to: to.iter().cloned().collect(), ..rest }).await?;
        Ok((part, to))
    }

    async fn narrow(&mut self, table: &Table, range: Range) -> Result<Part, VerifyError> {
        let leaf_rows = u64::from(self.options.leaf_rows);
        let rows_max = u64::from(self.options.range_rows).saturating_mul(4).max(leaf_rows + 1);
        let mut part = Part::default();
        let mut left = vec![(range, true)];
        while let Some((range, counts)) = left.pop() {
            let begun = Instant::now();
            let read = self.nodes.iter_mut().zip(table);
            let digests =
                try_join_all(read.map(|(node, reading)| node.digest(reading, &range, rows_max))).await?;
            let most = digests.iter().map(|digest| digest.rows).max().unwrap_or(0);
            let mut counted = counts;
            match next(&digests, leaf_rows, rows_max) {
                Next::Pass => {}
                Next::Rows => part.suspects.extend(self.unlike(table, &range, rows_max).await?),
                Next::Cut { node, every } => {
                    let cuts = self.nodes[node].cuts(&table[node], &range, rows_max, every).await?;
                    // What reached the limit is counted by its pieces.
                    counted &= most < rows_max;
                    left.extend(range.cut(cuts).into_iter().rev().map(|piece| (piece, counts && !counted)));
                }
            }
            if counted {
                part.rows += most;
            }
            self.rest(most, begun).await;
            if part.suspects.len() >= self.options.differences_max {
                let suspects = std::mem::take(&mut part.suspects);
                part.settled.add(self.settle(table, suspects).await?);
                part.cut_short =
                    part.settled.diverged.len() >= self.options.differences_max && !left.is_empty();
                if part.cut_short {
                    break;
                }
            }
        }
        Ok(part)
    }

    async fn rest(&self, rows: u64, begun: Instant) {
        let pause = pause_after(rows, begun.elapsed(), self.options.rows_per_second_max);
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
    }

    /// The keys of a range whose rows are not the same on all nodes.
    async fn unlike(&mut self, table: &Table, range: &Range, rows_max: u64) -> Result<Vec<Key>, VerifyError> {
        let read = self.nodes.iter_mut().zip(table);
        let nodes = try_join_all(read.map(|(node, reading)| node.rows(reading, range, rows_max))).await?;
        let mut keys: Vec<Key> = nodes.iter().flat_map(|rows| rows.keys().cloned()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.retain(|key| {
            let first = nodes[0].get(key);
            nodes.iter().any(|rows| rows.get(key) != first)
        });
        Ok(keys)
    }

    /// Looks at keys until it is clear which of them are different for good.
    pub(super) async fn settle(&mut self, table: &Table, suspects: Vec<Key>) -> Result<Settled, VerifyError> {
        let mut settled = Settled::default();
        let mut open: BTreeMap<Key, Option<Sights>> = suspects.into_iter().map(|key| (key, None)).collect();
        let mut why = Why::Changing;
        for round in 0..=self.options.rounds_max {
            let keys: Vec<Key> = open.keys().cloned().collect();
            let looked = self.look(table, &keys).await?;
            for (key, now) in keys.into_iter().zip(looked) {
                let earlier = open.remove(&key).flatten();
                match judge(earlier.as_ref(), &now) {
                    Judgement::Agreed => {}
                    Judgement::Diverged => settled.diverged.push(Difference { key, sights: now }),
                    Judgement::Open => drop(open.insert(key, Some(now))),
                }
            }
            if open.is_empty() || round == self.options.rounds_max {
                break;
            }
            if let Err(behind) = self.catch_up().await? {
                why = behind;
                break;
            }
        }
        // Two texts of a key may name the same row: 1.0 and 1.00.
        let mut seen: Vec<&Sights> = Vec::new();
        let mut again = vec![false; settled.diverged.len()];
        for (difference, again) in settled.diverged.iter().zip(&mut again) {
            *again = seen.contains(&&difference.sights)
                && difference.sights.values().any(|sight| sight.content().is_some());
            seen.push(&difference.sights);
        }
        let mut again = again.into_iter();
        settled.diverged.retain(|_| !again.next().unwrap_or(false));
        settled.unsettled = open.into_keys().map(|key| Unsettled { key, why: why.clone() }).collect();
        Ok(settled)
    }

    /// What is under these keys on every node.
    async fn look(&mut self, table: &Table, keys: &[Key]) -> Result<Vec<Sights>, VerifyError> {
        let mut all = Vec::with_capacity(keys.len());
        for keys in keys.chunks(LOOK_MAX) {
            let begun = Instant::now();
            let read = self.nodes.iter_mut().zip(table);
            let looked = try_join_all(read.map(|(node, reading)| node.look(reading, keys))).await?;
            for nth in 0..keys.len() {
                let sight = |(node, sights): (&Node, &Vec<_>)| Some((node.id, *sights.get(nth)?));
                all.push(self.nodes.iter().zip(&looked).filter_map(sight).collect());
            }
            self.rest(keys.len() as u64, begun).await;
        }
        Ok(all)
    }

    /// Waits until every node has applied all that was committed anywhere until now; or gives who has not.
    async fn catch_up(&mut self) -> Result<Result<(), Why>, VerifyError> {
        let mut goal: Option<Positions> = None;
        let deadline = Instant::now() + self.options.catch_up_patience;
        let mut polls = 0;
        loop {
            let read = try_join_all(self.nodes.iter_mut().map(Node::positions)).await?;
            let now: BTreeMap<NodeId, Positions> = self.nodes.iter().map(|node| node.id).zip(read).collect();
            let goal = goal.get_or_insert_with(|| furthest(now.values()));
            // Who has left sends nothing any more.
            goal.retain(|source, _| {
                let sends = self.nodes.iter().any(|node| node.members.contains(source));
                sends && !self.options.lost.contains(source)
            });
            let Some((reader, source)) = behind(goal, &now) else { return Ok(Ok(())) };
            if Instant::now() > deadline {
                let name = |id: NodeId| {
                    let node = self.nodes.iter().find(|node| node.id == id);
                    node.map_or_else(|| id.to_string(), |node| node.name.clone())
                };
                return Ok(Err(Why::Behind { reader: name(reader), source: name(source) }));
            }
            if polls % POLLS_A_NUDGE == 0 {
                try_join_all(self.nodes.iter_mut().map(Node::nudge)).await?;
            }
            polls += 1;
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Positions in the logs of nodes.
type Positions = BTreeMap<NodeId, Lsn>;

/// The furthest that anybody knows of each log. For a node that was asked that is its end; for one that was not, what
/// somebody has applied of it, which is all that can have been seen.
fn furthest<'a>(known: impl Iterator<Item = &'a Positions>) -> Positions {
    let mut furthest = Positions::new();
    for (node, lsn) in known.flatten() {
        let at = furthest.entry(*node).or_default();
        *at = (*at).max(*lsn);
    }
    furthest
}

/// The first who has not applied somebody else's log up to the goal, and whose.
fn behind(goal: &Positions, now: &BTreeMap<NodeId, Positions>) -> Option<(NodeId, NodeId)> {
    let pairs = now.iter().flat_map(|(reader, applied)| {
        goal.iter().map(move |(source, lsn)| (*reader, *source, applied.get(source) >= Some(lsn)))
    });
    pairs
        .filter(|(reader, source, reached)| reader != source && !reached)
        .map(|(reader, source, _)| (reader, source))
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u16) -> NodeId {
        NodeId::new(number).expect("not zero")
    }

    fn positions(all: &[(u16, u64)]) -> Positions {
        all.iter().map(|(number, lsn)| (node(*number), Lsn(*lsn))).collect()
    }

    #[test]
    fn everybody_must_have_everybodys_log_and_nobody_its_own() {
        let mut now = BTreeMap::from([
            (node(1), positions(&[(1, 100), (2, 40)])),
            (node(2), positions(&[(1, 90), (2, 50)])),
        ]);
        let goal = furthest(now.values());
        assert_eq!(goal, positions(&[(1, 100), (2, 50)]));
        assert_eq!(behind(&goal, &now), Some((node(1), node(2))));
        now.insert(node(1), positions(&[(1, 300), (2, 50)]));
        assert_eq!(behind(&goal, &now), Some((node(2), node(1))));
        now.insert(node(2), positions(&[(1, 101), (2, 50)]));
        assert_eq!(behind(&goal, &now), None);
    }

    #[test]
    fn of_a_node_that_was_not_asked_everybody_must_have_what_one_has() {
        let mut now = BTreeMap::from([
            (node(1), positions(&[(1, 1), (2, 1), (3, 70)])),
            (node(2), positions(&[(1, 1), (2, 1), (3, 60)])),
        ]);
        let goal = furthest(now.values());
        assert_eq!(behind(&goal, &now), Some((node(2), node(3))));
        now.insert(node(2), positions(&[(1, 1), (2, 1), (3, 71)]));
        assert_eq!(behind(&goal, &now), None);
    }
}
