//! No session reads less than it has seen or written, whatever order samples, reads and failovers come in.

use super::*;

/// Where a read goes if nothing else is asked of the balance.
fn choose(reading: &Reading, floors: &mut Floors, level: Consistency, now_ms: u64, random: u64) -> Choice {
    super::choose(reading, floors, level, now_ms, &Balance::default(), random)
}

/// The chance by which one of three is drawn.
fn third(of: u64) -> u64 {
    (of << 32) / 3 + 1
}

/// A cluster by its true positions; samples are taken and answered when the test says so.
struct World {
    reading: Reading,
    floor: Floors,
    next: u64,
}

impl World {
    fn new(followers: usize) -> Self {
        let mut world =
            Self { reading: Reading { epoch: 1, ..Reading::default() }, floor: Floors::default(), next: 10 };
        world.reading.leader = Some(Arc::new(Feed::new(1)));
        for number in 0..followers {
            let address = ([127, 0, 0, 1], 5000).into();
            world.reading.followers.push(Arc::new(Follower::new(
                &format!("n{number}"),
                address,
                2 + number as u64,
            )));
        }
        world
    }

    fn sample_leader(&self, lsn: u64) {
        let feed = self.reading.leader.as_ref().unwrap();
        feed.answered(feed.begin(), lsn, 0, 1);
    }

    fn sample(&self, follower: usize, lsn: u64) {
        let feed = &self.reading.followers[follower].feed;
        feed.answered(feed.begin(), lsn, 0, 1);
    }

    fn write(&mut self) {
        self.floor.used_leader(&self.reading, false);
    }

    fn read(&mut self, follower: usize) {
        let follower = self.reading.followers[follower].clone();
        self.floor.used_follower(&self.reading, &follower, follower.feed.connection());
    }

    fn chosen(&mut self, level: Consistency) -> Option<usize> {
        match choose(&self.reading, &mut self.floor, level, 1, 0) {
            Choice::One(place) => Some(place),
            Choice::NoneWell | Choice::Lagging | Choice::NoneFarEnough => None,
        }
    }

    fn may_read(&mut self) -> Option<usize> {
        self.chosen(Consistency::ReadYourWrites)
    }
}

#[test]
fn nobody_reads_from_a_server_that_was_not_sampled_a_moment_ago() {
    let mut world = World::new(1);
    assert_eq!(world.may_read(), None);
    world.sample(0, 5);
    assert_eq!(world.may_read(), Some(0));
    world.reading.followers[0].feed.lost();
    assert!(matches!(
        choose(&world.reading, &mut world.floor, Consistency::Eventual, 1, 0),
        Choice::NoneWell
    ));
    world.sample(0, 5);
    assert!(matches!(
        choose(&world.reading, &mut world.floor, Consistency::Eventual, 1 + FRESH_MS, 0),
        Choice::NoneWell
    ));
    world.reading.followers[0].ban(1);
    world.sample(0, 5);
    assert_eq!(world.may_read(), None, "banned for a while even if it answers");
}

#[test]
fn a_write_is_covered_only_by_a_sample_that_was_begun_after_it() {
    let mut world = World::new(1);
    let feed = world.reading.leader.clone().unwrap();
    world.sample(0, 1000);
    let begun_before = feed.begin();
    world.write();
    feed.answered(begun_before, 50, 0, 1);
    assert_eq!(world.may_read(), None, "that sample may have missed the write");
    world.sample_leader(100);
    world.sample(0, 99);
    assert_eq!(world.may_read(), None, "the follower has not replayed it");
    world.sample(0, 100);
    assert_eq!(world.may_read(), Some(0));
    assert_eq!(world.chosen(Consistency::Strong), None);
}

