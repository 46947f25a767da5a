//! [`Fields`]: the parameters of a request for keys, parsed and checked like etcd, in its order and with its error
//! texts.
//!
//! The meaning of a request is in `operation`. Causes have the texts of Go's library, which clients may rely on. Always
//! holds: a request that has [`Fields`] has passed every check that etcd makes before it reads the store.

use std::borrow::Cow;

use bytes::Bytes;
use http::Method;
use percent_encoding::percent_decode;

use super::answer::Refusal;

/// A semicolon was once a separator. Since it is no longer, Go refuses it.
const SEMICOLON: &str = "invalid semicolon separator in query";

/// The largest body that is read: Go's limit for forms.
pub(super) const MAX_BODY: usize = 10 << 20;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) value: Bytes,
    /// Not empty if given.
    pub(super) prev_value: Option<Bytes>,
    /// Zero means none.
    pub(super) prev_index: u64,
    pub(super) prev_exist: Option<bool>,
    pub(super) wait_index: u64,
    pub(super) recursive: bool,
    pub(super) wait: bool,
    pub(super) dir: bool,
    pub(super) quorum: bool,
    pub(super) stream: bool,
    pub(super) no_value_on_success: bool,
    pub(super) ttl: Option<u64>,
    pub(super) refresh: bool,
}

