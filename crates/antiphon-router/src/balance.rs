//! Which of the followers that will do gets a read: weights, zones, and a slow start for one that came back.
//!
//! Pure; chance is handed in. Of two followers drawn by their weights the one with less to do for its weight is taken:
//! nobody has to look at all of them, and none is run over because it looked idle to everybody at once.

use std::time::Duration;

/// How reads are spread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Where the router is; reads stay there as long as they can.
    pub zone: Option<String>,
    /// Reads in progress at each follower of the own zone, for its weight, from which on others take part, too.
    pub zone_busy_max: u32,
    /// A follower that is farther behind its leader is not read from; in time.
    pub lag_max: Option<Duration>,
    /// The same in bytes.
    pub lag_bytes_max: Option<u64>,
    /// How long it takes until a follower that came back gets its whole share.
    pub slow_start: Duration,
}

impl Default for Balance {
    fn default() -> Self {
        Self {
            zone: None,
            zone_busy_max: 64,
            lag_max: None,
            lag_bytes_max: None,
            slow_start: Duration::from_secs(10),
        }
    }
}

/// The least share of its weight that a follower has, of [`WHOLE`].
const LEAST: u64 = 8;
const WHOLE: u64 = 256;

/// A follower that will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which one.
    pub place: usize,
    /// Its part of the reads, next to the others'.
    pub weight: u32,
    /// Reads that it answers now.
    pub busy: u32,
    /// It is in the router's zone.
    pub near: bool,
    /// For how long it has been well, in milliseconds.
    pub well_for_ms: u64,
}

impl Candidate {
    /// Its weight at this time.
    fn share(&self, balance: &Balance) -> u64 {
        let whole_after = u64::try_from(balance.slow_start.as_millis()).unwrap_or(u64::MAX);
        let part = match whole_after {
            0 => WHOLE,
            ms => (self.well_for_ms.min(ms) * WHOLE / ms).max(LEAST),
        };
        u64::from(self.weight) * part
    }
}

/// The place of the one that gets the read; none if there is none that may have one.
pub fn pick(
    candidates: &(impl Iterator<Item = Candidate> + Clone),
    balance: &Balance,
    random: u64,
) -> Option<usize> {
    let near = || candidates.clone().filter(|candidate| candidate.near && candidate.weight > 0);
    let room = |candidate: Candidate| {
        u64::from(candidate.busy) < u64::from(balance.zone_busy_max) * u64::from(candidate.weight)
    };
    if balance.zone.is_some() && near().any(room) {
        return draw(&near(), balance, random);
    }
    draw(candidates, balance, random)
}

