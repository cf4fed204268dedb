//! What was done for a user and a database: counted by each thread for itself, added up when somebody asks.
//!
//! Pure: the time is handed in. Counting is a few additions for each read of a server, and no system call.

use std::time::{Duration, Instant};

/// Averages are over at least so long, and at most twice as long.
const PERIOD: Duration = Duration::from_secs(60);

/// Counts since the router began; times in microseconds, sizes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Links that were taken by sessions.
    pub assignments: u64,
    /// Transactions that have ended.
    pub transactions: u64,
    /// Rounds that were answered: a simple query, or all up to a Sync.
    pub queries: u64,
    /// What clients sent.
    pub received: u64,
    /// What they were sent.
    pub sent: u64,
    /// The time of all transactions.
    pub transaction_us: u64,
    /// The time that servers took to answer.
    pub query_us: u64,
    /// The time that clients waited for a link.
    pub wait_us: u64,
    /// Statements that clients prepared.
    pub parses: u64,
    /// Statements that servers were told to prepare.
    pub server_parses: u64,
    /// Bind messages.
    pub binds: u64,
}

impl Counts {
    fn with(&self, other: &Self, of: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            assignments: of(self.assignments, other.assignments),
            transactions: of(self.transactions, other.transactions),
            queries: of(self.queries, other.queries),
            received: of(self.received, other.received),
            sent: of(self.sent, other.sent),
            transaction_us: of(self.transaction_us, other.transaction_us),
            query_us: of(self.query_us, other.query_us),
            wait_us: of(self.wait_us, other.wait_us),
            parses: of(self.parses, other.parses),
            server_parses: of(self.server_parses, other.server_parses),
            binds: of(self.binds, other.binds),
        }
    }

    /// Both together.
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// What has been counted since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        self.with(earlier, u64::saturating_sub)
    }
}

/// How many things took how long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Histogram([u64; Histogram::BOUNDS + 1]);

impl Histogram {
    /// Bounds: 64 µs, twice that and so on up to 16.8 s; what takes longer is in one more bucket.
    pub const BOUNDS: usize = 19;
    const FIRST_BIT: u32 = 6;

    /// The bound of a bucket in microseconds; what took just so long is in it.
    pub fn bound_us(bucket: usize) -> u64 {
        1 << (Self::FIRST_BIT as usize + bucket)
    }

    /// One more that took so long.
    pub fn count(&mut self, us: u64) {
        let bits = u64::BITS - us.saturating_sub(1).leading_zeros();
        let bucket = bits.saturating_sub(Self::FIRST_BIT) as usize;
        if let Some(count) = self.0.get_mut(bucket.min(Self::BOUNDS)) {
            *count += 1;
        }
    }

    /// Both together.
    pub fn plus(&self, other: &Self) -> Self {
        let mut sum = *self;
        sum.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
        sum
    }

    /// For each bound how many took at most that long, then how many there are.
    pub fn up_to(&self) -> impl Iterator<Item = u64> {
        self.0.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        })
    }
}

/// What messages of a link amounted to, since it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rounds that were answered.
    pub rounds: u32,
    /// Transactions that ended.
    pub transactions: u32,
    /// See [`Counts::parses`].
    pub parses: u32,
    /// See [`Counts::server_parses`].
    pub server_parses: u32,
    /// See [`Counts::binds`].
    pub binds: u32,
}

/// What a client waits for, and since when.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// An answer.
    pub round_at: Option<Instant>,
    /// The end of its transaction.
    pub transaction_at: Option<Instant>,
}

impl Asked {
    /// Something was sent to a server.
    pub fn sent(&mut self, in_flight: bool, now: Instant) {
        if in_flight {
            self.round_at.get_or_insert(now);
            self.transaction_at.get_or_insert(now);
        }
    }

    /// The link is gone: nothing is waited for any more.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

/// What a thread counts for one pool.
#[derive(Clone, Debug)]
pub struct Stats {
    /// Everything so far.
    pub counts: Counts,
    /// How long servers took to answer.
    pub queries: Histogram,
    /// How long clients waited for a link, those who had to.
    pub waits: Histogram,
    older: (Instant, Counts),
    newer: (Instant, Counts),
}

impl Stats {
    /// Nothing yet.
    pub fn new(now: Instant) -> Self {
        let none = (now, Counts::default());
        Self {
            counts: none.1,
            queries: Histogram::default(),
            waits: Histogram::default(),
            older: none,
            newer: none,
        }
    }

