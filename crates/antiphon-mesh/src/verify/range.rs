//! Ranges of keys, and how one in which nodes differ is narrowed down. Pure.
//!
//! A range is what a node's own order of keys says it is. Orders of two nodes may differ, where a collation does; and
//! still nothing is overlooked: whatever the order, a key is above one bound and not above the next somewhere in the
//! list, so every row is in one range at least. That one looks different on two nodes that have the same rows, costs a
//! look at those rows by their keys and no more. And since a piece keeps the bounds of what it was cut from, no node
//! has more in a piece than in the whole, so that narrowing comes to an end.

use std::time::Duration;

/// The values of a primary key as text, in the key's order.
pub type Key = Vec<String>;

/// Most pieces that a range is cut into at a time.
const PIECES_MAX: u64 = 64;

/// The keys above all of some bounds and not above any of others. Where nodes agree about the order, the last of each
/// would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// Above these.
    pub after: Vec<Key>,
    /// Not above these.
    pub to: Vec<Key>,
}

impl Range {
    /// Its pieces, cut behind each of these keys, which lie in it in order.
    #[must_use]
    pub fn cut(&self, behind: Vec<Key>) -> Vec<Self> {
        let with = |bounds: &[Key], more: Option<Key>| bounds.iter().cloned().chain(more).collect();
        let mut pieces = Vec::with_capacity(behind.len() + 1);
        let mut after = None;
        for key in behind.into_iter().filter(|key| self.to.last() != Some(key)) {
            let piece =
                Self { after: with(&self.after, after.replace(key.clone())), to: with(&self.to, Some(key)) };
            pieces.push(piece);
        }
        pieces.push(Self { after: with(&self.after, after), to: self.to.clone() });
        pieces
    }
}

/// What a node has in a range: how many rows, and two sums over hashes of them, as the server writes numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    /// Rows, but not more than the most that were asked for.
    pub rows: u64,
    /// The sums.
    pub sums: [String; 2],
}

/// What to do with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing: all nodes have the same in it.
    Pass,
    /// Compare its rows.
    Rows,
    /// Cut it behind every so many rows of this node.
    Cut {
        /// Which, by its place among the digests.
        node: usize,
        /// How many.
        every: u64,
    },
}

/// What to do with a range that has these digests. At most `rows_max` rows are read of a range, so a digest with as
/// many says nothing; what has not more than `leaf_rows` is compared row by row.
#[must_use]
pub fn next(digests: &[Digest], leaf_rows: u64, rows_max: u64) -> Next {
    let most = digests.iter().enumerate().max_by_key(|(_, digest)| digest.rows);
    let Some((node, largest)) = most else { return Next::Pass };
    if largest.rows < rows_max && digests.iter().all(|digest| digest == largest) {
        return Next::Pass;
    }
    if largest.rows <= leaf_rows {
        return Next::Rows;
    }
    Next::Cut { node, every: largest.rows.div_ceil(PIECES_MAX).max(leaf_rows) }
}

/// How long to pause after so many rows were read in that time, so that not more than so many are read a second.
#[must_use]
pub fn pause_after(rows: u64, took: Duration, rows_per_second_max: Option<u32>) -> Duration {
    let Some(rate) = rows_per_second_max else { return Duration::ZERO };
    Duration::from_secs_f64(rows_as_f64(rows) / f64::from(rate.max(1))).saturating_sub(took)
}

