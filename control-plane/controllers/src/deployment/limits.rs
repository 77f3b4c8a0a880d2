//! The numbers of a rollout: how many pods too many, how many too few.
//!
//! Input: a Deployment's spec. Output: counts. Pure. Percentages are rounded as upstream does: a surge up, an absence
//! down; where both come to nothing, one pod may be absent, or nothing would ever move.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The default of maxSurge and maxUnavailable.
const DEFAULT_PERCENT: &str = "25%";
pub const STRATEGY_RECREATE: &str = "Recreate";
pub const STRATEGY_ROLLING_UPDATE: &str = "RollingUpdate";

/// Which way a percentage is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    Up,
    Down,
}

/// How far a rollout may stray from the wanted number of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The wanted number.
    pub replicas: i32,
    /// Pods above it at most.
    pub surge: i32,
    /// Pods below it at most.
    pub unavailable: i32,
}

impl Limits {
    /// The limits of a Deployment; an error says which value does not read.
    pub fn of(deployment: &Deployment) -> Result<Self, String> {
        let replicas = replicas(deployment);
        if strategy(deployment) != STRATEGY_ROLLING_UPDATE {
            return Ok(Self { replicas, surge: 0, unavailable: 0 });
        }
        let rolling = deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.strategy.as_ref())
            .and_then(|strategy| strategy.rolling_update.clone())
            .unwrap_or_default();
        let default = || IntOrString::String(DEFAULT_PERCENT.to_owned());
        let surge = resolve(&rolling.max_surge.unwrap_or_else(default), replicas, Rounding::Up)
            .ok_or("maxSurge is neither a number nor a percentage")?;
        let unavailable = resolve(&rolling.max_unavailable.unwrap_or_else(default), replicas, Rounding::Down)
            .ok_or("maxUnavailable is neither a number nor a percentage")?;
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
        Ok(Self { replicas, surge, unavailable: unavailable.min(replicas) })
    }

    /// Pods that may exist at once.
    pub fn most(&self) -> i32 {
        self.replicas.saturating_add(self.surge)
    }

    /// Pods that must be available.
    pub fn least(&self) -> i32 {
        self.replicas - self.unavailable
    }
}

/// The wanted number of pods.
pub fn replicas(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// The strategy's name; RollingUpdate where none is given.
pub fn strategy(deployment: &Deployment) -> &str {
    deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.strategy.as_ref())
        .and_then(|strategy| strategy.type_.as_deref())
        .unwrap_or(STRATEGY_ROLLING_UPDATE)
}

/// A number, or a percentage of `total`; absent where the value is neither.
pub fn resolve(value: &IntOrString, total: i32, rounding: Rounding) -> Option<i32> {
    let text = match value {
        IntOrString::Int(number) => return Some((*number).max(0)),
        IntOrString::String(text) => text,
    };
    let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
    let product = percent.max(0) * i64::from(total);
    let share = match rounding {
        Rounding::Up => product.div_euclid(100) + i64::from(product.rem_euclid(100) != 0),
        Rounding::Down => product.div_euclid(100),
    };
    i32::try_from(share).ok()
}
