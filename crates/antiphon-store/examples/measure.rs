//! Measures the embedded store on this machine: three members in one process, over loopback, each with a log of
//! its own in the directory for temporary files.
//!
//! `cargo run --release -p antiphon-store --example measure`: how long commits and reads take, and how long the
//! store is without a leader when the old one dies, with and without proof of its death. Not a test: figures
//! depend on the machine.

#![allow(clippy::unwrap_used, reason = "a failed assumption ends the measurement")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::{Duration, Instant};

use antiphon_store::Store;
use support::{Member, TempDir, put, start, wait_leader};

const CALLS: usize = 1000;
const DEATHS: usize = 20;

#[derive(Clone, Copy, Debug)]
enum Death {
    /// The process goes, its kernel refuses connections: the store sees it by itself.
    Refused,
    /// It falls silent: the others have to wait for their timeouts.
    Silent,
}

#[tokio::main]
async fn main() {
    let dir = TempDir::new();
    let mut members = support::cluster(&dir, 3).await;
    let all: Vec<String> = members.iter().map(|member| member.address.clone()).collect();
    let leader = wait_leader(&members).await;
    for (who, at) in [("the leader", leader), ("a follower", (leader + 1) % 3)] {
        measure_calls(who, &members[at]).await;
    }
    for death in [Death::Refused, Death::Silent] {
        let mut took = Vec::new();
        for _ in 0..DEATHS {
            took.push(measure_takeover(death, &mut members, &all).await);
        }
        print(&format!("death of the leader to a commit, {death:?}"), took);
    }
}

async fn measure_calls(who: &str, member: &Member) {
    let (mut commits, mut reads) = (Vec::new(), Vec::new());
    for number in 0..CALLS {
        let begun = Instant::now();
        member.store.commit(put("measured", &number.to_string())).await.unwrap();
        commits.push(begun.elapsed());
        let begun = Instant::now();
        member.store.read().await.unwrap();
        reads.push(begun.elapsed());
    }
    print(&format!("commit at {who}"), commits);
    print(&format!("read at {who}"), reads);
}

async fn measure_takeover(death: Death, members: &mut Vec<Member>, all: &[String]) -> Duration {
    let Member { address, dir, store, peers } = {
        let leader = wait_leader(members).await;
        members.remove(leader)
    };
    drop(store);
    let begun = Instant::now();
    let links = match death {
        Death::Refused => {
            drop(peers);
            None
        }
        Death::Silent => Some(peers),
    };
    members[0].store.commit(put("after", "death")).await.unwrap();
    let took = begun.elapsed();
    drop(links);
    members.push(start(&dir, &address, all, false));
    took
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    println!("{what}: median {:?}, p99 {:?}, worst {:?}, {} runs", at(50), at(99), at(100), times.len());
}
