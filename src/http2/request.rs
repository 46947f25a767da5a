//! [`Fields`]: the fields of a header block, and the request, answer or trailers made from them (RFC 9113, section 8).
//!
//! Compression is in `hpack`. Always holds: what the RFC calls malformed never becomes a request. A request that is too
//! large is a separate case, and uses no memory beyond the limit.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::hpack::{Field, Invalid};

/// The fields of a block; see the module.
#[derive(Debug)]
pub(super) struct Fields {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<Authority>,
    path: Option<PathAndQuery>,
    status: Option<StatusCode>,
    headers: HeaderMap,
    /// Room that is left for fields, in bytes.
    room: usize,
    /// Bytes that the fields take in memory.
    cost: usize,
    fault: Option<Rejected>,
}

/// Why the fields do not form a request or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    Malformed,
    TooLarge,
}

/// A request without its body.
#[derive(Debug)]
pub(super) struct RequestHead {
    pub(super) request: Request<()>,
    /// Length of its body in bytes, if it is declared.
    pub(super) length: Option<u64>,
    /// Bytes that its fields take in memory.
    pub(super) cost: usize,
}

/// Memory per field in addition to its name and value: its place in a map that doubles as it grows. A field from the
/// peer's table arrives as one byte, so a request may take a hundred times what was sent for it.
const FIELD_COST: usize = 200;

impl Fields {
    /// No fields yet, and room for this many bytes of them.
    pub(super) fn new(room: usize) -> Self {
        Self {
            method: None,
            scheme: None,
            authority: None,
            path: None,
            status: None,
            headers: HeaderMap::new(),
            room,
            cost: 0,
            fault: None,
        }
    }

    /// Adds a field of `size` bytes.
    pub(super) fn add(&mut self, field: Field, size: usize) {
        let Some(room) = self.room.checked_sub(size) else {
            self.fault.get_or_insert(Rejected::TooLarge);
            return;
        };
        self.room = room;
        self.cost += size + FIELD_COST;
        if let Err(fault) = self.put(field) {
            self.fault.get_or_insert(fault);
        }
    }

    fn put(&mut self, field: Field) -> Result<(), Rejected> {
        match field {
            Field::Method(method) => self.pseudo(|fields| &mut fields.method, method),
            Field::Scheme(scheme) => self.pseudo(|fields| &mut fields.scheme, scheme),
            Field::Authority(authority) => self.pseudo(|fields| &mut fields.authority, authority),
            Field::Path(path) => self.pseudo(|fields| &mut fields.path, path),
            Field::Status(status) => self.pseudo(|fields| &mut fields.status, status),
            Field::Header(name, value) => {
                if !may_be(&name, &value) {
                    return Err(Rejected::Malformed);
                }
                if self.headers.capacity() == 0 {
                    self.headers.reserve(12);
                }
                self.headers.try_append(name, value).map(drop).map_err(|_| Rejected::TooLarge)
            }
            // Clients of etcd 3.5.0 put their resolver's name there. It is ignored, since nothing here uses it.
            Field::Invalid(Invalid::Authority) => Ok(()),
            Field::Invalid(_) => Err(Rejected::Malformed),
        }
    }

    /// Pseudo-headers occur at most once, and before all other fields.
    fn pseudo<T>(&mut self, place: impl FnOnce(&mut Self) -> &mut Option<T>, value: T) -> Result<(), Rejected> {
        if !self.headers.is_empty() || place(self).replace(value).is_some() {
            return Err(Rejected::Malformed);
        }
        Ok(())
    }

    /// The request that the fields form.
    pub(super) fn request(self) -> Result<RequestHead, Rejected> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let method = self.method.ok_or(Rejected::Malformed)?;
        if self.status.is_some() {
            return Err(Rejected::Malformed);
        }
        let mut uri = http::uri::Parts::default();
        if method == Method::CONNECT {
            if self.scheme.is_some() || self.path.is_some() {
                return Err(Rejected::Malformed);
            }
            uri.authority = self.authority;
        } else {
            let (Some(scheme), Some(path)) = (self.scheme, self.path) else { return Err(Rejected::Malformed) };
            // A URI has a scheme only together with an authority.
            uri.scheme = self.authority.is_some().then_some(scheme);
            uri.authority = self.authority;
            uri.path_and_query = Some(path);
        }
        let length = length(&self.headers)?;
        let mut request = Request::new(());
        *request.uri_mut() = Uri::from_parts(uri).map_err(|_| Rejected::Malformed)?;
        *request.method_mut() = method;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers;
        Ok(RequestHead { request, length, cost: self.cost })
    }

    /// The head of an answer that the fields form, and the length of its body in bytes, if it is declared.
    pub(super) fn answer(mut self) -> Result<(StatusCode, HeaderMap, Option<u64>), Rejected> {
        let status = self.status.take();
        let headers = self.trailers()?;
        let length = length(&headers)?;
        Ok((status.ok_or(Rejected::Malformed)?, headers, length))
    }

    /// The trailers that the fields form.
    pub(super) fn trailers(self) -> Result<HeaderMap, Rejected> {
        match self.fault {
            Some(fault) => Err(fault),
            None if self.method.is_some()
                || self.scheme.is_some()
                || self.authority.is_some()
                || self.path.is_some()
                || self.status.is_some() =>
            {
                Err(Rejected::Malformed)
            }
            None => Ok(self.headers),
        }
    }
}

