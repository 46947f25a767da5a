//! [`Version`] and [`Suites`]: the TLS versions and cipher suites, under the names in etcd's flags.
//!
//! Always holds: only TLS 1.2 and 1.3 are used; for TLS 1.2 only suites with forward secrecy and authenticated
//! encryption, since rustls has no others; the suites of TLS 1.3 are always on if 1.3 is, as in etcd.

use std::{str::FromStr, sync::Arc};

use rustls::{
    CipherSuite, SupportedProtocolVersion,
    crypto::CryptoProvider,
    version::{TLS12, TLS13},
};
use thiserror::Error;

use super::{TlsError, provider};

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 1.2
    #[default]
    Tls12,
    /// 1.3
    Tls13,
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "TLS1.2" => Ok(Self::Tls12),
            "TLS1.3" => Ok(Self::Tls13),
            _ => Err(format!("`{text}` is not a supported version of TLS; write TLS1.2 or TLS1.3")),
        }
    }
}

/// The allowed versions and cipher suites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suites {
    /// The oldest version.
    pub min: Version,
    /// The newest version.
    pub max: Version,
    /// Cipher suites of TLS 1.2; an empty list means all.
    named: Vec<CipherSuite>,
}

impl Default for Suites {
    fn default() -> Self {
        Self { min: Version::Tls12, max: Version::Tls13, named: Vec::new() }
    }
}

/// The name is not that of a usable cipher suite.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{name}` is not a supported cipher suite; the supported ones are {}", known().join(", "))]
pub struct UnknownSuite {
    name: String,
}

/// Go's shorter names of two suites, which etcd accepts as well.
const ALIASES: [(&str, &str); 2] = [
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
];

impl Suites {
    /// The suites with these names, and these versions.
    ///
    /// # Errors
    /// If a name is not that of a usable suite.
    pub fn new<'a>(min: Version, max: Version, names: impl IntoIterator<Item = &'a str>) -> Result<Self, UnknownSuite> {
        let all = provider();
        let named = names
            .into_iter()
            .map(|name| {
                let long = ALIASES.iter().find(|(short, _)| *short == name).map_or(name, |(_, long)| long);
                let find = |suite: &CipherSuite| go_name(*suite) == long;
                let found = all.cipher_suites.iter().map(|suite| suite.suite()).find(find);
                found.ok_or_else(|| UnknownSuite { name: name.to_owned() })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { min, max, named })
    }

    /// The versions, for rustls.
    pub(super) fn versions(&self) -> Vec<&'static SupportedProtocolVersion> {
        [(Version::Tls13, &TLS13), (Version::Tls12, &TLS12)]
            .into_iter()
            .filter(|(version, _)| (self.min..=self.max).contains(version))
            .map(|(_, version)| version)
            .collect()
    }

    /// The cryptography with only these suites.
    pub(super) fn provider(&self) -> Result<Arc<CryptoProvider>, TlsError> {
        let all = provider();
        if self.named.is_empty() {
            return Ok(all);
        }
        let mut some = CryptoProvider::clone(&all);
        some.cipher_suites.retain(|suite| suite.tls13().is_some() || self.named.contains(&suite.suite()));
        // In the order of the flag.
        some.cipher_suites.sort_by_key(|suite| {
            let place = self.named.iter().position(|named| *named == suite.suite());
            (suite.tls13().is_none(), place)
        });
        if self.max == Version::Tls12 && some.cipher_suites.iter().all(|suite| suite.tls13().is_some()) {
            return Err(TlsError::Nothing("all of them belong to TLS 1.3".to_owned()));
        }
        Ok(Arc::new(some))
    }
}

/// Go's name of a suite, which etcd's flags use; it is the standard's.
fn go_name(suite: CipherSuite) -> String {
    let name = suite.as_str().unwrap_or_default();
    name.replacen("TLS13_", "TLS_", 1)
}

fn known() -> Vec<String> {
    provider().cipher_suites.iter().map(|suite| go_name(suite.suite())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(suites: &Suites) -> Vec<String> {
        suites.provider().expect("some").cipher_suites.iter().map(|suite| go_name(suite.suite())).collect()
    }

    #[test]
    fn suites_have_etcds_names_and_those_of_tls_1_3_are_always_on() {
        let all = Suites::default();
        assert!(names(&all).len() > 4 && all.versions().len() == 2);
        let one = |name| Suites::new(Version::Tls12, Version::Tls13, [name]);
        for name in ["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"] {
            let names = names(&one(name).expect("known"));
            let (old, new): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.contains("_WITH_"));
            assert_eq!(old, ["TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"]);
            assert!(new.iter().any(|name| *name == "TLS_AES_128_GCM_SHA256"), "{new:?}");
        }
        let error = one("TLS_RSA_WITH_AES_128_CBC_SHA").expect_err("no forward secrecy").to_string();
        assert!(error.contains("TLS_RSA_WITH_AES_128_CBC_SHA") && error.contains("TLS_AES_128_GCM_SHA256"), "{error}");
    }

    #[test]
    fn versions_are_those_between_the_two() {
        let versions = |min, max| Suites::new(min, max, []).expect("none are named").versions().len();
        assert_eq!(versions(Version::Tls12, Version::Tls12), 1);
        assert_eq!(versions(Version::Tls13, Version::Tls13), 1);
        assert!("TLS1.1".parse::<Version>().expect_err("too old").contains("TLS1.2"));
        let only_new = Suites::new(Version::Tls12, Version::Tls12, ["TLS_AES_128_GCM_SHA256"]).expect("known");
        assert!(matches!(only_new.provider(), Err(TlsError::Nothing(_))));
    }
}
