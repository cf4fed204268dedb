//! Who leads, out of what several agents say.
//!
//! Pure. An agent may be cut off and keep saying what was. Epochs only grow, so the highest one that anybody
//! has heard of is the truth; in it, one that says that its leader serves has seen that record, and it stays true
//! until the next epoch.

use serde_json::Value;

/// What one agent said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The cluster.
    pub scope: String,
    /// The epoch of its record.
    pub epoch: u64,
    /// The server of the epoch's leader, if that accepts writes.
    pub leader: Option<Leader>,
}

/// A leader and where its server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The member.
    pub name: String,
    /// Host of its server.
    pub host: String,
    /// Port of its server.
    pub port: u16,
}

impl Seen {
    /// Reads a `cluster` event; none if it is not one.
    pub fn of_event(event: &Value) -> Option<Self> {
        let epoch = event.get("epoch")?.as_u64()?;
        let scope = event.get("scope")?.as_str()?.to_owned();
        let led = event.get("phase").and_then(Value::as_str) == Some("led");
        let leader = event.get("leader").filter(|_| led).and_then(|leader| {
            let serves = leader.get("serving")?.as_bool()? && leader.get("epoch")?.as_u64()? == epoch;
            serves.then_some(())?;
            Some(Leader {
                name: leader.get("name")?.as_str()?.to_owned(),
                host: leader.get("host")?.as_str()?.to_owned(),
                port: leader.get("port")?.as_u64()?.try_into().ok()?,
            })
        });
        Some(Self { scope, epoch, leader })
    }
}

/// The truth, as far as these have heard of it: the highest epoch, and its leader if it has one that serves.
pub fn newest<'a>(seen: impl Iterator<Item = &'a Seen>) -> (u64, Option<Leader>) {
    let mut newest = (0, None);
    for seen in seen {
        if seen.epoch > newest.0 {
            newest = (seen.epoch, seen.leader.clone());
        } else if seen.epoch == newest.0 && newest.1.is_none() {
            newest.1.clone_from(&seen.leader);
        }
    }
    newest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(epoch: u64, of: u64, serving: bool, phase: &str) -> Seen {
        let leader =
            json!({ "name": format!("n{of}"), "host": "h", "port": 5432, "epoch": of, "serving": serving });
        Seen::of_event(&json!({ "scope": "s", "epoch": epoch, "phase": phase, "leader": leader })).unwrap()
    }

    #[test]
    fn the_highest_epoch_counts_whoever_says_it() {
        let (old, new) = (event(3, 3, true, "led"), event(4, 4, true, "led"));
        let name = |seen: &[&Seen]| newest(seen.iter().copied()).1.map(|leader| leader.name);
        assert_eq!(name(&[&old, &new]).as_deref(), Some("n4"));
        assert_eq!(name(&[&new, &old]).as_deref(), Some("n4"));
        let electing = event(5, 4, true, "electing");
        assert_eq!(
            newest([&old, &new, &electing].into_iter()),
            (5, None),
            "nobody leads while one is chosen"
        );
    }

    #[test]
    fn a_leader_that_does_not_serve_yet_is_none_until_somebody_saw_it_serve() {
        let (promoting, serving) = (event(4, 4, false, "led"), event(4, 4, true, "led"));
        assert_eq!(newest([&promoting].into_iter()), (4, None));
        assert!(newest([&promoting, &serving].into_iter()).1.is_some());
        assert!(newest([&serving, &promoting].into_iter()).1.is_some());
    }

    #[test]
    fn what_is_no_event_is_none() {
        for value in [json!(null), json!([]), json!({ "epoch": "4", "scope": "s" }), json!({ "epoch": 4 })] {
            assert_eq!(Seen::of_event(&value), None);
        }
        let seen =
            Seen::of_event(&json!({ "epoch": 1, "scope": "s", "phase": "led", "leader": null })).unwrap();
        assert_eq!(seen.leader, None);
    }
}
