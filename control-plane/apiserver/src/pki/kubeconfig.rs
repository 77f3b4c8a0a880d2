//! A kubeconfig file with everything inline, so that it can be copied anywhere.
//!
//! Input: address, CA and client credentials. Output: YAML text. Refuses nothing: every value is quoted or base64.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Credentials;

/// One cluster, one user, one context.
pub struct Kubeconfig<'a> {
    pub server: &'a str,
    pub ca: &'a str,
    pub user: &'a str,
    pub client: &'a Credentials,
}

impl Kubeconfig<'_> {
    /// The file's text. The names in it are `orlop` for cluster and context.
    pub fn render(&self) -> String {
        let (ca, certificate, key) = (
            STANDARD.encode(self.ca),
            STANDARD.encode(&self.client.certificate),
            STANDARD.encode(&self.client.key),
        );
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: orlop\n  cluster:\n    server: \"{server}\"\n    \
             certificate-authority-data: {ca}\nusers:\n- name: \"{user}\"\n  user:\n    client-certificate-data: \
             {certificate}\n    client-key-data: {key}\ncontexts:\n- name: orlop\n  context:\n    cluster: orlop\n    \
             user: \"{user}\"\ncurrent-context: orlop\n",
            server = self.server,
            user = self.user,
        )
    }
}