fn rows_as_f64(rows: u64) -> f64 {
    f64::from(u32::try_from(rows).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAF: u64 = 3;
    const ROWS_MAX: u64 = 40;

    fn key(number: u64) -> Key {
        vec![format!("{number:06}")]
    }

    /// A node in miniature: its rows by its own order of keys.
    struct Node {
        rows: Vec<(Key, u64)>,
        backwards: bool,
    }

    impl Node {
        fn above(&self, key: &Key, bound: &Key) -> bool {
            if self.backwards { key < bound } else { key > bound }
        }

        fn within(&self, range: &Range) -> Vec<(Key, u64)> {
            let inside = |key: &Key| {
                range.after.iter().all(|after| self.above(key, after))
                    && range.to.iter().all(|to| !self.above(key, to))
            };
            let mut rows: Vec<_> = self.rows.iter().filter(|(key, _)| inside(key)).cloned().collect();
            rows.sort();
            if self.backwards {
                rows.reverse();
            }
            rows
        }

        fn digest(&self, range: &Range) -> Digest {
            let rows = self.within(range);
            let rows = &rows[..rows.len().min(usize::try_from(ROWS_MAX).expect("small"))];
            let hash = |seed: u64| -> u64 {
                let one = |(key, value): &(Key, u64)| {
                    let number: u64 = key[0].parse().expect("a number");
                    (number * 7919 + value * 104_729 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                };
                rows.iter().map(one).fold(0, u64::wrapping_add)
            };
            Digest { rows: rows.len() as u64, sums: [hash(1).to_string(), hash(2).to_string()] }
        }
    }

    /// Narrows down as the real thing does; gives the keys that look different and how many rows were compared.
    fn narrow(nodes: &[Node]) -> (Vec<Key>, usize) {
        let (mut found, mut compared) = (Vec::new(), 0);
        let mut left = vec![Range::default()];
        let mut steps = 0;
        while let Some(range) = left.pop() {
            steps += 1;
            assert!(steps < 100_000, "it comes to an end");
            let digests: Vec<_> = nodes.iter().map(|node| node.digest(&range)).collect();
            match next(&digests, LEAF, ROWS_MAX) {
                Next::Pass => {}
                Next::Rows => {
                    let rows: Vec<_> = nodes.iter().map(|node| node.within(&range)).collect();
                    compared += rows.iter().map(Vec::len).sum::<usize>();
                    for (key, value) in rows.iter().flatten() {
                        if !rows.iter().all(|node| node.contains(&(key.clone(), *value))) {
                            found.push(key.clone());
                        }
                    }
                }
                Next::Cut { node, every } => {
                    let rows = nodes[node].within(&range);
                    let every = usize::try_from(every).expect("small");
                    let read = &rows[..rows.len().min(usize::try_from(ROWS_MAX).expect("small"))];
                    let cuts = read.iter().skip(every - 1).step_by(every).map(|(key, _)| key.clone());
                    left.extend(range.cut(cuts.collect()));
                }
            }
        }
        found.sort();
        found.dedup();
        (found, compared)
    }

    fn rows(numbers: impl IntoIterator<Item = u64>) -> Vec<(Key, u64)> {
        numbers.into_iter().map(|number| (key(number), number)).collect()
    }

    #[test]
    fn every_difference_is_found_and_little_else_is_looked_at() {
        for count in [0, 1, 2, 3, 4, 39, 40, 41, 500] {
            for at in (0..count).step_by(1 + usize::try_from(count).expect("small") / 25) {
                let all = rows(0..count);
                let mut other = all.clone();
                match at % 3 {
                    0 => drop(other.remove(usize::try_from(at).expect("small"))),
                    1 => other[usize::try_from(at).expect("small")].1 += 1,
                    _ => other.push((key(at + 1000), 1)),
                }
                let expected = if at % 3 == 2 { key(at + 1000) } else { key(at) };
                for pair in [[&all, &other], [&other, &all]] {
                    let nodes = pair.map(|rows| Node { rows: rows.clone(), backwards: false });
                    let (found, compared) = narrow(&nodes);
                    assert_eq!(found, std::slice::from_ref(&expected));
                    assert!(compared <= 4 * usize::try_from(LEAF).expect("small"), "{compared} of {count}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_overlooked_where_two_nodes_order_keys_differently() {
        for missing in (0..200).step_by(7) {
            let nodes = [
                Node { rows: rows(0..200), backwards: false },
                Node { rows: rows((0..200).filter(|number| *number != missing)), backwards: true },
            ];
            assert!(narrow(&nodes).0.contains(&key(missing)), "{missing}");
        }
    }

    #[test]
    fn a_node_that_has_nothing_is_not_read_as_a_whole() {
        let nodes = [Node { rows: vec![], backwards: false }, Node { rows: rows(0..500), backwards: false }];
        assert_eq!(narrow(&nodes).0.len(), 500);
    }

    #[test]
    fn a_range_behind_its_own_end_is_not_made() {
        let range = Range { after: vec![], to: vec![key(3)] };
        let first = Range { after: vec![], to: vec![key(3), key(1)] };
        let last = Range { after: vec![key(1)], to: vec![key(3)] };
        assert_eq!(range.cut(vec![key(1), key(3)]), [first, last]);
    }

    #[test]
    fn no_more_rows_are_read_a_second_than_allowed() {
        let second = Duration::from_secs(1);
        assert_eq!(pause_after(1000, Duration::ZERO, None), Duration::ZERO);
        assert_eq!(pause_after(1000, Duration::ZERO, Some(500)), 2 * second);
        assert_eq!(pause_after(1000, second, Some(500)), second);
        assert_eq!(pause_after(1000, 9 * second, Some(500)), Duration::ZERO);
    }
}