    /// A read of a server was passed on: what it amounted to, its bytes, and whether more is on its way.
    pub fn answered(&mut self, asked: &mut Asked, tally: Tally, sent: usize, in_flight: bool, now: Instant) {
        let counts = &mut self.counts;
        counts.sent += sent as u64;
        counts.parses += u64::from(tally.parses);
        counts.server_parses += u64::from(tally.server_parses);
        counts.binds += u64::from(tally.binds);
        if tally.rounds == 0 {
            return;
        }
        counts.queries += u64::from(tally.rounds);
        if let Some(at) = asked.round_at.take() {
            let took = us(now.saturating_duration_since(at));
            counts.query_us += took;
            self.queries.count(took);
        }
        asked.round_at = in_flight.then_some(now);
        if tally.transactions > 0 {
            counts.transactions += u64::from(tally.transactions);
            if let Some(at) = asked.transaction_at.take() {
                counts.transaction_us += us(now.saturating_duration_since(at));
            }
            asked.transaction_at = asked.round_at;
        }
    }

    /// A client got a link for which it had waited so long.
    pub fn waited(&mut self, wait: Duration) {
        self.counts.wait_us += us(wait);
        self.waits.count(us(wait));
    }

    /// Now and then: what is old is forgotten.
    pub fn age(&mut self, now: Instant) {
        if now.saturating_duration_since(self.newer.0) >= PERIOD {
            self.older = std::mem::replace(&mut self.newer, (now, self.counts));
        }
    }

    /// What was counted in the last minute or two, and how long that is.
    pub fn recent(&self, now: Instant) -> (Counts, Duration) {
        (self.counts.since(&self.older.1), now.saturating_duration_since(self.older.0))
    }
}

fn us(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        for (us, bucket) in [(0, 0), (1, 0), (64, 0), (65, 1), (128, 1), (129, 2), (1 << 24, 18)] {
            let mut times = Histogram::default();
            times.count(us);
            let first = times.up_to().position(|count| count == 1);
            assert_eq!(first, Some(bucket), "{us} µs");
            assert!(us <= Histogram::bound_us(bucket));
        }
        let mut times = Histogram::default();
        times.count(u64::MAX);
        times.count((1 << 24) + 1);
        assert_eq!(times.up_to().nth(Histogram::BOUNDS - 1), Some(0), "longer than every bound");
        assert_eq!(times.plus(&times).up_to().last(), Some(4));
    }

    #[test]
    fn rounds_and_transactions_are_timed_from_what_was_sent_to_its_end() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let (mut stats, mut asked) = (Stats::new(start), Asked::default());
        let round = Tally { rounds: 1, ..Tally::default() };
        asked.sent(true, at(1));
        asked.sent(true, at(2));
        stats.answered(&mut asked, round, 10, false, at(3));
        assert_eq!((stats.counts.query_us, stats.counts.transactions), (2000, 0));
        asked.sent(true, at(7));
        stats.answered(&mut asked, Tally { transactions: 1, ..round }, 10, false, at(8));
        let Counts { queries, query_us, transaction_us, sent, .. } = stats.counts;
        assert_eq!((queries, query_us, transaction_us, sent), (2, 3000, 7000, 20));
        assert!(asked.round_at.is_none() && asked.transaction_at.is_none());
    }

    #[test]
    fn averages_are_of_the_last_minutes() {
        let start = Instant::now();
        let mut stats = Stats::new(start);
        for minute in 1..=3 {
            stats.counts.queries += 100;
            stats.age(start + PERIOD * minute);
        }
        stats.counts.queries += 1;
        let (recent, time) = stats.recent(start + PERIOD * 3 + Duration::from_secs(1));
        assert_eq!((recent.queries, time), (101, PERIOD + Duration::from_secs(1)));
    }
}
