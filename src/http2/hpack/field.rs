//! The fields of a request or an answer, as types of the crate `http`.
//!
//! The rules for all fields of a message together are in `request`. `decode` calls it with the input, and `table` for
//! the names of its entries. Always holds: every field but [`Field::Invalid`] can be used in an [`http::Request`] as it
//! is.

use http::{
    HeaderName, HeaderValue, Method, StatusCode,
    uri::{Authority, PathAndQuery, Scheme},
};

/// Names that every gRPC client or server sends and `http` does not predefine. They are static, so clones neither
/// allocate nor count references.
static NAMES: [HeaderName; 5] = [
    HeaderName::from_static("grpc-timeout"),
    HeaderName::from_static("grpc-accept-encoding"),
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("grpc-status"),
    HeaderName::from_static("grpc-message"),
];

/// Values of the same kind.
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
    /// `:status`.
    Status(StatusCode),
    /// A header or a trailer.
    Header(HeaderName, HeaderValue),
    /// Correctly compressed, but not allowed in a request. The connection goes on.
    Invalid(Invalid),
}

/// Why a field is not allowed in a request or an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The name is empty, in capitals, or has bytes that names must not contain.
    #[error("a header's name is empty or has invalid bytes")]
    Name,
    /// A pseudo-header of an extension that was not offered.
    #[error("a pseudo-header that does not exist")]
    PseudoHeader,
    /// `:status` is not three digits.
    #[error(":status is not a status")]
    Status,
    /// `:method` is not a token.
    #[error(":method is not a method")]
    Method,
    /// `:scheme` is not a scheme.
    #[error(":scheme is not a scheme")]
    Scheme,
    /// `:authority` is empty or not an authority.
    #[error(":authority is not an authority")]
    Authority,
    /// `:path` is not a path.
    #[error(":path is not a path")]
    Path,
    /// The value of this header has invalid bytes.
    #[error("the value of {0} has invalid bytes")]
    Value(HeaderName),
}

/// The name of a field whose value is not known yet.
#[derive(Clone, Debug)]
pub(super) enum Name {
    Method,
    Scheme,
    Authority,
    Path,
    Status,
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
            b":status" => Self::Status,
            [b':', ..] => Self::Invalid(Invalid::PseudoHeader),
            _ => match NAMES.iter().find(|known| known.as_str().as_bytes() == name) {
                Some(known) => Self::Header(known.clone()),
                None => HeaderName::from_lowercase(name).map_or(Self::Invalid(Invalid::Name), Self::Header),
            },
        }
    }

    /// The field with this name and value. Spaces around the value are accepted, as in etcd.
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
            Self::Status => StatusCode::from_bytes(value).map(Field::Status).map_err(|_| Invalid::Status),
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
    /// The name, for another field that refers to it by index.
    pub(super) fn name(&self) -> Name {
        match self {
            Self::Method(_) | Self::Invalid(Invalid::Method) => Name::Method,
            Self::Scheme(_) | Self::Invalid(Invalid::Scheme) => Name::Scheme,
            Self::Authority(_) | Self::Invalid(Invalid::Authority) => Name::Authority,
            Self::Path(_) | Self::Invalid(Invalid::Path) => Name::Path,
            Self::Status(_) | Self::Invalid(Invalid::Status) => Name::Status,
            Self::Header(name, _) | Self::Invalid(Invalid::Value(name)) => Name::Header(name.clone()),
            Self::Invalid(why @ (Invalid::Name | Invalid::PseudoHeader)) => Name::Invalid(why.clone()),
        }
    }
}
