//! Addresses: where others reach a service, and where it listens.
//!
//! They end up in connection strings, URLs and postgresql.conf, so only characters of host names and of IP
//! addresses pass; IPv6 is written in brackets, as in URLs.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest host name, in bytes (RFC 1035).
const HOST_BYTES_MAX: usize = 253;

/// A host and a port that others connect to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

/// Where a service listens: one port on some hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Names, IP addresses without brackets, or `*` for all; at least one.
    pub hosts: Vec<String>,
    /// The TCP port.
    pub port: u16,
}

impl Address {
    /// Reads `host:port`, `[ipv6]:port`, or without a port if there is a default.
    ///
    /// # Errors
    /// What is wrong, to follow the text in a sentence.
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, String> {
        let (host, port) = split(text.trim(), default_port)?;
        let host = check_host(host)?;
        if is_any(&host) {
            return Err("is every address of this host, which others cannot connect to; name one".to_owned());
        }
        Ok(Self { host, port })
    }
}

impl Listen {
    /// Reads `host[,host...]:port`; a host may be `*`.
    ///
    /// # Errors
    /// What is wrong, to follow the text in a sentence.
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, String> {
        let (rest, last) = match text.rsplit_once(',') {
            Some((rest, last)) => (Some(rest), last),
            None => (None, text),
        };
        let (last, port) = split(last.trim(), default_port)?;
        let names = rest.into_iter().flat_map(|rest| rest.split(',')).map(str::trim).chain([last]);
        let hosts = names
            .map(|host| if host == "*" { Ok(host.to_owned()) } else { check_host(host) })
            .collect::<Result<_, _>>()?;
        Ok(Self { hosts, port })
    }

    /// The address to connect to, if there is one that says which host is meant.
    pub fn address(&self) -> Option<Address> {
        let host = self.hosts.iter().find(|host| *host != "*" && !is_any(host))?;
        let any = self.hosts.iter().any(|host| host == "*" || is_any(host));
        (!any).then(|| Address { host: host.clone(), port: self.port })
    }

    /// Whether two services would want the same port of the same host.
    pub fn collides(&self, other: &Self) -> bool {
        let all = |listen: &Self| listen.hosts.iter().any(|host| host == "*" || is_any(host));
        self.port == other.port
            && (all(self) || all(other) || self.hosts.iter().any(|host| other.hosts.contains(host)))
    }
}

impl From<&Address> for Listen {
    fn from(address: &Address) -> Self {
        Self { hosts: vec![address.host.clone()], port: address.port }
    }
}

/// Parts a text into host and port. Brackets stay on.
fn split(text: &str, default_port: Option<u16>) -> Result<(&str, u16), String> {
    let bare_v6 = text.parse::<Ipv6Addr>().is_ok();
    if bare_v6 {
        return Err(format!("is IPv6 without brackets; write [{text}]:PORT"));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let port = match (port, default_port) {
        (Some(port), _) => port
            .parse::<u16>()
            .ok()
            .filter(|number| *number > 0 && !port.starts_with('+'))
            .ok_or_else(|| format!("has the port {port:?}, which is not a number from 1 to 65535"))?,
        (None, Some(port)) => port,
        (None, None) => return Err("has no port; write host:port".to_owned()),
    };
    Ok((host, port))
}

/// A host without brackets, if it is one.
fn check_host(host: &str) -> Result<String, String> {
    if let Some(inner) = host.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or("has a bracket that is not closed")?;
        return match inner.parse::<Ipv6Addr>() {
            Ok(_) => Ok(inner.to_owned()),
            Err(_) => Err(format!("has {inner:?} in brackets, which is not an IPv6 address")),
        };
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let name = !host.is_empty()
        && host.len() <= HOST_BYTES_MAX
        && host.bytes().all(allowed)
        && !host.starts_with(['-', '.'])
        && !host.contains("..");
    let digits = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if !name || (digits && host.parse::<Ipv4Addr>().is_err()) {
        return Err(format!("has {host:?} in the place of a host name or an IP address"));
    }
    Ok(host.to_owned())
}

fn is_any(host: &str) -> bool {
    host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
}

fn write_host(f: &mut fmt::Formatter<'_>, host: &str) -> fmt::Result {
    if host.contains(':') { write!(f, "[{host}]") } else { f.write_str(host) }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_host(f, &self.host)?;
        write!(f, ":{}", self.port)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, host) in self.hosts.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write_host(f, host)?;
        }
        write!(f, ":{}", self.port)
    }
}
