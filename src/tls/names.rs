//! [`Names`]: the names in a certificate, and when it expires.
//!
//! Not here: whether it can be trusted. Clients' names are read only after their chain was verified.
//! Always holds: a certificate that cannot be read has no names and counts as expired.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use std::net::IpAddr;

use rustls::pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};

/// The names in a certificate; see the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    common: Vec<String>,
    alternative: Vec<String>,
    not_after: SystemTime,
}

impl Names {
    /// The names in a certificate.
    #[must_use]
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else {
            return Self { common: Vec::new(), alternative: Vec::new(), not_after: UNIX_EPOCH };
        };
        let common =
            certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok()).map(str::to_owned).collect();
        let alternative = match certificate.subject_alternative_name() {
            Ok(Some(names)) => names.value.general_names.iter().filter_map(text).collect(),
            _ => Vec::new(),
        };
        let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
        Self { common, alternative, not_after: UNIX_EPOCH + Duration::from_secs(seconds) }
    }

    /// The common name of the subject; `None` if there is none, or it is empty.
    #[must_use]
    pub fn common(&self) -> Option<&str> {
        self.common.iter().map(String::as_str).find(|name| !name.is_empty())
    }

    /// Whether the certificate has exactly this name: as an alternative name (DNS, address, URI or e-mail), or as its
    /// common name if it has none of these. A wildcard in the certificate matches only itself.
    #[must_use]
    pub fn bears(&self, name: &str) -> bool {
        if self.alternative.is_empty() {
            self.common() == Some(name)
        } else {
            !name.is_empty() && self.alternative.iter().any(|own| own.eq_ignore_ascii_case(name))
        }
    }

    /// When the certificate expires.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether it has expired.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        SystemTime::now() > self.not_after
    }
}

fn text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let addr: Option<IpAddr> = match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from),
                16 => <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from),
                _ => None,
            };
            addr.map(|addr| addr.to_string())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    fn names(common: &str, alternative: &[&str]) -> Names {
        let alternative: Vec<String> = alternative.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(alternative).expect("names");
        params.distinguished_name = DistinguishedName::new();
        if !common.is_empty() {
            params.distinguished_name.push(DnType::CommonName, common);
        }
        let certificate = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate");
        Names::of(certificate.der())
    }

    #[test]
    fn a_common_name_counts_where_there_is_no_other_and_wildcards_are_not_spread() {
        let both = names("root", &["lainlet.example", "10.0.0.1", "*.wild.example"]);
        assert_eq!(both.common(), Some("root"));
        for (name, bears) in [
            ("lainlet.example", true),
            ("LAINLET.example", true),
            ("10.0.0.1", true),
            ("*.wild.example", true),
            ("a.wild.example", false),
            ("root", false),
            ("lainlet", false),
            ("", false),
        ] {
            assert_eq!(both.bears(name), bears, "{name}");
        }
        assert!(names("root", &[]).bears("root"));
        assert_eq!(names("", &["a"]).common(), None);
        assert!(!both.has_ended());
    }

    #[test]
    fn what_is_no_certificate_names_nobody_and_has_ended() {
        let nobody = Names::of(&CertificateDer::from(vec![0x30, 0x82, 0xff, 0xff]));
        assert!(nobody.common().is_none() && !nobody.bears("") && nobody.has_ended());
    }
}