fn draw(
    candidates: &(impl Iterator<Item = Candidate> + Clone),
    balance: &Balance,
    random: u64,
) -> Option<usize> {
    let total: u64 = candidates.clone().map(|candidate| candidate.share(balance)).sum();
    let at = |chance: u64| {
        // Shares are far below 2^32, and so is chance.
        let mut left = chance.checked_mul(total)? >> 32;
        candidates.clone().find(|candidate| {
            let share = candidate.share(balance);
            let found = left < share;
            left = left.saturating_sub(share);
            found
        })
    };
    let (first, second) = (at(random & 0xffff_ffff)?, at(random >> 32)?);
    // The one more that it would have, for its share: compared crosswise.
    let load = |of: &Candidate, other: &Candidate| (u64::from(of.busy) + 1) * other.share(balance);
    let taken = if load(&second, &first) < load(&first, &second) { second } else { first };
    Some(taken.place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(place: usize) -> Candidate {
        Candidate { place, weight: 1, busy: 0, near: false, well_for_ms: 60_000 }
    }

    /// How often each is taken of many draws.
    fn counts(candidates: &[Candidate], balance: &Balance) -> Vec<u32> {
        let mut counts = vec![0; candidates.len()];
        let mut random = 1u64;
        for _ in 0..10_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if let Some(place) = pick(&candidates.iter().copied(), balance, random ^ random >> 29) {
                counts[place] += 1;
            }
        }
        counts
    }

    fn near(counts: u32, wanted: u32) -> bool {
        counts.abs_diff(wanted) < 300
    }

    #[test]
    fn shares_follow_the_weights_and_who_has_none_gets_nothing() {
        let weights = |weights: &[u32]| -> Vec<Candidate> {
            let each = weights.iter().enumerate();
            // With one more each would have as much to do for its weight as the others.
            let busy = |weight: u32| (1000 * weight).saturating_sub(1);
            each.map(|(place, weight)| Candidate { weight: *weight, busy: busy(*weight), ..candidate(place) })
                .collect()
        };
        let told = counts(&weights(&[1, 1]), &Balance::default());
        assert!(near(told[0], 5000), "{told:?}");
        let told = counts(&weights(&[3, 1, 0]), &Balance::default());
        assert!(near(told[0], 7500) && told[2] == 0, "{told:?}");
        assert_eq!(pick(&weights(&[0]).into_iter(), &Balance::default(), 7), None);
        assert_eq!(pick(&[].into_iter(), &Balance::default(), 7), None);
    }

    #[test]
    fn of_two_the_one_with_less_to_do_for_its_weight_is_taken() {
        let busy = [Candidate { busy: 50, ..candidate(0) }, Candidate { busy: 3, ..candidate(1) }];
        let told = counts(&busy, &Balance::default());
        assert!(near(told[0], 2500), "only when both draws are of it: {told:?}");
        let big =
            [Candidate { busy: 50, weight: 100, ..candidate(0) }, Candidate { busy: 3, ..candidate(1) }];
        let told = counts(&big, &Balance::default());
        assert!(told[1] < 20, "{told:?}");
    }

    #[test]
    fn reads_stay_in_their_zone_until_that_has_enough_to_do() {
        let balance = Balance { zone: Some("a".to_owned()), zone_busy_max: 10, ..Balance::default() };
        let zones = |busy: u32| {
            [Candidate { near: true, busy, ..candidate(0) }, Candidate { busy: 0, ..candidate(1) }]
        };
        assert_eq!(counts(&zones(9), &balance), [10_000, 0]);
        assert!(counts(&zones(10), &balance)[1] > 5000, "it spills over");
        let nobody_near = [candidate(0), candidate(1)];
        assert!(near(counts(&nobody_near, &balance)[1], 5000));
        let unasked = Candidate { near: true, weight: 0, ..candidate(0) };
        assert_eq!(counts(&[unasked, candidate(1)], &balance), [0, 10_000]);
    }

    #[test]
    fn one_that_came_back_gets_its_share_little_by_little() {
        let balance = Balance::default();
        let back = |well_for_ms| [Candidate { well_for_ms, ..candidate(0) }, candidate(1)];
        let told: Vec<u32> = [0, 2500, 5000, 10_000].map(|ms| counts(&back(ms), &balance)[0]).to_vec();
        assert!(told.is_sorted() && told[0] < 500 && near(told[3], 5000), "{told:?}");
        let at_once = Balance { slow_start: Duration::ZERO, ..balance };
        assert!(near(counts(&back(0), &at_once)[0], 5000));
    }

    #[test]
    fn no_draw_leaves_the_candidates() {
        let balance = Balance::default();
        for weights in 0..4u32.pow(3) {
            let candidates: Vec<Candidate> = (0..3)
                .map(|n| Candidate {
                    weight: weights / 4u32.pow(n) % 4 * 1000,
                    busy: n * 7,
                    ..candidate(n as usize)
                })
                .collect();
            let some = candidates.iter().any(|candidate| candidate.weight > 0);
            for random in [0, 1, u64::MAX, 0xffff_ffff, 0xffff_ffff_0000_0000, 1 << 31, 1 << 63] {
                let taken = pick(&candidates.iter().copied(), &balance, random);
                assert_eq!(taken.is_some(), some);
                assert!(taken.is_none_or(|place| candidates[place].weight > 0), "{candidates:?} {random}");
            }
        }
    }
}
