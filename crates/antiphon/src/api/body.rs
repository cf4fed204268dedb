//! Reading a request: its query and its JSON body, both bounded in size, time and depth.
//!
//! What a client sends is never believed: a key that is given twice is refused instead of one of its values
//! being chosen, and the parser itself stops at 128 levels of nesting.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::CONTENT_LENGTH;
use hyper::{Request, StatusCode};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::reply::{Refusal, refuse};

/// Largest body.
const BODY_BYTES_MAX: usize = 1024 * 1024;
/// A body must be complete within this.
const BODY_WAIT_MAX: Duration = Duration::from_secs(10);

/// The JSON object of a request that must have one.
pub(super) async fn object(request: Request<Incoming>) -> Result<Map<String, Value>, Refusal> {
    if !request.headers().contains_key(CONTENT_LENGTH) {
        return Err(refuse(StatusCode::LENGTH_REQUIRED, "send a body with a Content-Length"));
    }
    let object = parse(&read(request).await?)?;
    if object.is_empty() {
        return Err(refuse(StatusCode::BAD_REQUEST, "the body must be a JSON object that is not empty"));
    }
    Ok(object)
}

/// The JSON object of a request that may do without; empty then.
pub(super) async fn object_or_nothing(request: Request<Incoming>) -> Result<Map<String, Value>, Refusal> {
    let body = read(request).await?;
    if body.is_empty() { Ok(Map::new()) } else { parse(&body) }
}

async fn read(request: Request<Incoming>) -> Result<Bytes, Refusal> {
    let too_large =
        || refuse(StatusCode::PAYLOAD_TOO_LARGE, format!("a body has at most {BODY_BYTES_MAX} bytes"));
    let announced =
        request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > BODY_BYTES_MAX as u64) {
        return Err(too_large());
    }
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_WAIT_MAX, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(refuse(StatusCode::BAD_REQUEST, format!("could not read the body: {error}"))),
        Err(_) => Err(refuse(
            StatusCode::REQUEST_TIMEOUT,
            format!("the body did not come within {BODY_WAIT_MAX:?}"),
        )),
    }
}

fn parse(body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    let Unambiguous(value) = serde_json::from_slice(body).map_err(|error| {
        refuse(StatusCode::BAD_REQUEST, format!("the body is not JSON as expected: {error}"))
    })?;
    match value {
        Value::Object(object) => Ok(object),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(refuse(StatusCode::BAD_REQUEST, "the body must be a JSON object"))
        }
    }
}

/// JSON in which no object has a key twice.
struct Unambiguous(Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader).map(Self)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unambiguous(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Unambiguous(value))) = entries.next_entry::<String, Unambiguous>()? {
            if object.contains_key(&key) {
                return Err(de::Error::custom(format!("{key:?} is given twice")));
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// The pairs of a query with a name and a value, decoded.
pub(super) fn query(query: Option<&str>) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(_, value)| !value.is_empty()).map(|(name, value)| (decoded(name), decoded(value)))
}

/// The first value of a name in a query.
pub(super) fn parameter<'a>(text: Option<&'a str>, name: &str) -> Option<Cow<'a, str>> {
    query(text).find(|(key, _)| key == name).map(|(_, value)| value)
}

/// Percent and plus signs resolved. What is not UTF-8 then is replaced; it will match nothing.
pub(super) fn decoded(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    while let Some((first, rest)) = bytes.split_first() {
        bytes = rest;
        match (first, hex(rest.first()).zip(hex(rest.get(1)))) {
            (b'%', Some((high, low))) => {
                // Two hexadecimal digits make a byte.
                plain.push((high * 16 + low) as u8);
                bytes = rest.get(2..).unwrap_or_default();
            }
            (b'+', _) => plain.push(b' '),
            (other, _) => plain.push(*other),
        }
    }
    Cow::Owned(String::from_utf8_lossy(&plain).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_could_mean_two_things_or_never_ends_is_refused() {
        let deep = "[".repeat(100_000);
        for bad in
            ["", "{", "[]", "1", r#"{"ttl":1,"ttl":2}"#, r#"{"a":{"b":1,"b":1}}"#, r#"{"a":1e999}"#, &deep]
        {
            let refused = parse(bad.as_bytes()).expect_err("it was taken");
            assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        }
        let value = parse(br#"{"a":[1,-1,1.5,null,true,"x"]}"#).expect("sound JSON");
        assert_eq!(Value::Object(value).to_string(), r#"{"a":[1,-1,1.5,null,true,"x"]}"#);
    }

    #[test]
    fn a_query_is_decoded() {
        let pairs: Vec<_> = query(Some("lag=1%4dB&tag_a=x+y&empty=&bare&bad=%zz%")).collect();
        assert_eq!(
            pairs,
            [("lag".into(), "1MB".into()), ("tag_a".into(), "x y".into()), ("bad".into(), "%zz%".into())]
        );
    }
}
