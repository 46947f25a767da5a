//! The fields of a request, in the types of `http`.
//!
//! Not here: what the fields of one request must be together. Called by `decode` with what came in and by `table` for the names of its
//! entries. Always holds: what is no [`Field::Invalid`] can go into an [`http::Request`] as it is.

use http::{
    HeaderName, HeaderValue, Method,
    uri::{Authority, PathAndQuery, Scheme},
};

/// Names that `http` does not know and every client of gRPC has. Being static, their clones neither allocate nor count.
static NAMES: [HeaderName; 3] = [
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("grpc-accept-encoding"),
    HeaderName::from_static("grpc-encoding"),
];

/// And such values.
static VALUES: [HeaderValue; 4] = [
    HeaderValue::from_static("application/grpc"),
    HeaderValue::from_static("trailers"),
    HeaderValue::from_static("gzip"),
    HeaderValue::from_static("identity"),
];

/// One field of a header block. Clones share their strings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// `:method`.
    Method(Method),
    /// `:scheme`.
    Scheme(Scheme),
    /// `:authority`.
    Authority(Authority),
    /// `:path`: begins with `/`, or is `*`.
    Path(PathAndQuery),
    /// A header or a trailer.
    Header(HeaderName, HeaderValue),
    /// Well compressed, but makes its request malformed. The connection goes on.
    Invalid(Invalid),
}

/// Why a field has no place in a request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// No name, or one with capitals or other bytes that names do not have.
    #[error("a header's name is empty or has bytes that it must not have")]
    Name,
    /// A pseudo-header of responses or of extensions that were not offered.
    #[error("a pseudo-header that requests do not have")]
    PseudoHeader,
    /// `:method` is no token.
    #[error(":method is not a method")]
    Method,
    /// `:scheme` is no scheme.
    #[error(":scheme is not a scheme")]
    Scheme,
    /// `:authority` is empty or not an authority.
    #[error(":authority is not an authority")]
    Authority,
    /// `:path` is no path.
    #[error(":path is not a path")]
    Path,
    /// The value of this header has bytes that values must not have.
    #[error("the value of {0} has bytes that it must not have")]
    Value(HeaderName),
}

/// The name of a field, before its value is known.
#[derive(Clone, Debug)]
pub(super) enum Name {
    Method,
    Scheme,
    Authority,
    Path,
    Header(HeaderName),
    Invalid(Invalid),
}

impl Name {
    pub(super) fn parse(name: &[u8]) -> Self {
        match name {
            b":method" => Self::Method,
            b":scheme" => Self::Scheme,
            b":authority" => Self::Authority,
            b":path" => Self::Path,
            [b':', ..] => Self::Invalid(Invalid::PseudoHeader),
            _ => match NAMES.iter().find(|known| known.as_str().as_bytes() == name) {
                Some(known) => Self::Header(known.clone()),
                None => HeaderName::from_lowercase(name).map_or(Self::Invalid(Invalid::Name), Self::Header),
            },
        }
    }

    /// The field of this name and a value. Spaces around a value are let pass, as etcd does.
    pub(super) fn with(self, value: &[u8], sensitive: bool) -> Field {
        let field = match self {
            Self::Method => Method::from_bytes(value).map(Field::Method).map_err(|_| Invalid::Method),
            Self::Scheme if value.is_empty() => Err(Invalid::Scheme),
            Self::Scheme => Scheme::try_from(value).map(Field::Scheme).map_err(|_| Invalid::Scheme),
            Self::Authority => Authority::try_from(value).map(Field::Authority).map_err(|_| Invalid::Authority),
            Self::Path if value.starts_with(b"/") || value == b"*" => {
                PathAndQuery::try_from(value).map(Field::Path).map_err(|_| Invalid::Path)
            }
            Self::Path => Err(Invalid::Path),
            Self::Header(name) => {
                let known = VALUES.iter().find(|known| known.as_bytes() == value).cloned();
                match known.map_or_else(|| HeaderValue::from_bytes(value), Ok) {
                    Ok(mut value) => {
                        value.set_sensitive(sensitive);
                        Ok(Field::Header(name, value))
                    }
                    Err(_) => Err(Invalid::Value(name)),
                }
            }
            Self::Invalid(why) => Err(why),
        };
        field.unwrap_or_else(Field::Invalid)
    }
}

impl Field {
    /// The name, for another field that refers to it.
    pub(super) fn name(&self) -> Name {
        match self {
            Self::Method(_) | Self::Invalid(Invalid::Method) => Name::Method,
            Self::Scheme(_) | Self::Invalid(Invalid::Scheme) => Name::Scheme,
            Self::Authority(_) | Self::Invalid(Invalid::Authority) => Name::Authority,
            Self::Path(_) | Self::Invalid(Invalid::Path) => Name::Path,
            Self::Header(name, _) | Self::Invalid(Invalid::Value(name)) => Name::Header(name.clone()),
            Self::Invalid(why @ (Invalid::Name | Invalid::PseudoHeader)) => Name::Invalid(why.clone()),
        }
    }
}
