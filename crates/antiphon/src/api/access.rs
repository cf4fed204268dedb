//! Who may change things. Looking is open to all; every verb that changes something passes here first.
//!
//! Stricter than Patroni where its defaults have been abused: without a password and without an allowlist only
//! clients on this host are let in, and a browser that was sent here by another site never is.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::{StatusCode, Uri};

use super::connections::Connection;
use super::members::host_and_port;
use super::reply::{Refusal, refuse};
use crate::agent::view::View;
use crate::config::Login;

/// How long names of the allowlist may take to be looked up.
const LOOKUP_MAX: Duration = Duration::from_secs(2);
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Who may change things (`restapi.authentication`, `allowlist`, `allowlist_include_members`).
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The user and password to give; none: no password is asked for.
    pub login: Option<Login>,
    /// Addresses, networks (`10.0.0.0/8`) and host names that requests may come from; empty: all.
    pub allowlist: Vec<String>,
    /// The members' own hosts may besides.
    pub include_members: bool,
    /// A client must have shown a certificate (`verify_client`), which was verified when it connected.
    pub certificates: bool,
}

impl Access {
    /// Lets a request pass, or says why not.
    pub(super) async fn check(
        &self,
        view: &View,
        connection: &Arc<Connection>,
        headers: &HeaderMap,
    ) -> Result<(), Refusal> {
        let peer = connection.peer.ip().to_canonical();
        let forbidden = |text: &str| Err(refuse(StatusCode::FORBIDDEN, text));
        if !self.is_listed(view, peer).await {
            return forbidden("Access is denied: this address is not in restapi.allowlist");
        }
        if is_cross_site(headers, self.login.is_some() || self.certificates) {
            return forbidden("Access is denied: the request was made by a page of another site");
        }
        if self.certificates && !connection.is_certified() {
            return forbidden("client certificate required");
        }
        match &self.login {
            Some(login) if is_signed_in(login, headers) => Ok(()),
            Some(_) if headers.contains_key(AUTHORIZATION) => {
                Err(refuse(StatusCode::UNAUTHORIZED, "not authenticated: user or password is wrong"))
            }
            Some(_) => {
                Err(refuse(StatusCode::UNAUTHORIZED, "no auth header received: give user and password"))
            }
            None if self.is_open() && !self.certificates && !peer.is_loopback() => forbidden(
                "Access is denied: without restapi.authentication, restapi.allowlist and restapi.verify_client changes \
                 are taken from this host only; set one of them to allow others",
            ),
            None => Ok(()),
        }
    }

    /// No list was given at all.
    fn is_open(&self) -> bool {
        self.allowlist.is_empty() && !self.include_members
    }

    async fn is_listed(&self, view: &View, peer: IpAddr) -> bool {
        if self.is_open() || self.allowlist.iter().any(|entry| network_holds(entry, peer)) {
            return true;
        }
        let members = view.world.store.members.values().filter(|_| self.include_members);
        let members = members.filter_map(|member| host_of(&member.value.api_url));
        let names: Vec<String> = self.allowlist.iter().cloned().chain(members).collect();
        if names.iter().any(|name| network_holds(name, peer)) {
            return true;
        }
        let names = names.iter().filter(|name| name.parse::<IpAddr>().is_err() && !name.contains('/'));
        let lookups = names.map(|name| resolves_to(name, peer));
        let found = tokio::time::timeout(LOOKUP_MAX, futures_util::future::join_all(lookups)).await;
        found.is_ok_and(|found| found.contains(&true))
    }
}

async fn resolves_to(name: &str, peer: IpAddr) -> bool {
    let found = tokio::net::lookup_host((name, 0)).await;
    found.is_ok_and(|mut addresses| addresses.any(|address| address.ip().to_canonical() == peer))
}

/// The host of a URL, without brackets.
fn host_of(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    uri.host().map(|host| host.trim_start_matches('[').trim_end_matches(']').to_owned())
}

/// Whether an entry is this address or a network that it is in.
fn network_holds(entry: &str, peer: IpAddr) -> bool {
    let (address, bits) = match entry.split_once('/') {
        Some((address, bits)) => (address, bits.parse::<u32>().ok()),
        None => (entry, Some(128)),
    };
    let Some((address, bits)) = address.parse::<IpAddr>().ok().zip(bits) else { return false };
    match (address.to_canonical(), peer) {
        (IpAddr::V4(network), IpAddr::V4(peer)) => {
            let mask = u32::MAX.checked_shl(32 - bits.min(32)).unwrap_or(0);
            network.to_bits() & mask == peer.to_bits() & mask
        }
        (IpAddr::V6(network), IpAddr::V6(peer)) => {
            let mask = u128::MAX.checked_shl(128 - bits.min(128)).unwrap_or(0);
            network.to_bits() & mask == peer.to_bits() & mask
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

/// Whether a browser sent this for a page of another site. `protected`: a password is asked for.
fn is_cross_site(headers: &HeaderMap, protected: bool) -> bool {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if text(FETCH_SITE).is_some_and(|site| site != "same-origin" && site != "none") {
        return true;
    }
    let Some(origin) = text(ORIGIN) else { return false };
    let host = text(HOST).unwrap_or_default();
    let same = origin.split_once("://").is_some_and(|(_, origin)| origin.eq_ignore_ascii_case(host));
    // A name that an attacker points at this host makes his page look like ours.
    let name = host_and_port(host).map_or(host, |(name, _)| name);
    let certain = protected || name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok();
    !(same && certain)
}

fn is_signed_in(login: &Login, headers: &HeaderMap) -> bool {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.split_once(' '));
    let given = given.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
    let Some(given) = given.and_then(|(_, text)| STANDARD.decode(text.trim()).ok()) else { return false };
    let wanted = format!("{}:{}", login.username, login.password.expose());
    is_same(&given, wanted.as_bytes())
}

/// Compares in a time that depends on the length of `given` only, not on where the two differ.
fn is_same(given: &[u8], wanted: &[u8]) -> bool {
    let mut difference = u8::from(given.len() != wanted.len());
    for (index, byte) in given.iter().enumerate() {
        difference |= byte ^ wanted.get(index % wanted.len().max(1)).copied().unwrap_or(0);
    }
    std::hint::black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_its_addresses_only() {
        let holds = |entry: &str, peer: &str| network_holds(entry, peer.parse().expect("an address"));
        for (entry, peer) in [
            ("10.0.0.0/8", "10.200.3.4"),
            ("10.1.2.3", "10.1.2.3"),
            ("0.0.0.0/0", "8.8.8.8"),
            ("fd00::/8", "fd12::1"),
            ("::1", "::1"),
            ("10.1.2.3/32", "10.1.2.3"),
        ] {
            assert!(holds(entry, peer), "{entry} {peer}");
        }
        for (entry, peer) in [
            ("10.0.0.0/8", "11.0.0.1"),
            ("10.1.2.3", "10.1.2.4"),
            ("::/0", "10.1.2.3"),
            ("fd00::/8", "fe00::1"),
            ("n1", "10.1.2.3"),
            ("10.0.0.0/x", "10.0.0.0"),
        ] {
            assert!(!holds(entry, peer), "{entry} {peer}");
        }
    }

    #[test]
    fn only_the_whole_password_is_the_password() {
        assert!(is_same(b"a:b", b"a:b"));
        for given in [&b""[..], b"a:", b"a:b\0", b"a:ba:b", b"a:c"] {
            assert!(!is_same(given, b"a:b"), "{given:?}");
        }
    }
}
