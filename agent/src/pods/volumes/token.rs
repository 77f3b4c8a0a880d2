//! Service account tokens for projected volumes, by the TokenRequest subresource.
//!
//! In: the volume's serviceAccountToken sources. Out: tokens by path, and when the first of them has to be renewed. A server that has no such
//! subresource is a clear error.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection, Volume};
use kube::Api;
use kube::api::PostParams;

use super::Tokens;
use crate::pods::backoff::after;
use crate::pods::sandbox::Names;
use crate::pods::site::Site;

/// expirationSeconds where the spec has none.
const DEFAULT_LIFETIME: i64 = 3_600;
/// A token is renewed after so much of its life, in percent (kubelet: `jwt` manager).
const RENEWED_AFTER: i64 = 80;
/// A token is renewed after so long at the latest (kubelet: `maxTTL`).
const LONGEST_USE: SignedDuration = SignedDuration::from_hours(24);

/// Tokens of a volume.
#[derive(Debug, Default)]
pub struct Requested {
    /// By path in the volume.
    pub by_path: Tokens,
    /// When the first has to be renewed.
    pub refresh_at: Option<Timestamp>,
}

/// Requests the tokens of a volume; none for one that has no such source.
///
/// # Errors
/// In words.
pub async fn request_all(site: &Site, pod: &Pod, volume: &Volume) -> Result<Requested, String> {
    let mut requested = Requested::default();
    let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
    for projection in sources.filter_map(|source| source.service_account_token.as_ref()) {
        let (token, refresh_at) = request(site, pod, projection).await?;
        requested.by_path.insert(projection.path.clone(), token);
        requested.refresh_at = [requested.refresh_at, Some(refresh_at)].into_iter().flatten().min();
    }
    Ok(requested)
}

async fn request(
    site: &Site,
    pod: &Pod,
    projection: &ServiceAccountTokenProjection,
) -> Result<(String, Timestamp), String> {
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
    let expires = status.expiration_timestamp.map(|time| time.0);
    let life = expires.map_or(SignedDuration::from_secs(lifetime), |expires| expires.duration_since(now));
    let used = SignedDuration::from_secs(life.as_secs().saturating_mul(RENEWED_AFTER) / 100).min(LONGEST_USE);
    Ok((token, after(now, used)))
}
