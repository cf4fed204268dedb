//! `GET /events`: the state of the cluster as server-sent events, pushed on every change.
//!
//! Each event is the whole state, so a reader that was slow for a while misses nothing that still matters: what
//! waits for it is one newest event, never a queue. A reader that takes nothing at all is closed by the sweep
//! of its connection. The agent never waits for a reader.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, StreamBody};
use hyper::StatusCode;
use hyper::body::Frame;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::connections::{Connection, Doing};
use super::reply::{Refusal, Reply, events, refuse, text};
use super::{Api, members};
use crate::agent::routers::Router;
use crate::agent::view::View;

/// Most readers at a time.
const READERS_MAX: usize = 1000;
/// Something is sent at least this often, so that both sides notice a dead connection.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// What differs only in how far followers are behind is sent at most this often.
const LAG_EVERY: Duration = Duration::from_secs(1);

/// An event, made once a view for all readers.
pub(super) struct Event {
    /// As it is sent.
    pub(super) text: Bytes,
    /// The same without what changes with every write, to tell whether it is news.
    pub(super) news: String,
}

impl Event {
    /// The event of a view.
    pub(super) fn of(view: &View) -> Self {
        let text = format!("event: cluster\ndata: {}\n\n", members::event(view, true));
        Self { text: text.into(), news: members::event(view, false).to_string() }
    }
}

/// The readers of all connections.
#[derive(Default)]
pub(super) struct Readers(AtomicUsize);

/// A reader's place; dropping it gives it back.
struct Place(Arc<Api>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.readers.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Reader {
    place: Place,
    /// The reader is a router, which has yet to be told what it is known by.
    greeting: Option<Bytes>,
    _router: Option<Router>,
    connection: Arc<Connection>,
    view: watch::Receiver<Arc<View>>,
    sent: Option<(Arc<super::Rendered>, Instant)>,
    keep_alive: Instant,
}

/// The endless answer. A router says `?router` and is told first what it is known by.
pub(super) fn follow(
    api: &Arc<Api>,
    connection: &Arc<Connection>,
    query: Option<&str>,
) -> Result<Reply, Refusal> {
    let before = api.readers.0.fetch_add(1, Ordering::Relaxed);
    let place = Place(api.clone());
    if before >= READERS_MAX {
        let text = format!("{READERS_MAX} readers follow already; ask another member");
        return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, text));
    }
    let router = match query {
        Some("router") => Some(api.routers.admit(token()?)),
        Some(_) | None => None,
    };
    let greeting = router.as_ref().map(|router| {
        let token = format!("{:032x}", router.token);
        Bytes::from(format!("event: router\ndata: {}\n\n", json!({ "token": token })))
    });
    let reader = Reader {
        place,
        greeting,
        _router: router,
        connection: connection.clone(),
        view: api.view.clone(),
        sent: None,
        keep_alive: Instant::now() + KEEP_ALIVE,
    };
    let frames = stream::unfold(reader, |mut reader| async move {
        let text = reader.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(text)), reader))
    });
    Ok(events(UnsyncBoxBody::new(StreamBody::new(frames).boxed_unsync())))
}

/// `POST /routers/TOKEN`: a router is at rest. The token is what shows that it is one.
pub(super) fn at_rest(api: &Api, token: &str) -> Result<Reply, Refusal> {
    let known = u128::from_str_radix(token, 16).is_ok_and(|token| api.routers.is_at_rest(token));
    if known {
        Ok(text(StatusCode::OK, "noted"))
    } else {
        let why = "no router that follows /events?router was told this token; follow and say it again";
        Err(refuse(StatusCode::NOT_FOUND, why))
    }
}

/// A number that nobody guesses.
fn token() -> Result<u128, Refusal> {
    let mut bytes = [0; 16];
    let drawn = getrandom::fill(&mut bytes).map(|()| u128::from_be_bytes(bytes));
    drawn.map_err(|error| refuse(StatusCode::SERVICE_UNAVAILABLE, format!("no random numbers: {error}")))
}

impl Reader {
    /// The next thing to send; none when the agent has gone.
    async fn next(&mut self) -> Option<Bytes> {
        if self.sent.is_none() {
            self.connection.begin(Doing::Events);
        }
        if let Some(greeting) = self.greeting.take() {
            return Some(greeting);
        }
        loop {
            self.view.mark_unchanged();
            let rendered = self.place.0.rendered();
            let mut wake = self.keep_alive;
            let due = match &self.sent {
                None => true,
                Some((last, _)) if last.event().news != rendered.event().news => true,
                Some((last, at)) if last.event().text != rendered.event().text => {
                    wake = wake.min(*at + LAG_EVERY);
                    *at + LAG_EVERY <= Instant::now()
                }
                Some(_) => false,
            };
            let now = Instant::now();
            if due {
                let text = rendered.event().text.clone();
                self.sent = Some((rendered, now));
                self.keep_alive = now + KEEP_ALIVE;
                return Some(text);
            }
            if now >= self.keep_alive {
                self.keep_alive = now + KEEP_ALIVE;
                return Some(Bytes::from_static(b": keep-alive\n\n"));
            }
            tokio::select! {
                changed = self.view.changed() => changed.ok()?,
                () = sleep_until(wake) => {}
            }
        }
    }
}
