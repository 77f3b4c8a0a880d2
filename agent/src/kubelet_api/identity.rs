//! Who is calling, by the client certificate, and whether that one may. Pure.
//!
//! As in Kubernetes, the certificate's common name is the user and its organizations are the groups. rustls has verified the
//! certificate before.

use rustls::pki_types::CertificateDer;
use x509_parser::x509::AttributeTypeAndValue;

#[cfg(test)]
mod tests;

/// The user of the API server's client certificate towards kubelets, as kubeadm names it.
const API_SERVER_USER: &str = "kube-apiserver-kubelet-client";
const ADMIN_GROUP: &str = "system:masters";

/// A caller's user and groups.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    pub user: String,
    pub groups: Vec<String>,
}

impl Caller {
    /// From the chain of a verified connection, whose first certificate is the client's own.
    pub fn of_certificates(chain: Option<&[CertificateDer<'_>]>) -> Self {
        let own = chain.and_then(|chain| chain.first());
        let Some(Ok((_, certificate))) = own.map(|own| x509_parser::parse_x509_certificate(own.as_ref()))
        else {
            return Self::default();
        };
        let subject = certificate.subject();
        Self {
            user: texts(subject.iter_common_name()).into_iter().next().unwrap_or_default(),
            groups: texts(subject.iter_organization()),
        }
    }

    /// Whether this caller may use the API: there are no finer rights before webhook authorization exists.
    pub fn may_call(&self) -> bool {
        self.user == API_SERVER_USER || self.groups.iter().any(|group| group == ADMIN_GROUP)
    }
}

fn texts<'a, 'b: 'a>(attributes: impl Iterator<Item = &'a AttributeTypeAndValue<'b>>) -> Vec<String> {
    attributes.filter_map(|attribute| attribute.as_str().ok()).map(str::to_owned).collect()
}