/// Whether a header is allowed in HTTP/2; headers about a connection are not.
fn may_be(name: &HeaderName, value: &HeaderValue) -> bool {
    if *name == header::TE {
        return value == "trailers";
    }
    !is_of_connection(name)
}

/// Whether a header is about a connection, which HTTP/2 handles by other means.
pub(super) fn is_of_connection(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
        || *name == "keep-alive"
        || *name == "proxy-connection"
}

fn length(headers: &HeaderMap) -> Result<Option<u64>, Rejected> {
    let mut length = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let value: u64 = digits.and_then(|digits| digits.parse().ok()).ok_or(Rejected::Malformed)?;
        if length.replace(value).is_some_and(|other| other != value) {
            return Err(Rejected::Malformed);
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &'static str, value: &'static str) -> Field {
        Field::Header(HeaderName::from_static(name), HeaderValue::from_static(value))
    }

    fn get() -> Vec<Field> {
        vec![
            Field::Method(Method::GET),
            Field::Scheme(Scheme::HTTP),
            Field::Path(PathAndQuery::from_static("/a?b")),
            Field::Authority(Authority::from_static("host:1")),
        ]
    }

    fn fields(fields: impl IntoIterator<Item = Field>) -> Fields {
        let mut all = Fields::new(1000);
        fields.into_iter().for_each(|field| all.add(field, 40));
        all
    }

    #[test]
    fn fields_make_a_request() {
        let head = fields(get().into_iter().chain([header("content-length", "7"), header("te", "trailers")]));
        let head = head.request().expect("a request");
        assert_eq!((head.request.uri().to_string().as_str(), head.length), ("http://host:1/a?b", Some(7)));
        assert_eq!((head.request.method(), head.request.version()), (&Method::GET, Version::HTTP_2));
        let mut without_authority = get();
        without_authority.pop();
        assert_eq!(fields(without_authority).request().expect("a request").request.uri(), "/a?b");
        let connect = [Field::Method(Method::CONNECT), Field::Authority(Authority::from_static("host:1"))];
        assert_eq!(fields(connect).request().expect("a request").request.uri(), "host:1");
    }

    #[test]
    fn what_the_rfc_calls_malformed_is_no_request() {
        let with = |more: &[Field]| fields(get().into_iter().chain(more.iter().cloned())).request();
        for more in [
            &[Field::Method(Method::GET)][..],
            &[header("connection", "close")],
            &[header("transfer-encoding", "chunked")],
            &[header("te", "gzip")],
            &[header("content-length", "+7")],
            &[header("content-length", "7"), header("content-length", "8")],
            &[Field::Invalid(Invalid::Name)],
        ] {
            assert_eq!(with(more).expect_err("malformed"), Rejected::Malformed, "{more:?}");
        }
        let mut late = get();
        late.insert(1, header("a", "b"));
        assert!(fields(late).request().is_err(), "a pseudo-header after other fields");
        for missing in 0..3 {
            let mut some = get();
            some.remove(missing);
            assert!(fields(some).request().is_err());
        }
        assert!(fields([header("a", "b"), Field::Path(PathAndQuery::from_static("/"))]).trailers().is_err());
        assert_eq!(fields([header("a", "b")]).trailers().expect("trailers").len(), 1);
    }

    #[test]
    fn fields_make_an_answer_only_with_a_status_and_nothing_of_a_request() {
        let ok = || Field::Status(StatusCode::OK);
        let (status, headers, length) = fields([ok(), header("content-length", "7")]).answer().expect("an answer");
        assert_eq!((status, headers.len(), length), (StatusCode::OK, 1, Some(7)));
        for malformed in [
            &[header("a", "b")][..],
            &[ok(), ok()],
            &[header("a", "b"), ok()],
            &[ok(), Field::Path(PathAndQuery::from_static("/"))],
            &[ok(), header("connection", "close")],
            &[ok(), header("content-length", "x")],
            &[Field::Invalid(Invalid::Status)],
        ] {
            assert!(fields(malformed.iter().cloned()).answer().is_err(), "{malformed:?}");
        }
        assert!(fields([ok()]).trailers().is_err(), "trailers have no status");
        let mut late = get();
        late.insert(0, ok());
        assert!(fields(late).request().is_err(), "a request has no status");
    }

    #[test]
    fn what_is_too_large_is_told_apart() {
        let many = get().into_iter().chain(std::iter::repeat_n(header("a", "b"), 30));
        assert_eq!(fields(many).request().expect_err("too large"), Rejected::TooLarge);
    }
}
