//! Service account tokens for projected volumes, by the TokenRequest subresource.
//!
//! In: the volume's serviceAccountToken sources, the pod's tokens so far. Out: tokens by path, and when the first of them has to be renewed.
//! A token is kept until then; one that cannot be renewed is used until it expires. A server that has no such subresource is a clear error.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection, Volume};
use kube::Api;
use kube::api::PostParams;

use super::Tokens;
use crate::pods::backoff::after;
use crate::pods::sandbox::Names;
use crate::pods::site::Site;

#[cfg(test)]
mod tests;

/// expirationSeconds where the spec has none.
const DEFAULT_LIFETIME: i64 = 3_600;
/// A token is renewed after so much of its life, in percent (kubelet: `jwt` manager).
const RENEWED_AFTER: i64 = 80;
/// A token is renewed after so long at the latest (kubelet: `maxTTL`).
const LONGEST_USE: SignedDuration = SignedDuration::from_hours(24);

/// When a renewal that failed is tried again.
const RENEWED_AGAIN: SignedDuration = SignedDuration::from_secs(20);

/// Tokens of a volume.
#[derive(Debug, Default)]
pub struct Requested {
    /// By path in the volume.
    pub by_path: Tokens,
    /// When the first has to be renewed.
    pub refresh_at: Option<Timestamp>,
}

/// A token with its times.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    text: String,
    refresh_at: Timestamp,
    expires_at: Timestamp,
}

/// The tokens of one pod, by audience and lifetime: as many as its spec has sources.
#[derive(Default)]
pub struct Kept(Mutex<BTreeMap<(String, i64), Token>>);

impl Kept {
    /// What is there of a token: fresh ones are used without a question.
    fn get(&self, key: &(String, i64)) -> Option<Token> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn put(&self, key: (String, i64), token: Token) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, token);
    }

    /// The kept token while it is fresh, else the one that `request` gets; when that fails, the kept one for as long as it is valid.
    async fn fresh_or(
        &self,
        key: (String, i64),
        now: Timestamp,
        request: impl Future<Output = Result<Token, String>>,
    ) -> Result<Token, String> {
        let kept = self.get(&key);
        if let Some(kept) = kept.as_ref().filter(|kept| kept.refresh_at > now) {
            return Ok(kept.clone());
        }
        match (request.await, kept) {
            (Ok(token), _) => {
                self.put(key, token.clone());
                Ok(token)
            }
            (Err(error), Some(kept)) if kept.expires_at > now => {
                tracing::warn!(error, "cannot renew a token, the one before is used on");
                Ok(Token { refresh_at: after(now, RENEWED_AGAIN), ..kept })
            }
            (Err(error), _) => Err(error),
        }
    }
}

/// The tokens of a volume; none for one that has no such source.
///
/// # Errors
/// In words.
pub async fn tokens(site: &Site, pod: &Pod, volume: &Volume, kept: &Kept) -> Result<Requested, String> {
    let mut requested = Requested::default();
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    for projection in sources.filter_map(|source| source.service_account_token.as_ref()) {
        let audience = projection.audience.clone().unwrap_or_default();
        let key = (audience, projection.expiration_seconds.unwrap_or(DEFAULT_LIFETIME));
        let token = kept.fresh_or(key, Timestamp::now(), request(site, pod, projection)).await?;
        requested.by_path.insert(projection.path.clone(), token.text);
        requested.refresh_at = [requested.refresh_at, Some(token.refresh_at)].into_iter().flatten().min();
    }
    Ok(requested)
}

async fn request(
    site: &Site,
    pod: &Pod,
    projection: &ServiceAccountTokenProjection,
) -> Result<Token, String> {
    let names = Names::of(pod);
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
    let lifetime = projection.expiration_seconds.unwrap_or(DEFAULT_LIFETIME);
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: projection.audience.clone().filter(|text| !text.is_empty()).map(|text| vec![text]),
            expiration_seconds: Some(lifetime),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: Some(names.name.into()),
                uid: Some(names.uid.into()),
            }),
        }),
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(site.client.clone(), names.namespace);
    let answer = accounts.create_token_request(account, &PostParams::default(), &request).await;
    let answer = answer.map_err(|error| match error {
        kube::Error::Api(status) if matches!(status.code, 404 | 405) => format!(
            "failed to fetch token: the API server gives no tokens for serviceaccounts \"{account}\": {}",
            status.message
        ),
        error => format!("failed to fetch token: {error}"),
    })?;
    let status = answer.status.unwrap_or_default();
    let token = status.token.filter(|token| !token.is_empty());
    let token = token.ok_or("failed to fetch token: the API server's answer has none")?;
    let now = Timestamp::now();
    let asked = after(now, SignedDuration::from_secs(lifetime));
    let expires_at = status.expiration_timestamp.map_or(asked, |time| time.0);
    let life = expires_at.duration_since(now);
    let used = SignedDuration::from_secs(life.as_secs().saturating_mul(RENEWED_AFTER) / 100).min(LONGEST_USE);
    Ok(Token { text: token, refresh_at: after(now, used), expires_at })
}