#[test]
fn reads_do_not_go_back_between_followers() {
    let mut world = World::new(2);
    world.sample(0, 100);
    world.sample(1, 100);
    world.read(1);
    // It may have seen more than the last sample said.
    assert_eq!(world.may_read(), Some(1), "where it read it reads on");
    world.read(1);
    world.sample(1, 150);
    world.sample(0, 149);
    assert_eq!(world.may_read(), Some(1));
    world.read(1);
    world.sample(1, 150);
    world.sample(0, 150);
    let both: std::collections::BTreeSet<usize> = (0..4u32)
        .filter_map(|n| {
            match choose(
                &world.reading,
                &mut world.floor,
                Consistency::Monotonic,
                1,
                u64::from(n) << 30 | u64::from(n) << 62,
            ) {
                Choice::One(place) => Some(place),
                Choice::NoneWell | Choice::Lagging | Choice::NoneFarEnough => None,
            }
        })
        .collect();
    assert_eq!(both.len(), 2, "both have what it saw");
}

#[test]
fn a_follower_that_was_restarted_does_not_speak_for_what_it_showed() {
    let mut world = World::new(1);
    world.sample(0, 100);
    world.read(0);
    world.reading.followers[0].feed.connected();
    world.sample(0, 90);
    assert_eq!(world.may_read(), None);
    world.sample_leader(120);
    assert_eq!(world.may_read(), None);
    world.sample(0, 120);
    assert_eq!(world.may_read(), Some(0));
}

#[test]
fn a_floor_of_an_earlier_epoch_is_where_the_new_leader_is() {
    let mut world = World::new(1);
    world.write();
    world.sample_leader(1000);
    world.sample(0, 2000);
    assert_eq!(world.may_read(), Some(0));
    world.next += 1;
    (world.reading.epoch, world.reading.leader) = (2, Some(Arc::new(Feed::new(world.next))));
    assert_eq!(world.may_read(), None, "the new leader has not been sampled");
    world.sample_leader(2500);
    assert_eq!(world.may_read(), None);
    world.sample(0, 2500);
    assert_eq!(world.may_read(), Some(0));
    // A write whose leader died before it was sampled, while nobody leads.
    world.reading.leader = None;
    world.write();
    assert_eq!(world.may_read(), None);
    (world.reading.epoch, world.reading.leader) = (3, Some(Arc::new(Feed::new(world.next + 1))));
    assert_eq!(world.may_read(), None);
    world.sample_leader(2600);
    world.sample(0, 2600);
    assert_eq!(world.may_read(), Some(0));
}

#[test]
fn levels_ask_for_less() {
    let mut world = World::new(1);
    world.sample(0, 1);
    world.write();
    assert_eq!(world.chosen(Consistency::ReadYourWrites), None);
    assert_eq!(world.chosen(Consistency::Monotonic), Some(0), "it may miss what the session wrote");
    assert_eq!(world.chosen(Consistency::Eventual), Some(0));
    assert_eq!(world.chosen(Consistency::Bounded(1000)), None, "nothing is known of how old it is");
    let feed = &world.reading.followers[0].feed;
    feed.answered(feed.begin(), 1, 400, 900);
    assert!(matches!(
        choose(&world.reading, &mut world.floor, Consistency::Bounded(500), 900, 0),
        Choice::One(0)
    ));
    assert!(matches!(
        choose(&world.reading, &mut world.floor, Consistency::Bounded(499), 900, 0),
        Choice::NoneFarEnough
    ));
}

#[test]
fn who_is_too_far_behind_is_left_out_as_long_as_there_is_a_leader_to_be_behind() {
    let mut world = World::new(2);
    let now = 5000;
    let answered = |feed: &Feed, lsn, as_of| feed.answered(feed.begin(), lsn, as_of, now);
    answered(world.reading.leader.as_ref().unwrap(), 1000, 0);
    answered(&world.reading.followers[0].feed, 400, 1000);
    answered(&world.reading.followers[1].feed, 990, 4990);
    let chosen = |world: &mut World, balance: &Balance, random: u64| match super::choose(
        &world.reading,
        &mut world.floor,
        Consistency::Eventual,
        now,
        balance,
        random,
    ) {
        Choice::One(place) => Ok(place),
        other => Err(format!("{other:?}")),
    };
    let bytes = Balance { lag_bytes_max: Some(500), ..Balance::default() };
    let time = Balance { lag_max: Some(Duration::from_secs(1)), ..Balance::default() };
    for balance in [&bytes, &time] {
        assert_eq!(chosen(&mut world, balance, 0), Ok(1));
        assert_eq!(chosen(&mut world, balance, u64::MAX), Ok(1));
    }
    let strict = Balance { lag_bytes_max: Some(5), ..Balance::default() };
    assert_eq!(chosen(&mut world, &strict, 0), Err("Lagging".to_owned()));
    world.reading.leader = None;
    assert_eq!(chosen(&mut world, &strict, 0), Ok(0), "reads go on while nobody leads");
}

