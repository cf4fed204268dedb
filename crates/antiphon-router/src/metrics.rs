//! The router's metrics, as Prometheus reads them. Pure: made of what the threads told.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::Ordering;

use crate::orders::{PoolTold, Told};
use crate::positions::Reading;
use crate::routes::Routes;
use crate::shared::{Place, Target};
use crate::stats::{Counts, Histogram};

/// What else the page has.
#[derive(Debug)]
pub struct Facts<'a> {
    /// Who leads.
    pub target: Target,
    /// Who is read from.
    pub reading: &'a Reading,
    /// Where statements went.
    pub routes: &'a Routes,
    /// Clients that wait because nobody leads.
    pub held: usize,
    /// The router's clock in milliseconds.
    pub now_ms: u64,
}

/// The pools of one user and database at the leader or at followers, over all threads.
#[derive(Clone, Debug, Default)]
struct Sum {
    clients: [usize; 2],
    links: [usize; 4],
    counts: Counts,
    queries: Histogram,
    waits: Histogram,
    longest_wait: f64,
}

impl Sum {
    fn add(&mut self, pool: &PoolTold) {
        for (sum, more) in self.clients.iter_mut().zip([pool.clients_active, pool.clients_waiting]) {
            *sum += more;
        }
        for (sum, more) in self.links.iter_mut().zip([pool.active, pool.idle, pool.tested, pool.login]) {
            *sum += more;
        }
        self.counts = self.counts.plus(&pool.counts);
        self.queries = self.queries.plus(&pool.queries);
        self.waits = self.waits.plus(&pool.wait_times);
        self.longest_wait = self.longest_wait.max(pool.waits.as_secs_f64());
    }
}

/// The page.
pub fn page(told: &[Told], facts: &Facts<'_>) -> String {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    for pool in told.iter().flat_map(|told| &told.pools) {
        let place = match pool.key.place {
            Place::Leader => "leader",
            Place::Follower(_) => "follower",
        };
        let (database, user) = (escaped(&pool.key.database), escaped(&pool.key.user));
        let labels = format!("database=\"{database}\",user=\"{user}\",place=\"{place}\"");
        sums.entry(labels).or_default().add(pool);
    }
    let mut page = String::with_capacity(8 * 1024);
    of_router(told, facts, &mut page);
    of_pools(&sums, &mut page);
    of_times(&sums, &mut page);
    page
}

/// Writing to a String cannot fail.
fn line(page: &mut String, name: &str, labels: &str, value: impl std::fmt::Display) {
    let _ = match labels {
        "" => writeln!(page, "{name} {value}"),
        labels => writeln!(page, "{name}{{{labels}}} {value}"),
    };
}

