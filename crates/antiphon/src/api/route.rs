//! Which request means what. One table lists every endpoint; the reference page is made from it.
//!
//! Routing is Patroni's: the first part of the path names the endpoint, every other path that is read is a
//! health check, and an unsafe verb on an unknown path is 501.

use std::fmt::Write;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::TRANSFER_ENCODING;
use hyper::{Method, Request, StatusCode};

use super::connections::Connection;
use super::reply::{Refusal, Reply, json, json_bytes, refuse, status, text, verdict};
use super::switchover::Action;
use super::{Api, config, events, health, local, members, metrics, status as member, switchover};
use crate::agent::clock;

/// One endpoint.
struct Endpoint {
    method: &'static str,
    path: &'static str,
    about: &'static str,
    answers: &'static str,
}

const fn at(
    method: &'static str,
    path: &'static str,
    about: &'static str,
    answers: &'static str,
) -> Endpoint {
    Endpoint { method, path, about, answers }
}

const ENDPOINTS: &[Endpoint] = &[
    at(
        "GET",
        "/ /primary /read-write",
        "Health: leads in the current term, accepts writes and holds a running lease. So is any path with `primary`, `master`, `leader` or `read-write` in it.",
        "200, 503",
    ),
    at("GET", "/leader", "Health: the same.", "200, 503"),
    at("GET", "/standby-leader", "Health: never; clusters that follow another cluster do not exist.", "503"),
    at(
        "GET",
        "/replica",
        "Health: a replica that answers, follows and is not tagged `noloadbalance`. `?lag=16MB`: not further behind; `?tag_NAME=VALUE`: has this tag.",
        "200, 503",
    ),
    at("GET", "/read-only", "Health: the leader, or what passes `/replica`.", "200, 503"),
    at(
        "GET",
        "/sync /synchronous",
        "Health: a replica that acknowledges commits, `synchronous_mode: on`.",
        "200, 503",
    ),
    at(
        "GET",
        "/quorum",
        "Health: a replica that acknowledges commits, `synchronous_mode: quorum`.",
        "200, 503",
    ),
    at(
        "GET",
        "/async /asynchronous",
        "Health: a replica that does not acknowledge commits; takes `?lag`.",
        "200, 503",
    ),
    at(
        "GET",
        "/read-only-sync /read-only-quorum",
        "Health: the leader, or what passes `/sync` or `/quorum`.",
        "200, 503",
    ),
    at("GET", "/health", "Health: the server answers.", "200, 503"),
    at(
        "GET",
        "/liveness",
        "The agent has looked within `ttl` (twice that on a replica), or is paused.",
        "200, 503",
    ),
    at(
        "GET",
        "/readiness",
        "Leads, or streams and is within `?lag` (`maximum_lag_on_failover`) by `?mode=apply` or `write`.",
        "200, 503",
    ),
    at("GET", "/patroni", "What this member is. The body of every health check too.", "200"),
    at("GET", "/cluster", "All members.", "200"),
    at("GET", "/topology", "All members as a tree: who streams from whom.", "200"),
    at("GET", "/history", "Past promotions: timeline, position, reason, time, leader.", "200"),
    at("GET", "/config", "The cluster-wide settings; `ETag` is their revision.", "200, 502"),
    at("GET", "/metrics", "For Prometheus.", "200"),
    at("GET", "/failsafe", "Every member's API, with `failsafe_mode`.", "200, 502"),
    at(
        "GET",
        "/explain",
        "Why this member is as it is: its role, the reason, what it does, the last election.",
        "200",
    ),
    at("GET", "/events", "Server-sent events: `cluster` with the whole state on every change.", "200, 503"),
    at("POST", "/routers/TOKEN", "Said by a router during a hand-over; see Events.", "200, 404"),
    at(
        "PATCH",
        "/config",
        "Merges into the settings (null deletes). With `If-Match` only at that revision.",
        "200, 400, 409, 411, 413, 503",
    ),
    at("PUT", "/config", "Replaces the settings.", "200, 400, 409, 411, 413, 503"),
    at(
        "POST",
        "/switchover",
        "Hands leadership over: `leader`, `candidate`, `scheduled_at`. Answers when the new leader serves.",
        "200, 202, 400, 412, 422, 503",
    ),
    at("DELETE", "/switchover", "Takes back a scheduled one.", "200, 404, 409"),
    at(
        "POST",
        "/failover",
        "Makes `candidate` the leader; `accept_loss` even if it may lack acknowledged writes.",
        "200, 400, 412, 503",
    ),
    at(
        "POST",
        "/restart",
        "Restarts the server here: `schedule`, `role`, `postgres_version`, `timeout`, `restart_pending`.",
        "200, 202, 400, 409, 422, 500, 503",
    ),
    at("DELETE", "/restart", "Takes back a scheduled one.", "200, 404"),
    at("POST", "/reload", "Reads the node file again and reloads the server.", "202, 503"),
    at(
        "POST",
        "/reinitialize",
        "Builds the data directory here anew from another member: `from-leader` from the leader, `force` also if one is being built.",
        "200, 400, 503",
    ),
    at("DELETE", "/members/NAME", "Forgets a member that is gone.", "200, 400, 404, 409, 503"),
];

