//! The two forms of a connection string, read into keys and values as libpq reads them. Knows no key's meaning.

use super::DsnError;

/// The keys and values of a connection string, in its order; of one key the last counts.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>, DsnError> {
    match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
        Some(rest) => uri(rest),
        None => keywords(text),
    }
}

fn malformed<T>(what: impl Into<String>) -> Result<T, DsnError> {
    Err(DsnError::Malformed(what.into()))
}

/// `key = value`, with white space between and around; values may be quoted.
fn keywords(text: &str) -> Result<Vec<(String, String)>, DsnError> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let Some(end) = rest.find(|c: char| c == '=' || c.is_whitespace()) else {
            return malformed(format!("there is no \"=\" after {rest:?}"));
        };
        let (key, behind) = rest.split_at(end);
        let Some(behind) = behind.trim_start().strip_prefix('=') else {
            return malformed(format!("there is no \"=\" after {key:?}"));
        };
        let (value, behind) = value(key, behind.trim_start())?;
        pairs.push((key.to_owned(), value));
        rest = behind.trim_start();
    }
    Ok(pairs)
}

/// The value at the front, and what follows it.
fn value<'a>(key: &str, text: &'a str) -> Result<(String, &'a str), DsnError> {
    let quoted = text.strip_prefix('\'');
    let text = quoted.unwrap_or(text);
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            '\'' if quoted.is_some() => return Ok((value, chars.as_str())),
            c if quoted.is_none() && c.is_whitespace() => return Ok((value, text.split_at(at).1)),
            c => value.push(c),
        }
    }
    if quoted.is_some() {
        return malformed(format!("the quote that begins the value of {key:?} does not end"));
    }
    Ok((value, ""))
}

/// `user:password@host:port,host:port/database?key=value&key=value`, from behind the scheme.
fn uri(text: &str) -> Result<Vec<(String, String)>, DsnError> {
    let mut pairs = Vec::new();
    let (front, parameters) = text.split_once('?').unwrap_or((text, ""));
    let (authority, database) = front.split_once('/').unwrap_or((front, ""));
    let (login, servers) = authority.split_once('@').unwrap_or(("", authority));
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for server in servers.split(',') {
        let (host, port) = match server.strip_prefix('[') {
            Some(address) => match address.split_once(']') {
                Some((address, "")) => (address, ""),
                Some((address, port)) if port.starts_with(':') => (address, &port[1..]),
                Some(_) | None => {
                    return malformed(format!("{server:?} is no address in brackets with a port behind"));
                }
            },
            None => server.split_once(':').unwrap_or((server, "")),
        };
        hosts.push(decoded(host)?);
        ports.push(decoded(port)?);
    }
    let whole = [("user", user), ("password", password), ("dbname", database)];
    for (key, value) in whole.into_iter().filter(|(_, value)| !value.is_empty()) {
        pairs.push((key.to_owned(), decoded(value)?));
    }
    if hosts.iter().any(|host| !host.is_empty()) {
        pairs.push(("host".to_owned(), hosts.join(",")));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        pairs.push(("port".to_owned(), ports.join(",")));
    }
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        let Some((key, value)) = parameter.split_once('=') else {
            return malformed(format!("there is no \"=\" in the parameter {parameter:?}"));
        };
        match (decoded(key)?, decoded(value)?) {
            // As JDBC writes it.
            (key, value) if key == "ssl" && value == "true" => {
                pairs.push(("sslmode".to_owned(), "require".to_owned()));
            }
            pair => pairs.push(pair),
        }
    }
    Ok(pairs)
}

/// The text with every `%41` as the byte that it stands for.
fn decoded(text: &str) -> Result<String, DsnError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digit = |at: usize| behind.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (digit(0), digit(1)) {
            (Some(high), Some(low)) if (high, low) != (0, 0) => {
                bytes.push(u8::try_from(high << 4 | low).expect("two hexadecimal digits make a byte"));
                rest = behind.get(2..).unwrap_or_default();
            }
            _ => return malformed("a \"%\" is not followed by two hexadecimal digits of a byte"),
        }
    }
    String::from_utf8(bytes).or_else(|_| malformed("percent-encoded bytes are not UTF-8"))
}
