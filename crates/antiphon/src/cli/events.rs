//! `events`: follows the cluster's changes, a line each. Goes on after a break, with another member if several
//! were given.

use std::time::Duration;

use clap::Args;
use http_body_util::BodyExt;
use serde_json::Value;

use super::failure::Failure;
use super::output::Format;
use super::table::harmless;
use super::target::{Target, TargetArgs};
use crate::api::datetime;

/// The longest event that is read.
const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Nothing for this long is a dead connection: something is due every 10 s.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// The pause before another attempt.
const PAUSE: Duration = Duration::from_secs(1);

/// `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// pretty: a line a change; json: the events themselves, one a line
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
    /// End after this many events
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,
}

pub(super) async fn events(target: &TargetArgs, args: &EventsArgs) -> Result<(), Failure> {
    let target = target.resolve()?;
    let mut left = args.count;
    // A first failure is told; once it has worked, it is tried again for as long as the user wants.
    let mut began = false;
    while left != Some(0) {
        match follow(&target, args.format, &mut left, &mut began).await {
            Ok(()) => {}
            Err(failure) if began => eprintln!("antiphon: {failure}; trying again"),
            Err(failure) => return Err(failure),
        }
        if left != Some(0) {
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

async fn follow(
    target: &Target,
    format: Format,
    left: &mut Option<u64>,
    began: &mut bool,
) -> Result<(), Failure> {
    let client = target.entry().await?;
    let broken = |why: String| Failure::Unreachable { url: client.url(), why };
    let mut response = client.open("/events").await?;
    if response.status() != 200 {
        return Err(Failure::Refused(format!(
            "{} has no events for us (status {})",
            client.url(),
            response.status()
        )));
    }
    let mut buffer = Vec::new();
    while *left != Some(0) {
        let frame = tokio::time::timeout(SILENCE_MAX, response.body_mut().frame()).await;
        let frame = frame.map_err(|_| broken(format!("nothing came for {SILENCE_MAX:?}")))?;
        let Some(frame) = frame else { return Err(broken("the member ended the events".to_owned())) };
        let frame = frame.map_err(|error| broken(error.to_string()))?;
        buffer.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        if buffer.len() > EVENT_BYTES_MAX {
            return Err(broken(format!("an event has more than {EVENT_BYTES_MAX} bytes")));
        }
        while let Some(data) = next_event(&mut buffer) {
            *began = true;
            match format {
                Format::Json => println!("{data}"),
                Format::Pretty | Format::Yaml | Format::Tsv => {
                    println!("{} {}", datetime::format(datetime::now()), line(&data));
                }
            }
            *left = left.map(|left| left.saturating_sub(1));
            if *left == Some(0) {
                break;
            }
        }
    }
    Ok(())
}

/// Takes the data of the next whole event out of the buffer; comments are dropped.
pub(super) fn next_event(buffer: &mut Vec<u8>) -> Option<Value> {
    loop {
        let end = buffer.windows(2).position(|pair| pair == b"\n\n")?;
        let event: Vec<u8> = buffer.drain(..end + 2).collect();
        let event = String::from_utf8_lossy(&event).into_owned();
        let data: Vec<&str> =
            event.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim_start).collect();
        if let Ok(data) = serde_json::from_str(&data.join("\n")) {
            return Some(data);
        }
    }
}

/// An event in a line.
pub(super) fn line(event: &Value) -> String {
    let text = |value: &Value| value.as_str().map(harmless).unwrap_or_default();
    let leader = match event["leader"]["name"].as_str() {
        Some(name) if event["leader"]["serving"] == true => format!("{} leads", harmless(name)),
        Some(name) => format!("{} is taking over", harmless(name)),
        None => text(&event["phase"]),
    };
    let members = event["members"].as_array().into_iter().flatten();
    let members: Vec<String> = members
        .map(|member| {
            format!("{}={}/{}", text(&member["name"]), text(&member["role"]), text(&member["state"]))
        })
        .collect();
    let paused = if event["pause"] == true { " paused" } else { "" };
    format!("term {} {leader}{paused}: {}", event["epoch"], members.join(" "))
}