const HEAD: &str = "\
# HTTP API

Every member answers at `restapi.listen`. Paths, status codes, texts and JSON are those of Patroni 4.1 where it
has the endpoint, so load balancers, probes and tools that know it work unchanged. Looking is open to everyone;
`PATCH`, `PUT`, `POST` and `DELETE` change things and need permission, see below. With `restapi.certfile` all of it is
HTTPS ([TLS](../tls.md)).

This page is generated from `crates/antiphon/src/api/route.rs`.

| request | what it is | answers |
| --- | --- | --- |
";

const TAIL: &str = "
`HEAD` is answered as `GET` without the body; `OPTIONS` like a health check. A path that is not listed is a health
check that fails (503). An unsafe verb on a path that is not listed is 501.

## What differs from Patroni
- `/primary` and `/leader` are 503 as soon as the server does not accept writes or the lease is not running, even
  while its agent is stopped. Patroni keeps answering 200 while its server is dead.
- `?lag=` that cannot be read fails the check, where Patroni ignores it.
- Connections are kept open (HTTP/1.1). Health checks never ask the server.
- `/cluster` also has `system_identifier`, `epoch` and `sync`, and of members `trouble` (what an operator has to do
  there) and `kept_bytes` (old data that waits to be removed); `/patroni` also has `antiphon` with the reason for the
  member's role. A member that is not heard is listed as `unreachable` until it is removed.
- `/config` refuses settings that are not understood (400) and takes `If-Match`.
- `/restart`, `/failover`, `/switchover` and `/reinitialize` refuse keys that mean nothing (400).

## Permission for unsafe verbs
1. With `restapi.allowlist` or `allowlist_include_members` only those addresses may (403).
2. With `restapi.verify_client` the client must show a certificate (403). With `required` it must even to look: other
   connections are closed.
3. With `restapi.authentication` the user and password must be given (401, basic authentication).
4. With none of these, only clients on the same host may (403). Patroni lets everyone.
5. A browser that acts for a page of another site is refused (403): `Origin` must be the host of the request, and
   without a password that host must be an address or `localhost`.

## Limits
| what | limit | beyond it |
| --- | --- | --- |
| head of a request | 16 KiB, 100 headers, 10 s | 431, or closed |
| body | 1 MiB, 10 s, 128 levels of JSON, no key twice | 413, 408, 400; 411 if it comes in chunks |
| connections | 10,000, or half of the files that the process may open | the longest idle one is closed |
| idle connection | 60 s | closed |
| readers of `/events` | 1,000; one that takes nothing for 30 s | 503; closed |
| outcome of a switchover | twice `loop_wait`, at least 20 s | 503 `Switchover status unknown` |

## Events
`GET /events` sends one `cluster` event at once and one on every change: `epoch`, `phase` (`bootstrapping`, `led`,
`electing`), `leader` with its address, the `timeline` it writes and whether it is `serving`, `members` with role, state, `timeline`,
`lag_bytes` and tags, `sync`, `pause`, and `handing_over_to` in those of a leader that is about to. Each event is the whole state;
what changes in `lag_bytes` alone is sent at most once a second.
A comment is sent every 10 s.

To a router, which asks for `/events?router`, a `router` event with a `token` comes first. While `handing_over_to` is there, the
leader waits, for 2 s at most, until every router that follows it has said by `POST /routers/TOKEN` that it holds back what begins
and that nothing of its clients is under way on the leader. The token is all the permission that this needs.
";

/// The reference page as Markdown.
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    for endpoint in ENDPOINTS {
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "| `{} {}` | {} | {} |",
            endpoint.method, endpoint.path, endpoint.about, endpoint.answers
        );
    }
    page.push_str(TAIL);
    page
}

