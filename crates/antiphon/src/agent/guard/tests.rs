//! The guard against a real socket: what it takes for an order, and when it counts the lease as over.

use super::*;

fn pair(test: &str) -> (PathBuf, UnixDatagram) {
    let dir = std::env::temp_dir().join(format!("antiphon-guard-{test}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a folder");
    let path = dir.join("guard.sock");
    let orders = UnixDatagram::bind(&path).expect("a socket");
    (path, orders)
}

#[test]
fn a_guard_that_was_held_up_reads_its_orders_before_it_kills() {
    let (path, orders) = pair("held-up");
    let agent = UnixDatagram::unbound().expect("a socket");
    agent.send_to(&7_u64.to_le_bytes(), &path).expect("sent");
    // The old lease has run out long ago, and still the renewal that waits is what counts.
    assert_eq!(next_order(&orders, Duration::ZERO).expect("read"), Some(7));
    assert_eq!(next_order(&orders, Duration::ZERO).expect("read"), None);
}

#[test]
fn an_agent_is_not_held_up_by_a_guard_that_does_not_listen() {
    let (path, _orders) = pair("deaf");
    let place = Place { socket: path, data_dir: PathBuf::from("/nowhere") };
    let data_dir = place.data_dir.clone();
    let guard = Guard::new(Some((data_dir, place.socket.parent().expect("a folder").to_owned())));
    let told = (0..100_000).take_while(|order| guard.tell(&place, *order)).count();
    assert!(told < 100_000, "the queue of a guard that reads nothing has an end");
}