fn head(page: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn of_router(told: &[Told], facts: &Facts<'_>, page: &mut String) {
    let gauges = [
        (
            "antiphon_router_has_leader",
            "1 if a leader is known that serves.",
            u64::from(facts.target.leader.is_some()),
        ),
        (
            "antiphon_router_clients_held",
            "Clients that wait because nobody leads (at most failover_hold_max).",
            facts.held as u64,
        ),
        ("antiphon_router_epoch", "Newest epoch that is known.", facts.target.epoch),
        (
            "antiphon_router_clients_logging_in",
            "Clients that have not logged in yet.",
            told.iter().map(|told| told.logging_in as u64).sum(),
        ),
    ];
    for (name, help, value) in gauges {
        head(page, name, "gauge", help);
        line(page, name, "", value);
    }
    let name = "antiphon_router_routes_total";
    head(
        page,
        name,
        "counter",
        "Statements or transactions that went to a follower, or to the leader and why.",
    );
    for (reason, count) in facts.routes.counts() {
        line(page, name, &format!("reason=\"{}\"", reason.word()), count);
    }
    let name = "antiphon_router_follower_usable";
    head(page, name, "gauge", "1 if the follower is read from.");
    for follower in &facts.reading.followers {
        let labels = format!("name=\"{}\"", escaped(&follower.name));
        line(page, name, &labels, u8::from(follower.is_well(facts.now_ms)));
    }
    let name = "antiphon_router_follower_reads";
    head(page, name, "gauge", "Sessions that read from the follower at this moment.");
    for follower in &facts.reading.followers {
        let labels = format!("name=\"{}\"", escaped(&follower.name));
        line(page, name, &labels, follower.busy.load(Ordering::Relaxed));
    }
}

fn of_pools(sums: &BTreeMap<String, Sum>, page: &mut String) {
    let name = "antiphon_router_clients";
    head(page, name, "gauge", "Clients, by whether they wait for a connection.");
    for (labels, sum) in sums {
        for (state, count) in ["active", "waiting"].into_iter().zip(sum.clients) {
            line(page, name, &format!("{labels},state=\"{state}\""), count);
        }
    }
    let name = "antiphon_router_servers";
    head(page, name, "gauge", "Connections to servers, by what they are used for.");
    for (labels, sum) in sums {
        for (state, count) in ["active", "idle", "tested", "login"].into_iter().zip(sum.links) {
            line(page, name, &format!("{labels},state=\"{state}\""), count);
        }
    }
    let name = "antiphon_router_longest_wait_seconds";
    head(page, name, "gauge", "How long the client has waited that waits for longest.");
    for (labels, sum) in sums {
        line(page, name, labels, sum.longest_wait);
    }
    type Of = fn(&Counts) -> u64;
    let counters: [(&str, &str, Of); 6] = [
        ("antiphon_router_queries_total", "Rounds that were answered.", |counts| counts.queries),
        ("antiphon_router_transactions_total", "Transactions that ended.", |counts| counts.transactions),
        ("antiphon_router_received_bytes_total", "Bytes that clients sent.", |counts| counts.received),
        ("antiphon_router_sent_bytes_total", "Bytes that clients were sent.", |counts| counts.sent),
        ("antiphon_router_parses_total", "Statements that clients prepared.", |counts| counts.parses),
        ("antiphon_router_server_parses_total", "Statements that servers prepared.", |counts| {
            counts.server_parses
        }),
    ];
    for (name, help, of) in counters {
        head(page, name, "counter", help);
        for (labels, sum) in sums {
            line(page, name, labels, of(&sum.counts));
        }
    }
}

fn of_times(sums: &BTreeMap<String, Sum>, page: &mut String) {
    type Of = fn(&Sum) -> (&Histogram, u64);
    let histograms: [(&str, &str, Of); 2] = [
        ("antiphon_router_query_seconds", "How long servers took to answer.", |sum| {
            (&sum.queries, sum.counts.query_us)
        }),
        (
            "antiphon_router_wait_seconds",
            "How long clients waited for a connection, those who had to.",
            |sum| (&sum.waits, sum.counts.wait_us),
        ),
    ];
    for (name, help, of) in histograms {
        head(page, name, "histogram", help);
        for (labels, sum) in sums {
            let (times, total_us) = of(sum);
            let mut count = 0;
            for (bucket, up_to) in times.up_to().enumerate() {
                count = up_to;
                let bound = match bucket < Histogram::BOUNDS {
                    true => seconds(Histogram::bound_us(bucket)).to_string(),
                    false => "+Inf".to_owned(),
                };
                line(page, &format!("{name}_bucket"), &format!("{labels},le=\"{bound}\""), up_to);
            }
            line(page, &format!("{name}_sum"), labels, seconds(total_us));
            line(page, &format!("{name}_count"), labels, count);
        }
    }
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// A label's value; names of users and databases come from clients.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::PoolKey;
    use std::time::Duration;

    #[test]
    fn threads_are_added_up_and_names_cannot_break_the_page() {
        let mut queries = Histogram::default();
        queries.count(100);
        let pool = PoolTold {
            key: PoolKey { user: "a\"b\n".into(), database: "d".into(), place: Place::Leader },
            clients_active: 2,
            clients_waiting: 1,
            waits: Duration::from_millis(1500),
            active: 1,
            being_canceled: 0,
            idle: 3,
            tested: 0,
            login: 0,
            counts: Counts { queries: 1, query_us: 100, ..Counts::default() },
            recent: (Counts::default(), Duration::ZERO),
            queries,
            wait_times: Histogram::default(),
        };
        let told = || Told { pools: vec![pool.clone()], ..Told::default() };
        let (reading, routes) = (Reading::default(), Routes::default());
        let facts =
            Facts { target: Target::default(), reading: &reading, routes: &routes, held: 7, now_ms: 1 };
        let page = page(&[told(), told()], &facts);
        let labels = "database=\"d\",user=\"a\\\"b\\n\",place=\"leader\"";
        for wanted in [
            format!("antiphon_router_clients{{{labels},state=\"active\"}} 4\n"),
            format!("antiphon_router_servers{{{labels},state=\"idle\"}} 6\n"),
            format!("antiphon_router_longest_wait_seconds{{{labels}}} 1.5\n"),
            format!("antiphon_router_query_seconds_bucket{{{labels},le=\"0.000064\"}} 0\n"),
            format!("antiphon_router_query_seconds_bucket{{{labels},le=\"0.000128\"}} 2\n"),
            format!("antiphon_router_query_seconds_bucket{{{labels},le=\"+Inf\"}} 2\n"),
            format!("antiphon_router_query_seconds_sum{{{labels}}} 0.0002\n"),
            format!("antiphon_router_query_seconds_count{{{labels}}} 2\n"),
            "antiphon_router_has_leader 0\n".to_owned(),
            "antiphon_router_clients_held 7\n".to_owned(),
        ] {
            assert!(page.contains(&wanted), "{wanted}\n{page}");
        }
    }
}