/// Answers a request.
pub(super) async fn answer(
    api: &Arc<Api>,
    connection: &Arc<Connection>,
    request: Request<Incoming>,
) -> Reply {
    let method = request.method().clone();
    let result = if method == Method::GET || method == Method::HEAD {
        look(api, connection, &request).await
    } else if method == Method::OPTIONS {
        let view = api.view.borrow();
        let uri = request.uri();
        Ok(status(verdict(health::passes(&view, uri.path(), uri.query(), clock::now()))))
    } else {
        change(api, connection, request).await
    };
    result.unwrap_or_else(Reply::from)
}

/// The first part of a path.
fn first(path: &str) -> &str {
    path.trim_start_matches('/').split('/').next().unwrap_or_default()
}

async fn look(
    api: &Arc<Api>,
    connection: &Arc<Connection>,
    request: &Request<Incoming>,
) -> Result<Reply, Refusal> {
    let rendered = api.rendered();
    let view = &rendered.view;
    let (path, query) = (request.uri().path(), request.uri().query());
    Ok(match first(path) {
        "liveness" => status(verdict(health::is_alive(view, clock::now()))),
        "readiness" => status(verdict(health::is_ready(view, query, clock::now()))),
        "patroni" => json_bytes(StatusCode::OK, rendered.status()),
        "cluster" => json_bytes(StatusCode::OK, rendered.cluster()),
        "topology" => json(StatusCode::OK, &members::topology(view)),
        "history" => json(StatusCode::OK, &member::history(view)),
        "explain" => json(StatusCode::OK, &member::explain(view)),
        "metrics" => {
            let mut page = metrics::page(view, clock::now(), api.connections.count());
            if let Some(router) = &api.beside.router {
                page.push_str(&router.metrics().await.unwrap_or_default());
            }
            if let Some(mesh) = &api.beside.mesh {
                let standing = mesh.borrow().clone();
                page.push_str(&antiphon_mesh::metrics::page(&standing));
            }
            text(StatusCode::OK, page)
        }
        "config" => config::show(api)?,
        "failsafe" => match member::failsafe(view) {
            Some(body) => json(StatusCode::OK, &body),
            None => return Err(refuse(StatusCode::BAD_GATEWAY, "failsafe_mode is off")),
        },
        "events" if request.method() == Method::GET => events::follow(api, connection, query)?,
        _ => json_bytes(verdict(health::passes(view, path, query, clock::now())), rendered.status()),
    })
}

async fn change(
    api: &Arc<Api>,
    connection: &Arc<Connection>,
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    let path = request.uri().path().to_owned();
    let method = request.method().as_str().to_owned();
    let known = ENDPOINTS.iter().any(|known| known.method == method && first(known.path) == first(&path));
    if !known || method == "GET" {
        let short: String = method.chars().take(20).collect();
        return Err(refuse(
            StatusCode::NOT_IMPLEMENTED,
            format!("Unsupported method ({short:?}) for this path"),
        ));
    }
    if let ("POST", Some(token)) = (method.as_str(), path.strip_prefix("/routers/")) {
        return events::at_rest(api, token);
    }
    let view = api.view.borrow().clone();
    api.access.check(&view, connection, request.headers()).await?;
    // A length that is announced can be refused before anything is read; and two of them cannot contradict.
    if request.headers().contains_key(TRANSFER_ENCODING) {
        return Err(refuse(
            StatusCode::LENGTH_REQUIRED,
            "send the body with a Content-Length, not in chunks",
        ));
    }
    tracing::info!(peer = %connection.peer, %method, %path, "request to change something");
    match (method.as_str(), first(&path)) {
        ("PATCH", "config") => config::patch(api, request).await,
        ("PUT", "config") => config::put(api, request).await,
        ("POST", "switchover") => switchover::request(api, Action::Switchover, request).await,
        ("POST", "failover") => switchover::request(api, Action::Failover, request).await,
        ("DELETE", "switchover") => switchover::cancel(api).await,
        ("POST", "restart") => local::restart(api, request).await,
        ("DELETE", "restart") => local::cancel_restart(api),
        ("POST", "reload") => local::reload(api).await,
        ("POST", "reinitialize") => local::reinitialise(api, request).await,
        ("DELETE", "members") => {
            let name = path.trim_start_matches('/').split_once('/').map_or("", |(_, name)| name);
            local::remove(api, name).await
        }
        _ => Err(refuse(
            StatusCode::NOT_IMPLEMENTED,
            "this endpoint is listed and has no handler; please report it",
        )),
    }
}
