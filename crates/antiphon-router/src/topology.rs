//! Who leads and who follows, out of what several agents say.
//!
//! Pure. An agent may be cut off and keep saying what was. Epochs only grow, so the highest one that anybody
//! has heard of is the truth; in it, one that says that its leader serves has seen that record, and it stays true
//! until the next epoch. A member follows the leader of an epoch when its WAL is of that leader's timeline: no
//! server gets there that has replayed anything that the timeline does not have.

use serde_json::Value;

/// The largest weight.
pub const WEIGHT_MAX: u32 = 1000;

/// What one agent said last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The cluster.
    pub scope: String,
    /// The epoch of its record.
    pub epoch: u64,
    /// The server of the epoch's leader, if that accepts writes.
    pub leader: Option<Leader>,
    /// The other members that have a server.
    pub members: Vec<Member>,
    /// The agent is the leader's, which is about to hand over: what begins now would not end before that.
    pub handing_over: bool,
    /// The agent still says so: the connection to it stands.
    pub live: bool,
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
    /// The timeline that it writes, if the agent says so.
    pub timeline: Option<u64>,
}

/// A member that does not lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Host of its server.
    pub host: String,
    /// Port of its server.
    pub port: u16,
    /// The timeline of its WAL, if known.
    pub timeline: Option<u64>,
    /// Its agent is heard, and its server runs.
    pub up: bool,
    /// It may be read from (the tag `noloadbalance` is not set).
    pub serves_reads: bool,
    /// Where it is (the tag `zone`).
    pub zone: Option<String>,
    /// Its part of the reads, next to the others' (the tag `read_weight`).
    pub weight: u32,
}

impl Seen {
    /// The agent says just now that its server is about to stop leading.
    pub fn is_leaving(&self) -> bool {
        self.live && self.handing_over
    }

    /// Reads a `cluster` event; none if it is not one.
    pub fn of_event(event: &Value) -> Option<Self> {
        let epoch = event.get("epoch")?.as_u64()?;
        let scope = event.get("scope")?.as_str()?.to_owned();
        let led = event.get("phase").and_then(Value::as_str) == Some("led");
        let leader = event.get("leader").filter(|_| led).and_then(|leader| {
            let serves = leader.get("serving")?.as_bool()? && leader.get("epoch")?.as_u64()? == epoch;
            serves.then_some(())?;
            let (name, host, port) = address(leader)?;
            Some(Leader { name, host, port, timeline: leader.get("timeline").and_then(Value::as_u64) })
        });
        let members = event.get("members").and_then(Value::as_array);
        let members = members.into_iter().flatten().filter_map(Member::of_row).collect();
        let handing_over = event.get("handing_over_to").is_some_and(|to| !to.is_null());
        Some(Self { scope, epoch, leader, members, handing_over, live: true })
    }
}

impl Member {
    fn of_row(row: &Value) -> Option<Self> {
        let (name, host, port) = address(row)?;
        let state = row.get("state").and_then(Value::as_str);
        let tag = |name: &str| row.get("tags").and_then(|tags| tags.get(name));
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let weight = tag("read_weight").and_then(|weight| text(weight).parse().ok());
        let zone = tag("zone").map(text);
        let tag = tag("noloadbalance");
        let kept_out = tag.is_some_and(|tag| *tag != Value::Bool(false));
        (row.get("role").and_then(Value::as_str) != Some("leader")).then_some(Self {
            name,
            host,
            port,
            timeline: row.get("timeline").and_then(Value::as_u64),
            up: matches!(state, Some("running" | "streaming")),
            serves_reads: !kept_out,
            zone,
            weight: weight.unwrap_or(1).min(WEIGHT_MAX),
        })
    }
}

fn address(of: &Value) -> Option<(String, String, u16)> {
    let text = |key| Some(of.get(key)?.as_str()?.to_owned());
    Some((text("name")?, text("host")?, of.get("port")?.as_u64()?.try_into().ok()?))
}

/// The truth, as far as these have heard of it: the highest epoch, and its leader if it has one that serves and
/// will go on to.
pub fn newest<'a>(mut seen: impl Iterator<Item = &'a Seen> + Clone) -> (u64, Option<Leader>) {
    let mut newest = (0, None);
    for seen in seen.clone() {
        if seen.epoch > newest.0 {
            newest = (seen.epoch, seen.leader.clone());
        } else if seen.epoch == newest.0 && newest.1.is_none() {
            newest.1.clone_from(&seen.leader);
        }
    }
    if seen.any(|seen| seen.is_leaving() && seen.epoch == newest.0) {
        newest.1 = None;
    }
    newest
}