/// The body of a request, as far as it is read.
#[derive(Clone, Debug)]
pub(super) enum Body {
    /// Not a form, or the method has no form.
    Ignored,
    Form(Bytes),
    /// Longer than [`MAX_BODY`].
    TooLarge,
    /// The content type is invalid, or the body ended too early; contains the reason.
    Bad(&'static str),
}

impl Fields {
    /// Parses the query and the body. The body takes precedence; of several values the first counts.
    pub(super) fn read(method: &Method, query: &str, body: &Body) -> Result<Self, Refusal> {
        let form = Form::parse(query.as_bytes(), body).map_err(|cause| Refusal::new(210, cause))?;
        let prev_index = form.index("prevIndex")?;
        let wait_index = form.index("waitIndex")?;
        let recursive = form.quoted_flag("recursive")?;
        form.quoted_flag("sorted")?;
        let wait = form.quoted_flag("wait")?;
        let dir = form.quoted_flag("dir")?;
        let quorum = form.quoted_flag("quorum")?;
        let stream = form.quoted_flag("stream")?;
        if wait && *method != Method::GET {
            return Err(Refusal::new(209, r#""wait" can only be used with GET requests"#));
        }
        let prev_value = form.get("prevValue").cloned();
        if prev_value.as_ref().is_some_and(Bytes::is_empty) {
            return Err(Refusal::new(201, r#""prevValue" cannot be empty"#));
        }
        let no_value_on_success = form.quoted_flag("noValueOnSuccess")?;
        let ttl = match form.get("ttl").filter(|text| !text.is_empty()) {
            Some(text) => {
                let parsed = parse_uint(text).ok_or_else(|| Refusal::new(202, r#"invalid value for "ttl""#))?;
                Some(parsed)
            }
            None => None,
        };
        let prev_exist = form.bare_flag("prevExist")?;
        let refresh = form.bare_flag("refresh")?.unwrap_or_default();
        let value = form.get("value").cloned().unwrap_or_default();
        if refresh {
            if !value.is_empty() {
                return Err(Refusal::new(211, "A value was provided on a refresh"));
            }
            if ttl.is_none() {
                return Err(Refusal::new(212, "No TTL value set"));
            }
        }
        Ok(Self {
            value,
            prev_value,
            prev_index,
            prev_exist,
            wait_index,
            recursive,
            wait,
            dir,
            quorum,
            stream,
            no_value_on_success,
            ttl,
            refresh,
        })
    }
}

/// The first value of each known name.
#[derive(Debug, Default)]
struct Form {
    values: Vec<(&'static str, Bytes)>,
}

/// The names with a meaning.
const NAMES: [&str; 14] = [
    "prevIndex",
    "waitIndex",
    "recursive",
    "sorted",
    "wait",
    "dir",
    "quorum",
    "stream",
    "prevValue",
    "noValueOnSuccess",
    "ttl",
    "prevExist",
    "refresh",
    "value",
];

impl Form {
    fn parse(query: &[u8], body: &Body) -> Result<Self, Cow<'static, str>> {
        let mut form = Self::default();
        let of_body = match body {
            Body::Ignored => Ok(()),
            Body::Form(text) => form.add(text),
            Body::TooLarge => Err("http: POST too large".into()),
            Body::Bad(why) => Err((*why).into()),
        };
        let of_query = form.add(query);
        of_body.and(of_query).map(|()| form)
    }

    /// Adds pairs whose names are new. All pairs are checked. The first error counts, but a semicolon before any other.
    fn add(&mut self, text: &[u8]) -> Result<(), Cow<'static, str>> {
        let mut fault = Ok(());
        for pair in text.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
            if pair.contains(&b';') {
                fault = Err(SEMICOLON.into());
            } else if let Err(why) = self.add_pair(pair) {
                fault = fault.and(Err(why));
            }
        }
        fault
    }

    fn add_pair(&mut self, pair: &[u8]) -> Result<(), Cow<'static, str>> {
        let (name, value) =
            pair.iter().position(|byte| *byte == b'=').map_or((pair, &[][..]), |at| (&pair[..at], &pair[at + 1..]));
        let name = unescape(name)?;
        let value = unescape(value)?;
        let known = NAMES.iter().find(|known| known.as_bytes() == &name[..]);
        if let Some(known) = known
            && self.get(known).is_none()
        {
            self.values.push((known, value.into_owned().into()));
        }
        Ok(())
    }

    fn get(&self, name: &str) -> Option<&Bytes> {
        self.values.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    fn index(&self, name: &str) -> Result<u64, Refusal> {
        let Some(text) = self.get(name) else { return Ok(0) };
        parse_uint(text).ok_or_else(|| Refusal::new(203, format!(r#"invalid value for "{name}""#)))
    }

    fn quoted_flag(&self, name: &str) -> Result<bool, Refusal> {
        let Some(text) = self.get(name) else { return Ok(false) };
        parse_bool(text).ok_or_else(|| Refusal::new(209, format!(r#"invalid value for "{name}""#)))
    }

    fn bare_flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        let Some(text) = self.get(name) else { return Ok(None) };
        parse_bool(text).map(Some).ok_or_else(|| Refusal::new(209, format!("invalid value for {name}")))
    }
}

/// Decodes `+` as a space, and `%` with two hexadecimal digits.
fn unescape(text: &[u8]) -> Result<Cow<'_, [u8]>, Cow<'static, str>> {
    let mut at = 0;
    while let Some(found) = text[at..].iter().position(|byte| *byte == b'%') {
        let escape = &text[at + found..text.len().min(at + found + 3)];
        if escape.len() < 3 || !escape[1..].iter().all(u8::is_ascii_hexdigit) {
            return Err(format!("invalid URL escape {:?}", String::from_utf8_lossy(escape)).into());
        }
        at += found + 3;
    }
    if !text.contains(&b'+') {
        return Ok(percent_decode(text).into());
    }
    let spaced: Vec<u8> = text.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    Ok(Cow::Owned(percent_decode(&spaced).collect()))
}

/// A number of decimal digits only.
fn parse_uint(text: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

fn parse_bool(text: &[u8]) -> Option<bool> {
    match text {
        b"1" | b"t" | b"T" | b"TRUE" | b"true" | b"True" => Some(true),
        b"0" | b"f" | b"F" | b"FALSE" | b"false" | b"False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: &Method, query: &str, form: &str) -> Result<Fields, (u32, String)> {
        let body = if form.is_empty() { Body::Ignored } else { Body::Form(Bytes::copy_from_slice(form.as_bytes())) };
        Fields::read(method, query, &body).map_err(|refusal| (refusal.code, refusal.cause.into_owned()))
    }

    #[test]
    fn the_bodys_values_count_and_the_first_of_several() {
        let fields =
            read(&Method::PUT, "value=q&ttl=5&dir=true", "value=b%2B+c&value=d&prevExist=1&unknown=x").expect("fields");
        assert_eq!(
            (&fields.value[..], fields.ttl, fields.dir, fields.prev_exist),
            (&b"b+ c"[..], Some(5), true, Some(true))
        );
    }

    #[test]
    fn each_fault_has_its_code_and_they_are_found_in_etcds_order() {
        for (query, code, cause) in [
            ("a=%zz", 210, r#"invalid URL escape "%zz""#),
            ("a=%2", 210, r#"invalid URL escape "%2""#),
            ("a;b&prevIndex=x", 210, "invalid semicolon separator in query"),
            ("a=%zz&b;c&d=%zz", 210, "invalid semicolon separator in query"),
            ("prevIndex=-1&recursive=x", 203, r#"invalid value for "prevIndex""#),
            ("waitIndex=", 203, r#"invalid value for "waitIndex""#),
            ("waitIndex=18446744073709551616", 203, r#"invalid value for "waitIndex""#),
            ("recursive=yes", 209, r#"invalid value for "recursive""#),
            ("wait=true", 209, r#""wait" can only be used with GET requests"#),
            ("prevValue=", 201, r#""prevValue" cannot be empty"#),
            ("noValueOnSuccess=2", 209, r#"invalid value for "noValueOnSuccess""#),
            ("ttl=1s", 202, r#"invalid value for "ttl""#),
            ("prevExist=", 209, "invalid value for prevExist"),
            ("refresh=x", 209, "invalid value for refresh"),
            ("refresh=true&value=x&ttl=5", 211, "A value was provided on a refresh"),
            ("refresh=true", 212, "No TTL value set"),
        ] {
            assert_eq!(read(&Method::PUT, query, ""), Err((code, cause.to_owned())), "{query}");
        }
        assert_eq!(
            read(&Method::GET, "wait=true&ttl=&prevIndex=18446744073709551615", "").map(|fields| fields.ttl),
            Ok(None)
        );
    }
}