#[test]
fn who_breaks_again_and_again_is_left_alone_for_longer_each_time() {
    let follower = Follower::new("n", ([127, 0, 0, 1], 1).into(), 1);
    let mut now = 100;
    let breaks = |now: &mut u64| {
        follower.ban(*now);
        follower.ban(*now + 1);
        let began = *now;
        while !{
            follower.feed.answered(follower.feed.begin(), 1, 0, *now);
            follower.is_well(*now)
        } {
            *now += 100;
        }
        *now - began
    };
    let times: Vec<u64> = (0..9).map(|_| breaks(&mut now)).collect();
    assert_eq!(times, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
    now += 2 * BAN_MS_MAX;
    assert_eq!(breaks(&mut now), 500, "all is forgiven after a while");
}

#[test]
fn the_one_with_less_to_do_is_chosen_of_two() {
    let mut world = World::new(3);
    (0..3).for_each(|n| world.sample(n, 1));
    world.reading.followers[1].busy.store(5, Ordering::Relaxed);
    let mut counts = [0; 3];
    for n in 0..9 {
        if let Choice::One(place) = choose(
            &world.reading,
            &mut world.floor,
            Consistency::Eventual,
            1,
            third(n % 3) | third(n / 3) << 32,
        ) {
            counts[place] += 1;
        }
    }
    assert_eq!(counts[1], 1, "only when both draws are of it: {counts:?}");
}

#[test]
fn the_header_of_a_page_is_no_wal_that_a_follower_could_replay() {
    let (page, segment) = (8192, 16 * 1024 * 1024);
    assert_eq!(end_of_wal(segment + 5 * page + 24, page, segment), segment + 5 * page);
    assert_eq!(end_of_wal(segment + 40, page, segment), segment);
    for other in [segment + 24, segment + 5 * page + 40, segment + 5 * page + 48, segment + 100] {
        assert_eq!(end_of_wal(other, page, segment), other);
    }
}

#[test]
fn rows_of_the_leader_are_seen_and_writes_without_rows_are_not() {
    let mut world = World::new(1);
    world.sample(0, 100);
    world.write();
    assert_eq!(world.chosen(Consistency::Monotonic), Some(0));
    world.read(0);
    assert_eq!(world.chosen(Consistency::ReadYourWrites), None, "a read does not make a write forgotten");
    world.floor.used_leader(&world.reading, true);
    assert_eq!(world.chosen(Consistency::Monotonic), None);
    world.sample_leader(120);
    world.sample(0, 120);
    assert_eq!(world.chosen(Consistency::Monotonic), Some(0));
}

#[test]
fn a_read_at_a_lower_level_does_not_make_a_write_forgotten() {
    let mut world = World::new(2);
    world.sample(0, 100);
    world.sample(1, 100);
    world.write();
    assert!(world.chosen(Consistency::Eventual).is_some());
    world.read(0);
    assert_eq!(world.may_read(), None);
    world.sample(0, 101);
    assert_eq!(world.may_read(), None, "that follower does not have the write");
    world.sample_leader(110);
    world.sample(1, 110);
    assert_eq!(world.may_read(), Some(1));
}

#[test]
fn a_token_of_what_nobody_sampled_is_met_by_no_follower_of_its_epoch() {
    let mut world = World::new(1);
    world.floor.raise(Token::unknown(1));
    world.sample(0, u64::MAX - 1);
    assert_eq!(world.may_read(), None);
    (world.reading.epoch, world.reading.leader) = (2, Some(Arc::new(Feed::new(99))));
    assert_eq!(world.may_read(), None);
    world.sample_leader(70);
    world.sample(0, 70);
    assert_eq!(world.may_read(), Some(0), "the next leader has what is left of it");
}

#[test]
fn no_history_of_six_steps_shows_a_session_less_than_it_saw() {
    histories(Consistency::ReadYourWrites);
}

#[test]
fn no_history_of_six_steps_takes_a_monotonic_session_back_behind_a_read() {
    histories(Consistency::Monotonic);
}

/// Every short history of writes, reads, samples and progress: what a read sees is never less than before.
fn histories(level: Consistency) {
    const STEPS: usize = 9;
    for history in 0..STEPS.pow(6) {
        let mut world = World::new(2);
        let (mut leader, mut replayed, mut seen) = (10u64, [10u64, 10], 0u64);
        world.sample_leader(10);
        (0..2).for_each(|n| world.sample(n, 10));
        let mut left = history;
        for _ in 0..6 {
            match left % STEPS {
                0 => {
                    leader += 1;
                    seen = if level == Consistency::Monotonic { seen } else { leader };
                    world.write();
                }
                1 => leader += 1,
                2 => replayed[0] = (replayed[0] + 1).min(leader),
                3 => replayed[1] = leader,
                4 => world.sample_leader(leader),
                step @ (5 | 6) => world.sample(step - 5, replayed[step - 5]),
                7 => {
                    world.reading.followers[1].feed.connected();
                    replayed[1] = 10;
                    world.reading.followers[1].feed.lost();
                }
                _ => match choose(&world.reading, &mut world.floor, level, 1, 1 << 63) {
                    Choice::One(place) => {
                        assert!(replayed[place] >= seen, "history {history}");
                        seen = replayed[place];
                        world.read(place);
                    }
                    Choice::NoneWell | Choice::Lagging | Choice::NoneFarEnough => {
                        seen = leader;
                        world.floor.used_leader(&world.reading, true);
                    }
                },
            }
            left /= STEPS;
        }
    }
}

#[test]
fn a_token_lets_another_session_see_what_this_one_wrote_and_no_more_than_that_is_waited_for() {
    let mut world = World::new(2);
    world.sample(0, 90);
    world.sample(1, 100);
    world.write();
    assert_eq!(world.floor.token(&world.reading), None, "no sample has been begun since");
    world.sample_leader(95);
    let token = world.floor.token(&world.reading).unwrap();
    assert_eq!((token, token.to_string().parse()), (Token { epoch: 1, lsn: 95 }, Ok(token)));
    // The leader goes on; who has the token need not see that.
    world.sample_leader(500);
    world.floor = Floors::default();
    world.floor.raise(token);
    assert_eq!(world.may_read(), Some(1));
    world.floor.raise(Token { epoch: 1, lsn: 101 });
    assert_eq!(world.may_read(), None, "the higher one counts");
    world.floor.raise(token);
    assert_eq!(world.may_read(), None);
}

#[test]
fn a_token_of_an_epoch_that_is_over_becomes_where_the_new_leader_is() {
    let mut world = World::new(1);
    world.reading.epoch = 2;
    world.sample(0, 40);
    world.sample_leader(50);
    // What its leader had written beyond the others is gone.
    world.floor.raise(Token { epoch: 1, lsn: 900 });
    assert_eq!(world.may_read(), None);
    world.sample_leader(60);
    world.sample(0, 59);
    assert_eq!(world.may_read(), None);
    world.sample(0, 60);
    assert_eq!(world.may_read(), Some(0));
    // And one of an earlier epoch than the session's own floor.
    world.floor.raise(Token { epoch: 1, lsn: 900 });
    assert_eq!(world.may_read(), None);
    world.sample_leader(70);
    assert_eq!(world.may_read(), None);
    world.floor.raise(Token { epoch: 0, lsn: 900 });
    world.sample(0, 70);
    assert_eq!(world.may_read(), Some(0));
}

#[test]
fn only_what_was_given_is_a_token() {
    for text in ["", "1", "1/2", "1/2/3/4", "x/2/3", "1/2/100000000", "1/-2/3", "-1/2/3"] {
        assert!(text.parse::<Token>().is_err(), "{text}");
    }
    assert_eq!("7/0/3000148".parse(), Ok(Token { epoch: 7, lsn: 0x300_0148 }));
    assert_eq!(Token { epoch: 7, lsn: u64::MAX }.to_string(), "7/FFFFFFFF/FFFFFFFF");
}