/// The members that may be read from in an epoch, by name: those of its leader's timeline, or while nobody leads
/// those of `before` that are still there. Agents that are heard count; if none is, what the others said last.
pub fn followers<'a>(
    seen: impl Iterator<Item = &'a Seen> + Clone,
    epoch: u64,
    leader: Option<&Leader>,
    before: &[Member],
) -> Vec<Member> {
    let of_epoch = seen.filter(|seen| seen.epoch == epoch);
    let live = of_epoch.clone().any(|seen| seen.live);
    let rows: Vec<&Member> =
        of_epoch.filter(|seen| seen.live || !live).flat_map(|seen| &seen.members).collect();
    let fits = |row: &Member| match leader {
        Some(leader) => row.name != leader.name && row.timeline.is_some() && row.timeline == leader.timeline,
        None => before.iter().any(|known| known.name == row.name),
    };
    let mut found: Vec<Member> = Vec::new();
    for row in rows.iter().filter(|row| row.up && fits(row)) {
        let kept_out = rows.iter().any(|other| other.name == row.name && !other.serves_reads);
        if !kept_out && found.iter().all(|known| known.name != row.name) {
            found.push((*row).clone());
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(epoch: u64, of: u64, serving: bool, phase: &str) -> Seen {
        let leader = json!({ "name": format!("n{of}"), "host": "h", "port": 5432, "epoch": of, "serving": serving, "timeline": of });
        let member = |name: &str, timeline: u64, state: &str| json!({ "name": name, "host": "h", "port": 5433, "role": "replica", "state": state, "timeline": timeline, "tags": {} });
        let members =
            [member("a", of, "streaming"), member("b", of - 1, "streaming"), member("c", of, "unreachable")];
        let event =
            json!({ "scope": "s", "epoch": epoch, "phase": phase, "leader": leader, "members": members });
        Seen::of_event(&event).unwrap()
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
    fn a_leader_that_hands_over_is_none_until_it_says_otherwise_or_is_not_heard() {
        let serving = event(4, 4, true, "led");
        let leaving = Seen { handing_over: true, ..serving.clone() };
        assert_eq!(newest([&serving, &leaving].into_iter()), (4, None));
        assert!(newest([&serving, &serving].into_iter()).1.is_some());
        let silent = Seen { live: false, ..leaving.clone() };
        assert!(newest([&serving, &silent].into_iter()).1.is_some());
        let next = event(5, 5, true, "led");
        assert!(newest([&next, &leaving].into_iter()).1.is_some());
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

    fn names(followers: &[Member]) -> Vec<&str> {
        followers.iter().map(|member| member.name.as_str()).collect()
    }

    #[test]
    fn only_members_on_the_leaders_timeline_are_read_from() {
        let seen = [event(3, 3, true, "led"), event(4, 4, true, "led")];
        let (epoch, leader) = newest(seen.iter());
        let found = followers(seen.iter(), epoch, leader.as_ref(), &[]);
        assert_eq!(names(&found), ["a"], "b has not come to the timeline yet, c is not heard");
        let mut old = seen;
        old[1].leader.as_mut().unwrap().timeline = None;
        let leader = old[1].leader.clone();
        assert!(followers(old.iter(), 4, leader.as_ref(), &[]).is_empty(), "an agent that does not say");
    }

    #[test]
    fn while_nobody_leads_those_that_are_still_there_are_read_from() {
        let before = event(3, 3, true, "led").members;
        let electing = event(4, 3, true, "electing");
        let found = followers([&electing].into_iter(), 4, None, &before[..1]);
        assert_eq!(names(&found), ["a"]);
        assert!(followers([&electing].into_iter(), 4, None, &[]).is_empty());
        assert!(
            followers([&electing].into_iter(), 5, None, &before).is_empty(),
            "nobody speaks of this epoch"
        );
    }

    #[test]
    fn one_agent_that_keeps_a_member_out_is_enough_and_a_dead_one_does_not_count() {
        let leader = event(4, 4, true, "led").leader;
        let (mut a, b) = (event(4, 4, true, "led"), event(4, 4, true, "led"));
        a.members[0].serves_reads = false;
        assert!(followers([&a, &b].into_iter(), 4, leader.as_ref(), &[]).is_empty());
        a.live = false;
        assert_eq!(names(&followers([&a, &b].into_iter(), 4, leader.as_ref(), &[])), ["a"]);
        let row =
            |tags: Value| json!({ "name": "a", "host": "h", "port": 1, "role": "replica", "tags": tags });
        let member = |tags: Value| Member::of_row(&row(tags)).unwrap();
        assert!(!member(json!({ "noloadbalance": true })).serves_reads);
        let plain = member(json!({ "nofailover": true }));
        assert!(plain.serves_reads && plain.zone.is_none() && plain.weight == 1);
        let tagged = member(json!({ "zone": "eu-1", "read_weight": "3" }));
        assert_eq!((tagged.zone.as_deref(), tagged.weight), (Some("eu-1"), 3));
        assert_eq!(member(json!({ "zone": 1, "read_weight": 0 })).weight, 0);
        assert_eq!(member(json!({ "read_weight": 99_999 })).weight, WEIGHT_MAX);
    }
}
